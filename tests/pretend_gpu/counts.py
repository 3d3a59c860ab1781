"""Counts what a block of code costs on the card: copies, waits, bytes."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import card

_OWN_FOLDER = str(Path(__file__).parent)
_WAITING = ("sync", "to_host")


@dataclass
class Counts:
    """`places` counts (kind, operation, place in our code). Kinds are "to_device" and "to_host",
    with "_async" from and into pinned memory without waiting, and "sync": a number or a size that
    the host asks for.
    """

    start_bytes: int
    places: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    copied_bytes: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0  # of all that is on the card, since the block began
    end_bytes: int = 0

    @property
    def copies(self) -> int:
        """Copies between main memory and the card, in both directions."""
        return self._count(lambda kind: kind != "sync")

    @property
    def waiting_copies(self) -> int:
        """Copies to the card from memory that is not pinned: the host waits for all work before."""
        return self._count(lambda kind: kind == "to_device")

    @property
    def syncs(self) -> int:
        """How often the host waited for a result of the card."""
        return self._count(lambda kind: kind in _WAITING)

    @property
    def added_bytes(self) -> int:
        """How much more is on the card than when the block began."""
        return self.end_bytes - self.start_bytes

    def list_syncs(self) -> list[str]:
        return self._list(lambda kind: kind in _WAITING)

    def list_copies(self) -> list[str]:
        return self._list(lambda kind: kind != "sync")

    def _count(self, is_wanted) -> int:
        return sum(count for (kind, _, _), count in self.places.items() if is_wanted(kind))

    def _list(self, is_wanted) -> list[str]:
        return [
            f"{count} x {kind} {operation} at {place}"
            for (kind, operation, place), count in self.places.most_common()
            if is_wanted(kind)
        ]

    def add(self, kind: str, operation: str, num_bytes: int) -> None:
        self.places[kind, operation, _find_place()] += 1
        self.copied_bytes[kind] += num_bytes


@contextmanager
def counting() -> Iterator[Counts]:
    """Count inside of the block. Blocks cannot be nested: there is one peak."""
    card.reset_peak()
    counts = Counts(start_bytes=card.live_bytes())
    card.listen(counts.add)
    try:
        yield counts
    finally:
        card.listen(None)
        counts.peak_bytes, counts.end_bytes = card.peak_bytes(), card.live_bytes()


def _find_place() -> str:
    """Return the innermost line of code that is in no package: ours, or a test's. A backward pass
    runs in a thread of torch's, where there may be none.
    """
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not (file.startswith((_OWN_FOLDER + "/c", "<")) or "site-packages" in file or "/lib/python" in file):
            return f"{'/'.join(file.split('/')[-3:])}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "the backward pass"
