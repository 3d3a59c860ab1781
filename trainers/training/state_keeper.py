"""Keeps a running training's state on the disk, and goes on from one."""

import time
from dataclasses import dataclass, field

from torch import Tensor

from ..critical_section import critical_section
from .adapters import AdaptedModel
from .ema import AdapterEma
from .events import Notice
from .host import Host
from .optimizer_step import OptimizerStep
from .resume.state_file import PackedState, TrainingState, pack_state
from .resume.state_ring import StateRing


@dataclass
class RunHistory:
    """What happened so far, in this process and in those that the run began in."""

    losses: list[float] = field(default_factory=list)
    has_learned: bool = False  # a step with a learning rate above 0 is finished
    validation: list[list[float]] = field(default_factory=list)  # step, loss, loss of the EMA (NaN: none)
    earlier_seconds: float = 0.0
    began_at: float = field(default_factory=time.monotonic)

    @property
    def num_steps(self) -> int:
        return len(self.losses)

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began_at


class StateKeeper:
    """Saves the state every few minutes, and when the run ends or stops."""

    def __init__(
        self,
        adapted: AdaptedModel,
        optimizer_step: OptimizerStep,
        ema: AdapterEma | None,
        history: RunHistory,
        ring: StateRing,
        host: Host,
        *,
        run: str = "",
    ) -> None:
        self._adapted = adapted
        self._optimizer_step = optimizer_step
        self._ema = ema
        self._history = history
        self._ring = ring
        self._host = host
        self._run = run  # the fingerprint of its identity
        self._can_pack = True

    def restore(self, state: TrainingState) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of other layers, another rank or another optimizer.
        """
        self._adapted.restore(state.adapters)
        self._optimizer_step.restore(state.optimizer, state.scaler, schedule_step=state.schedule_step)
        if self._ema:
            for name, average in self._name_averages().items():
                average.copy_((state.ema or state.adapters)[name])
        history = self._history
        history.losses[:] = state.losses
        history.has_learned = state.has_learned
        history.validation[:] = state.validation
        history.earlier_seconds = state.seconds

    def save_due(self) -> None:
        """Save the state if it is time. What cannot be written is reported and stops nothing."""
        if not (self._can_pack and self._ring.is_due()):
            return
        try:
            with critical_section():  # a thread that is half started cannot be waited for
                self._ring.start_writing(self._pack)
        except OSError as error:
            self._host.report(Notice(f"the state of the run could not be saved: {error}"))
        except TypeError as error:
            self._report_unkept(error)

    def save_now(self) -> bool:
        """Save the state and wait for it. Return whether the run can go on from it."""
        if not self._can_pack:
            return False
        try:
            self._ring.write(self._pack())
        except OSError as error:
            self._host.report(Notice(f"the state of the run could not be saved: {error}"))
            return False
        except TypeError as error:
            self._report_unkept(error)
            return False
        return True

    def remove_old(self) -> None:
        """After the end of a run: only a longer run can still use its state."""
        self._ring.keep_only_newest()

    def close(self) -> None:
        self._ring.close()

    def _report_unkept(self, error: TypeError) -> None:
        self._can_pack = False
        self._host.report(
            Notice(f"this optimizer's state cannot be saved ({error}), so a stopped run cannot go on exactly")
        )

    def _pack(self) -> PackedState:
        history = self._history
        optimizer, scaler = self._optimizer_step.state_dict()
        return pack_state(
            TrainingState(
                run=self._run,
                step=history.num_steps,
                losses=history.losses,
                has_learned=history.has_learned,
                adapters=self._adapted.name_parameters(),
                optimizer=optimizer,
                schedule_step=self._optimizer_step.schedule_step,
                scaler=scaler,
                ema=self._name_averages(),
                validation=history.validation,
                seconds=history.seconds,
            )
        )

    def _name_averages(self) -> dict[str, Tensor]:
        return self._adapted.name_matrices(self._ema.averages) if self._ema else {}
