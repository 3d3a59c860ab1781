"""Processes that may die: forked, so that torch is imported once for hundreds of them."""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.limits import TIME_LIMIT
from tests.reliability.toy_run import Journal


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it wrote into its journal."""

    exit_code: int  # negative: the signal
    lines: list[str]

    def list_numbers(self, word: str) -> list[int]:
        return [int(line.split()[1]) for line in self.lines if line.startswith(f"{word} ")]

    @property
    def last_step(self) -> int:
        return max(self.list_numbers("step"), default=0)

    @property
    def first_step(self) -> int:
        return min(self.list_numbers("step"), default=0)

    @property
    def error(self) -> str:
        return next((line.removeprefix("error ") for line in self.lines if line.startswith("error ")), "")


class Child:
    """Runs an action in a process of its own. Its temporary and home folders are those given."""

    def __init__(self, action: Callable[[Journal], object], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = folder / f"journal-{time.monotonic_ns()}.txt"
        self._status: int | None = None
        self.process = os.fork()
        if not self.process:
            _run(action, Journal(self._journal), folder)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._is_running():
            os.kill(self.process, number)

    def wait_for_lines(self, count: int) -> None:
        """Wait until the process has written so many lines, or has ended."""
        while self._is_running() and len(self._read_lines()) < count:
            time.sleep(0.002)

    def wait(self) -> Ended:
        deadline = time.monotonic() + TIME_LIMIT
        while self._is_running():
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.005)
        assert self._status is not None
        return Ended(os.waitstatus_to_exitcode(self._status), self._read_lines())

    def _is_running(self) -> bool:
        if self._status is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            self._status = status if process else None
        return self._status is None

    def _read_lines(self) -> list[str]:
        return self._journal.read_text().splitlines() if self._journal.exists() else []


def run(action: Callable[[Journal], object], folder: Path) -> Ended:
    return Child(action, folder).wait()


def _run(action: Callable[[Journal], object], journal: Journal, folder: Path) -> None:
    """The whole of the new process. It never returns into the code of the old one."""
    os.environ["HOME"] = str(folder / "home")
    tempfile.tempdir = str(folder / "temporary")
    code = 1
    try:
        action(journal)
        journal.add("done")
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        journal.add("error", f"{type(error).__name__}: {error}")
        if "LORA_TRAINER_TRACES" in os.environ:
            traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
