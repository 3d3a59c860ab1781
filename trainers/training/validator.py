"""Measures the progress of a run on its fixed draws, when that is due."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from .best_step import BestStep, find_best, should_stop
from .ema import AdapterEma
from .events import Notice, Validated
from .family import PreparedModel
from .host import Host
from .state_keeper import RunHistory
from .validation_plan import ValidationPlan

NO_EMA = float("nan")


class Validator:
    """Adds rows to the history: step, loss, loss of the EMA (NaN: none), and the number of the
    draws.

    The loss is the geometric mean of the draws' mean squared errors, so that every noise level
    counts alike: at low noise the errors are a hundred times those at high noise.
    """

    def __init__(
        self,
        model: PreparedModel,
        plan: ValidationPlan,
        host: Host,
        history: RunHistory,
        ema: AdapterEma | None,
        averaged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._model = model
        self._plan = plan
        self._host = host
        self._rows = history.validation
        self._ema = ema
        self._averaged = averaged
        self._drop_other_draws()

    def _drop_other_draws(self) -> None:
        """A run that goes on with other images, or a longer one, has other draws."""
        own = [row for row in self._rows if int(row[3]) == self._plan.number]
        if self._plan.draws and len(own) < len(self._rows):
            self._host.report(Notice("the validation begins again: its images or their number have changed"))
            self._rows[:] = own

    def measure_due(self, step: int) -> bool:
        """Measure the model after `step` steps, unless that is done, or not due. A curve begins
        where its run does.
        """
        is_begun = bool(self._rows)
        if not self._plan.draws or (is_begun and (step <= self._rows[-1][0] or not self._plan.is_due(step))):
            return False
        loss = self._measure()
        ema_loss = NO_EMA if self._ema is None else loss if step == 0 else self._measure_ema(self._ema)
        self._rows.append([float(step), loss, ema_loss, float(self._plan.number)])
        self._host.report(
            Validated(step, loss, None if self._ema is None else ema_loss, self._plan.kind, self._rows[0][1])
        )
        return True

    @property
    def best(self) -> BestStep | None:
        """The best step so far."""
        return find_best(self._rows, self._plan.kind)

    def is_finished(self) -> bool:
        """Tell whether the run learns nothing more."""
        return should_stop(self._rows, self._plan.kind, total_steps=self._plan.total_steps)

    def _measure_ema(self, ema: AdapterEma) -> float:
        with ema.in_place():
            return self._measure()

    def _measure(self) -> float:
        with self._averaged():
            return geometric_mean(self._model.validation_losses(self._plan.draws))


def geometric_mean(losses: Tensor) -> float:
    return float(losses.double().log().mean().exp())
