"""What one section has found, in a JSON file that is written after every entry: a run that is cut
off still tells what it knew.
"""

import json
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from trainers.files.atomic_write import atomic_write

STATUSES = ("running", "ok", "failed", "skipped", "error")


class Skipped(Exception):
    """A section cannot run here; the message says why."""


class Report:
    """The checks, the measured rows and the parts that were left out of one section.

    `deadline` is in seconds of time.monotonic.
    """

    def __init__(self, name: str, title: str, folder: Path, *, deadline: float = math.inf) -> None:
        self.name = name
        self.title = title
        self.path = folder / f"{name}.json"
        self.deadline = deadline
        self.status = "running"
        self.reason = ""
        self.error = ""
        self.checks: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self._began_at = time.monotonic()
        self._seconds = 0.0

    def check(self, name: str, ok: bool, *, value: Any, goal: str) -> None:
        """Add what was measured and whether it reaches its goal."""
        self.checks.append({"name": name, "value": _as_plain(value), "goal": goal, "ok": bool(ok)})
        _say(f"  {'ok  ' if ok else 'FAIL'} {name}: {_as_plain(value)} (goal: {goal})")
        self.write()

    def check_most(self, name: str, value: float, most: float) -> None:
        """Check that a number is there and at most `most`."""
        self.check(name, value <= most, value=value, goal=f"at most {most:g}")

    def add_row(self, **values: Any) -> None:
        """Add numbers that have no goal, for the tables."""
        self.rows.append({name: _as_plain(value) for name, value in values.items()})
        _say("  " + ", ".join(f"{name} {value}" for name, value in self.rows[-1].items()))
        self.write()

    def skip(self, part: str, reason: str) -> None:
        """Say that a part is left out, and why."""
        self.skipped.append({"part": part, "reason": reason})
        _say(f"  SKIPPED {part}: {reason}")
        self.write()

    def has_time(self, part: str, seconds: float) -> bool:
        """Tell whether there are so many seconds left. If not, the part is skipped."""
        left = self.seconds_left
        if left < seconds:
            self.skip(
                part, f"it takes about {seconds:.0f} s, and {max(0.0, left):.0f} s of the section's time are left"
            )
        return left >= seconds

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def finish(self) -> None:
        """Judge the section by its checks."""
        failed = [check["name"] for check in self.checks if not check["ok"]]
        if failed:
            self._end("failed", f"not reached: {', '.join(failed)}")
        elif self.checks:
            self._end("ok")
        else:
            self._end("skipped", "; ".join(f"{each['part']}: {each['reason']}" for each in self.skipped))

    def end_skipped(self, reason: str) -> None:
        self._end("skipped", reason)

    def end_with_error(self, error: BaseException) -> None:
        self.error = "".join(traceback.format_exception(error))
        self._end("error", f"{type(error).__name__}: {error}")

    def _end(self, status: str, reason: str = "") -> None:
        self.status, self.reason = status, reason
        self._seconds = time.monotonic() - self._began_at
        _say(f"  {status}, {self._seconds:.1f} s{': ' + reason if reason else ''}")
        self.write()

    def to_dict(self) -> dict[str, Any]:
        return {
            "section": self.name,
            "title": self.title,
            "status": self.status,
            "reason": self.reason,
            "seconds": round(self._seconds or time.monotonic() - self._began_at, 2),
            "checks": self.checks,
            "rows": self.rows,
            "skipped": self.skipped,
            "error": self.error,
        }

    def write(self) -> None:
        with atomic_write(self.path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")


def _as_plain(value: Any) -> Any:
    """Round numbers for reading. JSON has no NaN and no infinity: they become words."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
