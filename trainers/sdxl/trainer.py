"""The SDXL LoRA trainer: the loop, its step, checkpoints and the final file."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import as_dict
from ..dataset.bucket_config import BucketConfig
from ..dataset.caption_variants import CaptionConfig
from ..dataset.crop_plan import TrainingItem, plan_crops
from ..dataset.dataset import Dataset
from ..dataset.epochs import epoch_batches
from ..files.names import free_path
from ..files.tensor_cache import TensorCache
from ..lora.file import Verification, save_lora, to_kohya, verify_lora
from ..training.distributed import World
from ..training.events import CheckpointSaved, Interrupted, Notice, SamplesDrawn, StageStarted, StepDone, TrainedLora
from ..training.host import Host
from ..training.run_folder import LossLog, RunFolder
from .config import SDXLConfig
from .metadata import training_metadata
from .model.sdxl_model import SDXLModel
from .objective import NUM_TIMESTEPS, size_ids
from .prepare import COMPUTE_DTYPES, Run, prepare_run
from .randomness import ItemDraw, derived_seed, draw_item
from .samples import TrainingSamples
from .step import Batch, predict, prior_losses, weighted_losses
from .texts import TrainingTexts

SAVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient became NaN or infinite."""


class SDXLTrainer:
    """Trains a LoRA on an SDXL model; see `train`.

    `load_model` is called once, when the dataset is known to be good: it reads a file, or borrows
    what the host has loaded.
    """

    def __init__(
        self,
        config: SDXLConfig,
        buckets: BucketConfig,
        load_model: Callable[[], SDXLModel],
        *,
        run_folder: RunFolder,
        cache: TensorCache,
        world: World | None = None,
        captions: CaptionConfig | None = None,
    ) -> None:
        self.config = config
        self.buckets = buckets
        self.captions = captions or CaptionConfig()
        self._load_model = load_model
        self._run_folder = run_folder
        self._cache = cache
        self._world = world or World()

    def train(self, dataset: Dataset, host: Host) -> TrainedLora:
        """Train on the dataset and save the LoRA.

        Raises:
            ValueError: a setting, the dataset or the base model cannot be used; nothing was
                written.
            Interrupted: the host cancelled; a checkpoint of the last step is kept.
            NonFiniteLoss: the loss became NaN or infinite; a checkpoint of the last good step is
                kept.
        """
        plan = plan_crops(dataset, self.buckets, seed=self.config.seed)
        texts = TrainingTexts(dataset, plan.items, self.config, self.captions)
        if self.config.class_prompt and not self.config.prior_loss_weight:
            host.report(Notice("class_prompt is not used: prior_loss_weight is 0"))
        if kept := texts.kept():
            host.report(Notice(_what_is_kept(kept)))
        host.report(StageStarted("loading"))
        run = prepare_run(
            self.config,
            plan,
            texts,
            self._load_model(),
            host,
            cache=self._cache,
            random_flip=self.buckets.random_flip,
            world=self._world,
        )
        return TrainingLoop(self.config, self.buckets, dataset, run, host, self._run_folder, self._world).train()


class TrainingLoop:
    """One run from its first step to its file."""

    def __init__(
        self,
        config: SDXLConfig,
        buckets: BucketConfig,
        dataset: Dataset,
        run: Run,
        host: Host,
        run_folder: RunFolder,
        world: World,
    ) -> None:
        self._config = config
        self._buckets = buckets
        self._dataset = dataset
        self._run = run
        self._host = host
        self._folder = run_folder
        self._world = world
        self._losses: list[float] = []
        self._checkpoints: list[Path] = []
        self._started_at = time.time()

    def train(self) -> TrainedLora:
        if self._world.is_main:
            self._folder.create(self._manifest())
            self._folder.write_text("dataset.txt", self._run.plan.report.text())
        self._host.report(StageStarted("training", self._run.total_steps))
        self._host.reset_peak_memory()
        with self._loss_log() as loss_log:
            try:
                self._run_steps(loss_log)
            except (Interrupted, NonFiniteLoss, torch.OutOfMemoryError):
                self._save_checkpoint(self._folder.checkpoint_path(step=len(self._losses)))
                raise
            finally:
                if self._losses and self._world.is_main:
                    self._folder.write_loss_plot(self._losses)
        return self._save_final()

    def _run_steps(self, loss_log: LossLog | None) -> None:
        self._draw_samples(0)
        clock = StepClock(self._run.total_steps)
        for step, epoch, micro_batches in self._steps():
            self._host.check_interrupted()
            learning_rate = self._run.learning_rate
            self._losses.append(self._train_step(step, micro_batches))
            event = clock.step_done(step, epoch, self._losses[-1], learning_rate, self._host.peak_memory_bytes())
            self._host.report(event)
            if loss_log is not None:
                loss_log.add(event)
            for path in self._due_checkpoints(step, epoch):
                self._save_checkpoint(path)
            self._draw_samples(step)

    def _steps(self) -> Iterator[tuple[int, int, list[list[TrainingItem]]]]:
        """(step, epoch, micro-batches), counted from 1. Accumulation does not cross epochs: the
        last step of one may be smaller.
        """
        config, group_size = self._config, self._config.gradient_accumulation_steps
        step = epoch = 0
        while True:
            epoch += 1
            batches = epoch_batches(
                self._run.plan.items,
                batch_size=config.train_batch_size * self._world.size,
                seed=config.seed,
                epoch=epoch,
            )
            for start in range(0, len(batches), group_size):
                if step == self._run.total_steps:
                    return
                step += 1
                yield step, epoch, batches[start : start + group_size]

    def _train_step(self, step: int, micro_batches: list[list[TrainingItem]]) -> float:
        """One optimizer step. The loss is the mean over all samples of the step, whatever
        micro-batch or process they are in.
        """
        run, device = self._run, self._host.device
        num_samples = sum(map(len, micro_batches))
        loss = torch.zeros((), device=device)
        with self._dropout_seed(step):
            for items in micro_batches:
                own_items = self._world.share(items, self._config.train_batch_size)
                for losses in self._loss_terms(own_items, step) if own_items else ():
                    own_loss = losses.sum() / num_samples
                    run.scaler.scale(own_loss).backward()
                    loss += own_loss.detach()
        return self._update(step, self._world.sum_gradients(run.adapted.parameters, loss))

    def _loss_terms(self, items: Sequence[TrainingItem], step: int) -> Iterator[Tensor]:
        """Losses [B] to be added up. Each one's backward pass comes before the next is computed:
        only one has its activations in memory.
        """
        run, draws = self._run, [self._draw(item, step) for item in items]
        with self._autocast():
            batch = self._make_batch(items, draws)
            losses = weighted_losses(run.model.unet, batch, run.objective)
        yield losses
        if self._config.prior_loss_weight:
            class_prompts = [run.texts.class_prompt(item, draw) for item, draw in zip(items, draws, strict=True)]
            with self._autocast():
                losses = self._prior_losses(batch, class_prompts)
            yield self._config.prior_loss_weight * losses

    def _prior_losses(self, batch: Batch, class_prompts: list[str]) -> Tensor:
        """With the class prompts in place of the captions: what the model predicts against what it
        predicts without its adapters.
        """
        run = self._run
        with run.adapted.switched_off():
            base_pred = predict(
                run.model.unet, self._with_texts(batch, class_prompts), run.objective.alphas_cumprod[batch.timesteps]
            )
        return prior_losses(run.model.unet, self._with_texts(batch, class_prompts), base_pred, run.objective)

    def _autocast(self) -> torch.autocast:
        precision = self._run.precision
        return torch.autocast(self._host.device.type, COMPUTE_DTYPES[precision], enabled=precision != "no")

    def _update(self, step: int, loss: Tensor) -> float:
        """Unscale, clip, stop if not finite, and step optimizer and schedule."""
        run = self._run
        run.scaler.unscale_(run.optimizer)
        gradient_norm = nn.utils.clip_grad_norm_(run.adapted.parameters, self._config.max_grad_norm or math.inf)
        loss_value, norm_value = torch.stack(
            [loss, gradient_norm]
        ).tolist()  # the step's one synchronisation with the device
        scale = run.scaler.get_scale()
        _require_finite(step, loss_value, norm_value, precision=run.precision, scale=scale)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if run.scaler.get_scale() >= scale:  # an fp16 overflow skips the optimizer, and so the schedule too
            run.lr_scheduler.step()
        run.optimizer.zero_grad(set_to_none=True)
        return loss_value

    @contextmanager
    def _dropout_seed(self, step: int) -> Iterator[None]:
        """LoRA dropout draws from the global generators: seed them for this step, and give them
        back as they were.
        """
        if not self._config.lora_dropout:
            yield
            return
        device = self._host.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derived_seed(self._config.seed, "lora_dropout", step, self._world.rank))
            yield

    def _make_batch(self, items: Sequence[TrainingItem], draws: Sequence[ItemDraw]) -> Batch:
        run, device = self._run, self._host.device
        pairs = list(zip(items, draws, strict=True))
        loss_weights = [item.image.loss_weight for item in items]
        prompt_embeds, pooled_prompt_embeds = self._embed([run.texts.caption(item, draw) for item, draw in pairs])
        return Batch(
            latents=torch.stack([run.latents.get(item, flip=draw.flip) for item, draw in pairs]).to(device),
            noise=torch.stack([draw.noise for draw in draws]).to(device),
            timesteps=torch.tensor([draw.timestep for draw in draws], device=device),
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            add_time_ids=torch.tensor(
                [_size_ids(item, draw) for item, draw in pairs], dtype=torch.float32, device=device
            ),
            loss_mask=self._loss_mask(items, draws),
            loss_weights=None
            if set(loss_weights) == {1.0}
            else torch.tensor(loss_weights, dtype=torch.float32, device=device),
        )

    def _with_texts(self, batch: Batch, texts: list[str]) -> Batch:
        prompt_embeds, pooled_prompt_embeds = self._embed(texts)
        return replace(batch, prompt_embeds=prompt_embeds, pooled_prompt_embeds=pooled_prompt_embeds)

    def _embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        embeddings, device, dtype = self._run.embed(texts), self._host.device, COMPUTE_DTYPES[self._run.precision]
        return embeddings.prompt_embeds.to(device, dtype), embeddings.pooled_prompt_embeds.to(device, dtype)

    def _loss_mask(self, items: Sequence[TrainingItem], draws: Sequence[ItemDraw]) -> Tensor | None:
        """[B, 1, H, W]; ones for a picture that has none beside others that have."""
        masks = [self._run.masks.get(item, flip=draw.flip) for item, draw in zip(items, draws, strict=True)]
        shape = next((mask.shape for mask in masks if mask is not None), None)
        if shape is None:
            return None
        return torch.stack([torch.ones(shape) if mask is None else mask for mask in masks]).to(self._host.device)

    def _draw(self, item: TrainingItem, step: int) -> ItemDraw:
        height, width = item.crop.target_hw
        return draw_item(
            seed=self._config.seed,
            step=step,
            item=item.index,
            latent_shape=(4, height // 8, width // 8),
            num_timesteps=NUM_TIMESTEPS,
            noise_offset=self._config.noise_offset,
            caption_dropout=self._config.caption_dropout,
            random_flip=self._buckets.random_flip,
            num_caption_variants=self._run.texts.num_variants(item),
            num_class_prompts=self._run.texts.num_class_prompts(item),
        )

    # ---- files ----

    def _loss_log(self) -> AbstractContextManager[LossLog | None]:
        return self._folder.log() if self._world.is_main else nullcontext()

    def _due_checkpoints(self, step: int, epoch: int) -> Iterator[Path]:
        every_steps, every_epochs = self._config.save_every_n_steps, self._config.save_every_n_epochs
        if step == self._run.total_steps:
            return
        if every_steps and step % every_steps == 0:
            yield self._folder.checkpoint_path(step=step)
        if every_epochs and step % (every_epochs * self._run.steps_per_epoch) == 0:
            yield self._folder.checkpoint_path(step=step, epoch=epoch)

    def _draw_samples(self, step: int) -> None:
        every = self._config.sample_every_n_steps
        if not every or step % every or not self._world.is_main:
            return
        picture = TrainingSamples(self._run, self._run.texts.sample_prompt, self._host).draw()
        self._host.report(SamplesDrawn(picture, self._folder.write_samples(picture, step=step), step))

    def _save_checkpoint(self, path: Path) -> None:
        """Save the weights as of the last finished step, unless there is none yet or they are saved
        already.
        """
        if self._losses and self._world.is_main and not path.exists():
            self._write_lora(path)
            self._checkpoints.append(path)
            self._host.report(CheckpointSaved(path, len(self._losses)))

    def _save_final(self) -> TrainedLora:
        self._host.report(StageStarted("saving"))
        # the name was free when the run began; another run may have taken it meanwhile
        path = free_path(self._folder.final_path)
        if self._world.is_main:
            verification = self._write_lora(path)
            duration = time.strftime("%H:%M:%S", time.gmtime(time.time() - self._started_at))
            summary = (
                f"{verification.text()}, {self._run.adapted.num_parameters:,} parameters, {len(self._losses)} "
                f"steps in {duration}"
            )
            self._host.report(Notice(f"{path}: {summary}"))
        self._world.wait_for_all()
        state_dict, metadata = self._lora(path.stem)
        return TrainedLora(state_dict, metadata, self._losses, len(self._losses), path, self._checkpoints)

    def _write_lora(self, path: Path) -> Verification:
        """Save, load back, verify."""
        save_lora(path, *self._lora(path.stem))
        return verify_lora(
            path, self._run.adapted.names, expected=list(self._run.adapted.read(alpha=self._config.alpha))
        )

    def _lora(self, title: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        modules = self._run.adapted.read(alpha=self._config.alpha)
        state_dict = to_kohya(modules, self._run.adapted.names, dtype=SAVE_DTYPES[self._config.save_dtype])
        metadata = training_metadata(
            self._config,
            self._buckets,
            self._dataset,
            self._run,
            step=len(self._losses),
            started_at=self._started_at,
            title=title,
            num_processes=self._world.size,
        )
        return state_dict, metadata

    def _manifest(self) -> dict[str, Any]:
        run, dataset = self._run, self._dataset
        return {
            "training": as_dict(self._config),
            "buckets": as_dict(self._buckets),
            "captions": as_dict(run.texts.captions),
            "dataset": {
                **run.plan.report.to_dict(),
                "num_repeats": dataset.num_repeats,
                "images": {image.name: {"sha256": image.sha256, "caption": image.caption} for image in dataset.images},
            },
            "base_model": {"name": run.model.name, "path": str(run.model.path or ""), "sha256": run.model.sha256},
            "prediction_type": run.objective.prediction_type,
            "zero_terminal_snr": run.zero_terminal_snr,
            "precision": run.precision,
            "device": str(self._host.device),
            "num_processes": self._world.size,
            "total_steps": run.total_steps,
            "trainable_parameters": run.adapted.num_parameters,
            "modules": run.adapted.count_modules(),
        }


class StepClock:
    """Speed, remaining time and the average loss of a running training."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._started_at = time.monotonic()
        self._recent: deque[float] = deque(maxlen=100)

    def step_done(self, step: int, epoch: int, loss: float, learning_rate: float, memory_bytes: int) -> StepDone:
        self._recent.append(loss)
        speed = step / max(time.monotonic() - self._started_at, 1e-9)
        average = sum(self._recent) / len(self._recent)
        return StepDone(
            step,
            self._total_steps,
            epoch,
            loss,
            average,
            learning_rate,
            speed,
            (self._total_steps - step) / speed,
            memory_bytes,
        )


def _what_is_kept(prompts: list[str]) -> str:
    """A caption may say nothing of the class once its trigger word is gone: then nothing is kept,
    and only its owner can see that.
    """
    more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
    return (
        f"prior_loss_weight keeps what the base model draws for {prompts[0]!r}{more}. Set class_prompt if that "
        "does not name what is to stay"
    )


def _size_ids(item: TrainingItem, draw: ItemDraw) -> list[int]:
    """add_time_ids of one item; a mirrored picture was cropped on the other side."""
    crop = item.crop
    top, left = crop.top_left_yx
    if draw.flip:
        left = crop.resized_hw[1] - crop.target_hw[1] - left
    return size_ids(crop.original_hw, (top, left), crop.target_hw)


def _require_finite(step: int, loss: float, gradient_norm: float, *, precision: str, scale: float) -> None:
    """Stop before the optimizer would spread NaN into every weight. An fp16 gradient may overflow:
    the scaler skips that step.
    """
    overflow_is_normal = precision == "fp16" and scale > 1
    if math.isfinite(loss) and (math.isfinite(gradient_norm) or overflow_is_normal):
        return
    remedy = {
        "fp16": "Use mixed_precision bf16 or no: fp16 overflows on some base models",
        "bf16": "Lower the learning rate, or use mixed_precision no to find the cause",
        "no": "Lower the learning rate, and check the base model",
    }[precision]
    dtype = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    raise NonFiniteLoss(
        f"step {step}: loss {loss}, gradient norm {gradient_norm} in {dtype}. {remedy}. The weights of the last "
        "good step are kept as a checkpoint"
    )
