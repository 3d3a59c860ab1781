"""Watches a training on the pretended card: what a step costs, and what is on the card after it."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.pretend_gpu import card
from tests.pretend_gpu.counts import Counts, counting
from trainers.training import loop as training_loop
from trainers.training.device import DeviceMemory
from trainers.training.events import Event, Interrupted, StageStarted, StepDone
from trainers.training.loop import TrainingLoop

CARD = torch.device("cuda", 0)


@dataclass
class Step:
    """The cost of one step, from the report of the step before it to its own."""

    number: int
    copies: int
    waiting_copies: int
    syncs: int
    live_bytes: int
    peak_bytes: int
    places: list[str]


class WatchingHost(DeviceMemory):
    """A host on the card that records events, and after each step what it has cost."""

    def __init__(self, *, cancel_at_step: int | None = None) -> None:
        super().__init__(CARD)
        self._cancel_at_step = cancel_at_step
        self.events: list[Event] = []
        self.steps: list[Step] = []
        self.loop: TrainingLoop | None = None
        self.counts: Counts | None = None
        self.live_bytes_at: dict[str, int] = {}  # when a stage began
        self._seen = (0, 0, 0)

    def report(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StageStarted):
            self.live_bytes_at[event.stage] = card.live_bytes()
            self._look()
        if isinstance(event, StepDone):
            self._add_step(event)

    def _look(self) -> tuple[int, ...]:
        counts = self.counts
        before, self._seen = self._seen, (counts.copies, counts.waiting_copies, counts.syncs)
        return tuple(now - then for now, then in zip(self._seen, before, strict=True))

    def _add_step(self, event: StepDone) -> None:
        copies, waiting_copies, syncs = self._look()
        places = self.counts.list_syncs() + self.counts.list_copies()
        self.counts.places.clear()
        self._seen = (0, 0, 0)
        self.steps.append(Step(event.step, copies, waiting_copies, syncs, card.live_bytes(), card.peak_bytes(), places))
        card.reset_peak()

    def take_request(self) -> None:
        return None

    def check_interrupted(self) -> None:
        if self._cancel_at_step is not None and len(self.steps) >= self._cancel_at_step:
            raise Interrupted

    def select(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def model(self) -> Any:
        """The PreparedModel of the run."""
        return self.loop._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.loop._optimizer_step._optimizer

    def forget(self) -> None:
        """Let go of the run, so that its memory can be freed."""
        self.loop = None


@contextmanager
def watching(host: WatchingHost) -> Iterator[WatchingHost]:
    """Inside of the block the host sees the loop of the run, and what it costs."""

    class WatchedLoop(TrainingLoop):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            host.loop = self
            super().__init__(*args, **kwargs)

    original, training_loop.TrainingLoop = training_loop.TrainingLoop, WatchedLoop
    try:
        with counting() as host.counts:
            yield host
    finally:
        training_loop.TrainingLoop = original


def list_state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """List the tensors of the optimizer's state that are larger than a number."""
    return [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.dim()
    ]


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of the tensors' storages on the card, each once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors if tensor.is_cuda
    }
    return sum(storages.values())


def free() -> int:
    """Collect garbage, and return the bytes that are left on the card."""
    gc.collect()
    return card.live_bytes()
