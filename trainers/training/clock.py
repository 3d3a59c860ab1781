"""Speed, remaining time and the average loss of a running training."""

import time
from collections import deque
from collections.abc import Sequence

from .events import StepDone

NUM_AVERAGED = 100


class StepClock:
    """Makes the event of each step. The clock starts when the object is made, after the steps whose
    losses are given.
    """

    def __init__(self, total_steps: int, losses: Sequence[float] = ()) -> None:
        self._total_steps = total_steps
        self._first_step = len(losses)
        self._started_at = time.monotonic()
        self._recent = deque(losses, maxlen=NUM_AVERAGED)

    def finish_step(self, step: int, epoch: int, loss: float, learning_rate: float, memory_bytes: int) -> StepDone:
        self._recent.append(loss)
        speed = (step - self._first_step) / max(time.monotonic() - self._started_at, 1e-9)
        return StepDone(
            step=step,
            total=self._total_steps,
            epoch=epoch,
            loss=loss,
            average_loss=sum(self._recent) / len(self._recent),
            learning_rate=learning_rate,
            steps_per_second=speed,
            eta_seconds=(self._total_steps - step) / speed,
            memory_bytes=memory_bytes,
        )
