"""A network with its long runs of equal blocks cut short, and what the blocks that are missing
would have kept: so that a step can be counted in a second.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from ...training.live_memory import LiveMemory

NUM_KEPT = 2  # of a run of equal blocks: the second tells what each further one keeps


@dataclass
class Run:
    """Equal blocks of a list, one after the other. `kept` are those that are left of them."""

    kept: list[nn.Module]
    num_blocks: int


def shorten(network: nn.Module) -> list[Run]:
    """Take blocks out of the network's runs of equal ones, and return what is left."""
    runs: list[Run] = []
    for name, blocks in list(network.named_children()):
        if not isinstance(blocks, nn.ModuleList):
            continue
        of_list = [Run(run[:NUM_KEPT], len(run)) for run in _group_equal(blocks)]
        setattr(network, name, nn.ModuleList(block for run in of_list for block in run.kept))
        runs += of_list
    return runs


def _group_equal(blocks: nn.ModuleList) -> Iterator[list[nn.Module]]:
    for _, run in groupby(blocks, key=_describe):
        yield list(run)


def _describe(block: nn.Module) -> tuple[Any, ...]:
    layers = tuple((path, type(module)) for path, module in block.named_modules())
    return layers, tuple((path, weight.shape, weight.dtype) for path, weight in block.named_parameters())


class BlockTimeline:
    """Follows a step through the blocks that are left, and finds the peak with all of them.

    Between two entries into a block, all blocks of the runs before it keep what the backward pass
    needs; of its own run too, if it is the last one. That holds in the forward pass and, where
    blocks run again in the backward pass, there as well.
    """

    def __init__(self, runs: list[Run], memory: LiveMemory) -> None:
        self._memory = memory
        self._order: list[Run] = []  # in the order in which they are first entered
        self._first_live: dict[tuple[int, int], int] = {}  # (run, block): bytes at its first entry
        self._segments: list[tuple[tuple[int, int] | None, int]] = []  # entered block, peak until the next entry
        self._now: tuple[int, int] | None = None
        for run in runs:
            for position, block in enumerate(run.kept):
                block.forward = _Entered(self, run, position, block.forward)  # type: ignore[assignment]

    def enter(self, run: Run, position: int) -> None:
        self._close()
        if not any(run is known for known in self._order):
            self._order.append(run)
        number = next(index for index, known in enumerate(self._order) if known is run)
        self._now = (number, position)
        self._first_live.setdefault(self._now, self._memory.live_bytes)

    def find_peak(self) -> int:
        """Return the peak in bytes that the step has with all blocks."""
        self._close()
        return max(peak + self._count_missing(where) for where, peak in self._segments)

    def count_saved(self) -> int:
        """Count what all blocks of the runs keep for the backward pass."""
        return sum(
            run.num_blocks * (self._first_live[number, 1] - self._first_live[number, 0])
            for number, run in enumerate(self._order)
            if (number, 1) in self._first_live
        )

    def _close(self) -> None:
        self._segments.append((self._now, self._memory.take_peak()))

    def _count_missing(self, where: tuple[int, int] | None) -> int:
        if where is None:
            return 0
        number, position = where
        full = self._order[: number + 1] if position == len(self._order[number].kept) - 1 else self._order[:number]
        return sum(self._count_missing_of(index) for index, _ in enumerate(full))

    def _count_missing_of(self, number: int) -> int:
        run = self._order[number]
        num_missing = run.num_blocks - len(run.kept)
        if not num_missing:
            return 0
        return num_missing * (self._first_live[number, 1] - self._first_live[number, 0])


class _Entered:
    """A block's forward that tells the timeline when it begins."""

    def __init__(self, timeline: BlockTimeline, run: Run, position: int, forward: Callable[..., Any]) -> None:
        self._timeline = timeline
        self._run = run
        self._position = position
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._timeline.enter(self._run, self._position)
        return self._forward(*args, **kwargs)
