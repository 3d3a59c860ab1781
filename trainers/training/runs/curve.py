"""The losses of a run as few points, however long it is. Reads loss.csv once, then only what was
added to it.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MAX_BINS = 2048
MAX_STEP = 10**9
_BLOCK_BYTES = 2**20
_TAIL_BYTES = 128
_COLUMNS = ("step", "loss", "average_loss", "learning_rate")


@dataclass(frozen=True)
class CurvePoints:
    """Columns of equal length. `step` is the last one of its point, `loss` the mean of the point's
    steps, `low` and `high` their range; the others are those of the last step, None if unknown.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    average: list[float | None] = field(default_factory=list)
    learning_rate: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    step: int
    loss: float
    average: float | None
    learning_rate: float | None


@dataclass
class _Bin:
    """Neighbouring steps."""

    step: int
    total: float
    count: int
    low: float
    high: float
    average: float | None
    learning_rate: float | None

    def absorb(self, later: "_Bin") -> None:
        self.step, self.average, self.learning_rate = later.step, later.average, later.learning_rate
        self.total += later.total
        self.count += later.count
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)


class LossCurve:
    """Neighbouring steps share a bin, and bins are joined in pairs when they become too many: the
    memory stays the same while the run grows.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._bins: dict[int, _Bin] = {}
        self._width = 1
        self._last_step = 0
        self._columns: dict[str, int] = {}
        self._file_id: tuple[int, int] | None = None
        self._offset = 0
        self._tail = b""
        self.num_unreadable = 0

    def refresh(self) -> None:
        """Read what was written since the last time. A file that has become another one, as after
        a resume, is read from its beginning.
        """
        try:
            with open(self._path, "rb") as stream:
                self._require_same_file(stream)
                for line in self._read_lines(stream):
                    self._add_line(line)
        except OSError:  # usually it is not there yet
            self._forget()

    def points(self, max_points: int) -> CurvePoints:
        """Return at most `max_points` points (at least 1)."""
        num_bins = max(self._bins, default=0) + 1
        bins = _join(self._bins, -(-num_bins // max(1, max_points)))
        points = CurvePoints()
        for each in bins.values():
            points.step.append(each.step)
            points.loss.append(_shorten(each.total / each.count))
            points.low.append(_shorten(each.low))
            points.high.append(_shorten(each.high))
            points.average.append(None if each.average is None else _shorten(each.average))
            points.learning_rate.append(each.learning_rate)
        return points

    @property
    def last_step(self) -> int:
        return self._last_step

    def _require_same_file(self, stream: BinaryIO) -> None:
        """Start again unless the bytes before the place where we stopped are still the same."""
        status = os.fstat(stream.fileno())
        file_id = (status.st_dev, status.st_ino)
        stream.seek(self._offset - len(self._tail))
        if file_id != self._file_id or stream.read(len(self._tail)) != self._tail:
            self._forget()
            self._file_id = file_id
            stream.seek(0)

    def _read_lines(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield complete lines: the writer may be in the middle of the last one."""
        rest = b""
        while block := stream.read(_BLOCK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > _BLOCK_BYTES:  # no line of ours: skip it instead of collecting it
                rest = rest[-_TAIL_BYTES:]
            yield from lines
        self._offset = stream.tell() - len(rest)
        start = max(0, self._offset - _TAIL_BYTES)
        stream.seek(start)
        self._tail = stream.read(self._offset - start)

    def _add_line(self, line: bytes) -> None:
        cells = line.decode("utf-8", "replace").strip().split(",")
        if not self._columns:
            self._columns = {name: index for index, name in enumerate(cells)}
            return
        row = self._parse_row(cells) if cells != [""] else None
        if row is not None:
            self._add_row(row)
        elif cells != [""]:
            self.num_unreadable += 1

    def _parse_row(self, cells: list[str]) -> _Row | None:
        """Return None for what is no row: cut off, or with a loss that is not finite."""
        step, loss, average, learning_rate = (self._parse_cell(cells, name) for name in _COLUMNS)
        if step is None or loss is None or not self._last_step < step <= MAX_STEP:
            return None
        return _Row(int(step), loss, average, learning_rate)

    def _parse_cell(self, cells: list[str], name: str) -> float | None:
        index = self._columns.get(name, len(cells))
        try:
            value = float(cells[index]) if index < len(cells) else math.nan
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def _add_row(self, row: _Row) -> None:
        self._last_step = row.step
        while (row.step - 1) // self._width >= MAX_BINS:
            self._bins = _join(self._bins, 2)
            self._width *= 2
        index = (row.step - 1) // self._width
        new = _Bin(row.step, row.loss, 1, row.loss, row.loss, row.average, row.learning_rate)
        if index in self._bins:
            self._bins[index].absorb(new)
        else:
            self._bins[index] = new


def _join(bins: dict[int, _Bin], factor: int) -> dict[int, _Bin]:
    """Return bins that are so many times as wide. Those that came in stay as they are."""
    joined: dict[int, _Bin] = {}
    for index, each in bins.items():
        if index // factor in joined:
            joined[index // factor].absorb(each)
        else:
            joined[index // factor] = _Bin(**vars(each))
    return joined


def _shorten(value: float) -> float:
    """Six digits are more than a chart shows, and half of the bytes."""
    return float(f"{value:.6g}")
