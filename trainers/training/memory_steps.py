"""What a run can do when memory runs out, without training anything else."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from ..wording import pluralize
from .events import Notice
from .family import PreparedModel
from .host import Host

T = TypeVar("T")


class MemorySteps:
    """Steps down from one setting to the next that needs less memory: first gradient
    checkpointing, then half the images per forward pass, and half again, then weights in main
    memory. Each gives the same gradients, up to rounding.
    """

    def __init__(self, model: PreparedModel, host: Host) -> None:
        self._model = model
        self._host = host
        self._num_parts = 1
        self._largest = 1  # images in a forward pass so far

    def split(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yield the images of a micro-batch in as many parts as memory wants."""
        self._largest = max(self._largest, len(items))
        size = max(1, -(-len(items) // self._num_parts))
        for start in range(0, len(items), size):
            yield items[start : start + size]

    def step_down(self, error: RuntimeError) -> None:
        """Take the next step, and say so.

        Raises:
            RuntimeError: the given error; there is no next step.
        """
        self._host.release_memory()
        if self._model.enable_gradient_checkpointing():
            what = "gradient_checkpointing is on from now on (slower)"
        elif self._num_parts < self._largest:
            self._num_parts *= 2
            what = f"each batch is computed in {self._num_parts} parts from now on"
        elif num_streamed := self._model.stream_more_weights():
            self._host.release_memory()
            what = f"the weights of {pluralize(num_streamed, 'block')} stay in main memory from now on (slower)"
        else:
            raise error
        self._host.report(Notice(f"memory ran out: {what}. The result is the same"))
