"""The training loop for every model family: steps, accumulation, processes, interruption."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ..files.tensor_cache import TensorCache
from .clock import StepClock
from .distributed import World
from .events import Notice, StageStarted
from .family import ModelFamily, PreparedModel
from .generators import seed_globals
from .host import Host
from .optimizer_step import OptimizerStep
from .optimizers import require_step
from .plan import TrainingPlan
from .run_folder import RunFolder
from .run_log import LoggedHost
from .run_writer import RunWriter
from .schedule import Step, iterate_steps
from .trained_lora import TrainedLora


def train_lora(
    family: ModelFamily,
    plan: TrainingPlan,
    host: Host,
    *,
    run_folder: RunFolder,
    cache: TensorCache,
    world: World | None = None,
) -> TrainedLora:
    """Train as planned, save the LoRA and return it.

    Raises:
        ValueError: a setting, the optimizer or the base model cannot be used; nothing was written.
        Interrupted: the host cancelled.
        NonFiniteLoss: the loss became NaN or infinite.

    Whatever ends a run early, a checkpoint of its last step is kept.
    """
    world = world or World()
    assert plan.schedule.num_processes == world.size, "the plan is for a different number of processes"
    run_folder.require_writable()
    config = plan.settings.training
    require_step(config.optimizer, host.device, weight_decay=config.weight_decay, extra_args=config.optimizer_args)
    host = LoggedHost(host)
    for notice in plan.texts.list_notices():
        host.report(Notice(notice))
    host.report(StageStarted("loading"))
    model = family.prepare(plan, host, cache=cache, world=world)
    return TrainingLoop(model, plan, host, run_folder, world).run()


class TrainingLoop:
    """One run, from its first step to the saved LoRA."""

    def __init__(
        self, model: PreparedModel, plan: TrainingPlan, host: LoggedHost, run_folder: RunFolder, world: World
    ) -> None:
        self._model = model
        self._plan = plan
        self._config = plan.settings.training
        self._host = host
        self._world = world
        self._optimizer_step = OptimizerStep(
            model.adapted.groups,
            self._config,
            total_steps=plan.schedule.total_steps,
            precision=model.precision,
            device=host.device,
        )
        self._writer = RunWriter(model, plan, host, run_folder, world)

    def run(self) -> TrainedLora:
        with self._writer.open():
            self._host.report(StageStarted("training", self._plan.schedule.total_steps))
            self._host.reset_peak_memory()
            try:
                self._run_steps()
            except BaseException:  # Ctrl-C, SIGTERM or a bug: whatever it is, the work is not lost
                self._writer.save_last_step()
                raise
            return self._writer.save_final()

    def _run_steps(self) -> None:
        self._writer.draw_due_samples(0)
        clock = StepClock(self._plan.schedule.total_steps)
        for step in iterate_steps(self._plan.crops.items, self._config, self._plan.schedule):
            self._host.check_interrupted()
            learning_rate = self._optimizer_step.learning_rate
            loss = self._train_step(step)
            event = clock.finish_step(step.number, step.epoch, loss, learning_rate, self._host.peak_memory_bytes())
            self._host.report(event)
            self._writer.add_loss(event)
            self._writer.save_due_checkpoints(step.number, step.epoch)
            self._writer.draw_due_samples(step.number)

    def _train_step(self, step: Step) -> float:
        """Train one optimizer step. The loss is the mean over all its samples, in whatever
        micro-batch or process they are.
        """
        loss = torch.zeros((), device=self._host.device)
        with self._seed_dropout(step.number):
            for items in step.micro_batches:
                own_items = self._world.share(items, self._config.train_batch_size)
                for losses in self._model.loss_terms(own_items, step.number) if own_items else ():
                    own_loss = losses.sum() / step.num_samples
                    self._optimizer_step.backward(own_loss)
                    loss += own_loss.detach()
        summed_loss = self._world.sum_gradients(self._model.adapted.parameters, loss)
        return self._optimizer_step.update(step.number, summed_loss)

    def _seed_dropout(self, step: int) -> AbstractContextManager[None]:
        """Seed the global generators, which LoRA dropout draws from, for this step only."""
        if not self._config.lora_dropout:
            return nullcontext()
        return seed_globals(self._host.device, self._config.seed, "lora_dropout", step, self._world.rank)
