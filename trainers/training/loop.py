"""The training loop for every model family: steps, accumulation, processes, interruption."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ..critical_section import critical_section
from ..files.tensor_cache import TensorCache
from .clock import StepClock
from .device import is_out_of_memory, resolve_precision
from .distributed import World
from .ema import AdapterEma
from .events import Notice, Paused, Request, StageStarted
from .family import ModelFamily, PreparedModel
from .finished_run import load_finished
from .generators import seed_globals
from .host import Host
from .memory_steps import MemorySteps
from .optimizer_step import OptimizerStep
from .optimizers import require_step
from .plan import TrainingPlan
from .resume.choose_run import AUTO, NEW, FinishedRun, StartingPoint, choose_run, explain_new_run, is_known
from .resume.identity import RunIdentity
from .resume.state_ring import StateRing
from .run_folder import RunFolder
from .run_identity import identify_plan, identify_run
from .run_log import LoggedHost
from .run_writer import RunWriter
from .schedule import Step, iterate_steps
from .state_keeper import RunHistory, StateKeeper
from .trained_lora import TrainedLora
from .validation_plan import ValidationPlan
from .validator import Validator

STEPS_BETWEEN_AGREEMENTS = 10  # of several processes, on what the user asked for


def train_lora(
    family: ModelFamily,
    plan: TrainingPlan,
    host: Host,
    *,
    run_folder: RunFolder,
    cache: TensorCache,
    world: World | None = None,
    resume: str = AUTO,
) -> TrainedLora:
    """Train as planned, save the LoRA and return it.

    A run of the same settings, images and base model that is finished is loaded; one that was
    stopped goes on; a shorter one is extended. `resume` is "auto" (this), "new" (none of it) or the
    name of a run to go on with.

    Raises:
        ValueError: a setting, the optimizer or the base model cannot be used; nothing was written.
        RunInUse: another process trains the same.
        Interrupted: the host cancelled; Paused: the user paused.
        NonFiniteLoss: the loss became NaN or infinite.

    Whatever ends a run early, its last step is kept, and the same request goes on from it.
    """
    world = world or World()
    assert plan.schedule.num_processes == world.size, "the plan is for a different number of processes"
    run_folder.require_writable()
    config = plan.settings.training
    require_step(config.optimizer, host.device, weight_decay=config.weight_decay, extra_args=config.optimizer_args)
    host = LoggedHost(host)
    for notice in plan.list_notices():
        host.report(Notice(notice))
    _require_name(run_folder, plan, resume)
    host.report(StageStarted("loading"))
    identity = _identify(family, plan, host, world)
    found = world.ask_main(
        lambda: choose_run(run_folder.runs_folder, identity, resume, lora=run_folder.final_path, warn=host.warn)
    )
    if isinstance(found, FinishedRun):
        host.report(Notice(f"{found.folder.name} has trained this already: its LoRA is loaded"))
        return load_finished(found, run_folder, is_main=world.is_main)
    _take_folder(run_folder, found, identity, host)
    model = family.prepare(plan, host, cache=cache, world=world)
    return TrainingLoop(model, plan, host, run_folder, world, identity=identity, start=found).run()


def _require_name(run_folder: RunFolder, plan: TrainingPlan, resume: str) -> None:
    """Check early that the name of the LoRA is free, unless a run may be found that has it."""
    if resume == NEW or not is_known(run_folder.runs_folder, identify_plan(plan)):
        run_folder.require_free_name()


def _identify(family: ModelFamily, plan: TrainingPlan, host: LoggedHost, world: World) -> RunIdentity:
    return identify_run(
        plan,
        family.identify(plan, host),
        precision=resolve_precision(plan.settings.training.mixed_precision, host.device),
        device_type=host.device.type,
        num_processes=world.size,
    )


def _take_folder(run_folder: RunFolder, start: StartingPoint | None, identity: RunIdentity, host: LoggedHost) -> None:
    if start is None:
        run_folder.require_free_name()
        reason = explain_new_run(run_folder.runs_folder, identity, run_folder.name)
        if reason:
            host.report(Notice(reason))
    elif start.in_place:
        run_folder.reopen(start.folder)


class TrainingLoop:
    """One run, from its first step, or from the one that it goes on with, to the saved LoRA."""

    def __init__(
        self,
        model: PreparedModel,
        plan: TrainingPlan,
        host: LoggedHost,
        run_folder: RunFolder,
        world: World,
        *,
        identity: RunIdentity | None = None,
        start: StartingPoint | None = None,
    ) -> None:
        self._model = model
        self._plan = plan
        self._config = config = plan.settings.training
        self._host = host
        self._folder = run_folder
        self._world = world
        self._optimizer_step = OptimizerStep(
            model.adapted.groups,
            config,
            total_steps=plan.schedule.total_steps,
            precision=model.precision,
        )
        weights = [group.weights for group in model.adapted.groups]
        self._ema = AdapterEma(weights, config.ema_decay) if config.ema_decay else None
        self._history = RunHistory()
        interval = 60 * config.save_state_every_n_minutes if world.is_main else 0.0
        self._keeper = StateKeeper(
            model.adapted,
            self._optimizer_step,
            self._ema,
            self._history,
            StateRing(run_folder.states, interval=interval),
            host,
            run=identity.fingerprint if identity else "",
        )
        if start:
            self._keeper.restore(start.state)
        self._writer = RunWriter(
            model,
            plan,
            host,
            run_folder,
            world,
            history=self._history,
            averaged=self._optimizer_step.averaged,
            ema=self._ema,
            identity=identity,
            start=start,
        )
        measured = plan.validation if world.is_main else ValidationPlan()  # the others wait
        self._validator = Validator(
            model, measured, host, self._history, self._ema, averaged=self._optimizer_step.averaged
        )
        self._memory_steps = MemorySteps(model, host) if config.step_down_on_oom and world.size == 1 else None
        self._is_whole = True  # no step is half done
        self._asked_to_finish = False
        self._reason = ""  # of an early end that nobody asked for

    def run(self) -> TrainedLora:
        with self._writer.open():
            self._host.report(StageStarted("training", self._plan.schedule.total_steps))
            self._host.reset_peak_memory()
            try:
                self._run_steps()
                return self._finish()
            except BaseException:  # Ctrl-C, SIGTERM or a bug: whatever it is, the work is not lost
                self._keep_last_step()
                raise
            finally:
                self._keeper.close()

    def _keep_last_step(self) -> None:
        can_go_on = self._world.is_main and self._is_whole and self._history.has_learned and self._keeper.save_now()
        self._writer.save_last_step(can_go_on=can_go_on)

    def _finish(self) -> TrainedLora:
        is_early = self._history.num_steps < self._plan.schedule.total_steps
        if self._world.is_main:  # before the LoRA: a kill while it is written costs no step
            self._keeper.save_now()
        trained = self._writer.save_final(finished_early=is_early)
        self._writer.write_result(trained, reason=self._reason)
        self._keeper.remove_old()
        return trained

    def _run_steps(self) -> None:
        done, schedule = self._history.num_steps, self._plan.schedule
        self._writer.draw_due_samples(done)
        if self._history.validation and self._world.is_main:  # a killed run may have measured more
            self._writer.write_validation(self._validator.best)
        if self._validate(done):
            return
        clock = StepClock(schedule.total_steps, self._history.losses)
        for step in iterate_steps(self._plan.crops.items, self._config, schedule, done=done):
            self._host.check_interrupted()
            if self._is_asked_to_finish(step.number):
                return
            self._run_step(step, clock)
            self._writer.save_due_checkpoints(step.number, step.epoch)
            is_finished = self._validate(step.number)
            self._keeper.save_due()
            self._writer.draw_due_samples(step.number)
            if is_finished:
                return

    def _validate(self, step: int) -> bool:
        """Measure the progress if it is due. Return whether early_stop ends the run."""
        validator, validation = self._validator, self._plan.validation
        if validator.measure_due(step):
            self._writer.write_validation(validator.best)
        if not (self._config.early_stop and validation.is_due(step)) or step == validation.total_steps:
            return False
        if self._world.ask_main(validator.is_finished):
            self._reason = "early stop"
            self._host.report(Notice(f"early_stop: nothing more is learned, so the run ends at step {step}"))
        return bool(self._reason)

    def _is_asked_to_finish(self, step: int) -> bool:
        """Obey what the user asked for since the last step.

        Raises:
            Paused: the user asked for a pause.
        """
        request = self._take_request(step)
        if request == "pause":
            raise Paused(f"Start the same again to go on at step {self._history.num_steps}")
        if request == "finish":
            self._asked_to_finish = True
            if not self._history.has_learned:
                self._host.report(Notice("nothing is learned yet: the run finishes after its first learned step"))
        return self._asked_to_finish and self._history.has_learned

    def _take_request(self, step: int) -> Request | None:
        """Several processes ask now and then, as they must all do the same."""
        if self._world.size > 1 and step % STEPS_BETWEEN_AGREEMENTS:
            return None
        return self._world.ask_main(lambda: self._host.take_request() or self._folder.take_request())

    def _run_step(self, step: Step, clock: StepClock) -> None:
        learning_rate = self._optimizer_step.learning_rate
        loss = self._compute_gradients(step)
        # a signal waits for the end of the update: half of one could not be gone on from
        with critical_section():
            self._is_whole = False
            loss_value = self._optimizer_step.update(step.number, loss)
            if self._config.scale_weight_norms:
                self._model.adapted.limit_norms(self._config.scale_weight_norms)
            if self._ema:
                self._ema.update(step.number)
            event = clock.finish_step(
                step.number, step.epoch, loss_value, learning_rate, self._host.peak_memory_bytes()
            )
            self._writer.add_step(event)
            self._is_whole = True
        self._host.report(event)

    def _compute_gradients(self, step: Step) -> torch.Tensor:
        """Compute the gradients of one optimizer step, and return the mean loss of all its samples,
        in whatever micro-batch or process they are. A sample weighs the same in every step: in one
        that is not full too. With step_down_on_oom a step that does not fit
        is tried again with less.
        """
        while True:
            try:
                return self._accumulate(step)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if self._memory_steps is None or not is_out_of_memory(error):
                    raise
                out_of_memory = error.with_traceback(None)  # it would keep the step's tensors alive
            self._optimizer_step.discard_gradients()
            self._memory_steps.step_down(out_of_memory)

    def _accumulate(self, step: Step) -> torch.Tensor:
        loss = torch.zeros((), device=self._host.device)
        share = step.num_samples / self._plan.schedule.samples_per_step
        with self._seed_dropout(step.number):
            for items in step.micro_batches:
                own_items = self._world.share(items, self._config.train_batch_size)
                for part in self._memory_steps.split(own_items) if self._memory_steps else (own_items,):
                    for losses in self._model.loss_terms(part, step.number) if part else ():
                        own_loss = losses.sum() / step.num_samples
                        self._optimizer_step.backward(own_loss * share)
                        loss += own_loss.detach()
        return self._world.sum_gradients(self._model.adapted.flat_weights, loss)

    def _seed_dropout(self, step: int) -> AbstractContextManager[None]:
        """Seed the global generators, which dropout of adapters draws from, for this step only."""
        config = self._config
        if not (config.lora_dropout or config.rank_dropout or config.module_dropout):
            return nullcontext()
        return seed_globals(self._host.device, self._config.seed, "lora_dropout", step, self._world.rank)
