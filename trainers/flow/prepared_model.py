"""A flow model with adapters, as the training loop uses it: batches, losses, samples, metadata.

Letters: B batch, C channels, H W height and width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..dataset.crop_plan import TrainingItem
from ..training.adapters import AdaptedModel
from ..training.block_streaming import BlockStreamer
from ..training.config import MAX_TIMESTEP
from ..training.evaluation import evaluating
from ..training.family import Progress
from ..training.generators import generator_for
from ..training.host import Host
from ..training.latent_store import LatentStore
from ..training.loss import HUBER_TYPES, per_sample_loss, scheduled_huber_c
from ..training.masks import MaskStore, mask_weights
from ..training.metadata import lora_metadata
from ..training.noise import NoiseDraw, draw_noise, stack_noise
from ..training.noise_levels import draw_level
from ..training.plan import TrainingPlan
from ..training.prior_preservation import choose_rows
from ..training.sample_prompts import SamplePrompt
from ..training.seeds import happens
from ..training.transfer import move_together
from ..training.validation_plan import ValidationDraw, batch_by_size
from .base_model import Conditions, FlowBaseModel
from .checkpointing import checkpoint_blocks, uncheckpoint_blocks
from .config import FlowConfig
from .encode import ConditionStore
from .objective import find_levels, find_shift_by_size, loss_weights, shift_level
from .prompt import make_prompt, make_sample_prompts
from .samples import draw_samples
from .targets import list_blocks


@dataclass(frozen=True)
class ItemDraw:
    """The draws of one item in one step. `level`: the noise level in 0..1 before the shift."""

    latents: Tensor  # [C, ...], mirrored if `flip`
    level: float
    noise: NoiseDraw
    flip: bool


@dataclass(frozen=True)
class FlowBatch:
    """All inputs of a prediction and its loss, on the device."""

    latents: Tensor  # [B, C, ...] float32
    noise: Tensor  # [B, C, ...] float32
    sigmas: Tensor  # [B] float32, of the model's schedule
    levels: Tensor  # [B] float32 in 0..1, for the weight of the loss
    conditions: list[Conditions]  # B
    flips: list[bool]  # B
    loss_mask: Tensor | None = None  # [B, 1, H, W] float32 in 0..1; None: no image of the batch has a mask
    loss_weights: Tensor | None = None  # [B] float32, of the images; None: all 1
    input_noise: Tensor | None = None  # [B, C, ...] float32, what the model sees; None: `noise`


@dataclass
class PreparedFlow:
    """The PreparedModel of a flow model: everything is encoded, the device is free of encoders."""

    plan: TrainingPlan[FlowConfig]
    host: Host
    base: FlowBaseModel
    adapted: AdaptedModel
    latents: LatentStore
    masks: MaskStore
    conditions: ConditionStore
    timestep_sampling: str
    streamer: BlockStreamer = field(init=False)

    def __post_init__(self) -> None:
        self.streamer = BlockStreamer(self.host.device)

    @property
    def config(self) -> FlowConfig:
        return self.plan.settings.training

    @property
    def precision(self) -> str:
        return self.base.precision

    def loss_terms(self, items: Sequence[TrainingItem], step: int) -> Iterator[Tensor]:
        """Yield the loss of the flow, and with prior_loss_weight the loss of prior preservation.
        The backward pass runs before the next one, in the same context.
        """
        batch = self._make_batch(items, step)
        with self.base.computing():
            yield self._weighted_losses(batch)
        if self.config.prior_loss_weight:
            rows = choose_rows(items, seed=self.config.seed, step=step)
            if rows:
                other = self._with_class_prompts(batch, items, rows, step)
                with self.base.computing():
                    yield self.config.prior_loss_weight * self._prior_losses(other)

    def enable_gradient_checkpointing(self) -> bool:
        return checkpoint_blocks(self._list_blocks()) > 0

    def stream_more_weights(self) -> int:
        more = self.streamer.choose_more(self._list_blocks())
        self.stream_weights(more)
        return self.streamer.num_blocks if more else 0

    def stream_weights(self, blocks: Sequence[nn.Module]) -> None:
        """Keep the frozen weights of these blocks in main memory. Then all blocks are computed
        again in the backward pass.
        """
        uncheckpoint_blocks(blocks)  # they come again for each computation
        for block in blocks:
            self.streamer.stream(block)
        checkpoint_blocks(self._list_blocks())

    def _list_blocks(self) -> list[nn.Module]:
        return list(list_blocks(self.base.network).values())

    def _weighted_losses(self, batch: FlowBatch) -> Tensor:
        losses = self._compare(batch, self._predict(batch), self._find_target(batch), self._weight_positions(batch))
        return losses if batch.loss_weights is None else losses * batch.loss_weights

    def _find_target(self, batch: FlowBatch) -> Tensor:
        return self.base.target(batch.latents, batch.noise, batch.sigmas)

    def _with_class_prompts(
        self, batch: FlowBatch, items: Sequence[TrainingItem], rows: Sequence[int], step: int
    ) -> FlowBatch:
        """Return the batch of the samples in these rows, with class prompts for captions."""
        chosen, flips = [items[row] for row in rows], [batch.flips[row] for row in rows]
        class_prompts = [self.plan.texts.choose_class_prompt(item, step) for item in chosen]
        conditions = move_together(self._get_conditions(class_prompts, chosen, flips), self.host.device)
        names = ("latents", "noise", "sigmas", "levels")
        tensors = {name: torch.stack([getattr(batch, name)[row] for row in rows]) for name in names}
        return FlowBatch(**tensors, conditions=conditions, flips=flips)

    def _prior_losses(self, batch: FlowBatch) -> Tensor:
        """Compare the predictions for the class prompts with and without the adapters."""
        with self.adapted.disable_adapters():
            of_base = self._predict(batch)
        return self._compare(batch, self._predict(batch), of_base)

    def _compare(self, batch: FlowBatch, prediction: Tensor, target: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the loss of each sample, [B], weighted by its noise level."""
        config, levels = self.config, batch.levels
        huber_c = self._find_huber_c(levels) if config.loss_type in HUBER_TYPES else None
        losses = per_sample_loss(prediction, target, positions, loss_type=config.loss_type, huber_c=huber_c)
        return losses * loss_weights(levels, config.loss_weighting)

    def _find_huber_c(self, levels: Tensor) -> Tensor:
        return scheduled_huber_c(
            self.config.huber_c, self.config.huber_schedule, progress=levels, sigmas=levels / (1 - levels)
        )

    def _predict(self, batch: FlowBatch) -> Tensor:
        noise = batch.noise if batch.input_noise is None else batch.input_noise
        noisy = self.base.add_noise(batch.latents, noise, batch.sigmas)
        return self.base.predict(noisy, batch.sigmas, batch.conditions)

    def _weight_positions(self, batch: FlowBatch) -> Tensor | None:
        if batch.loss_mask is None:
            return None
        config = self.config
        return mask_weights(
            batch.loss_mask, unmasked_weight=config.unmasked_weight, normalize=config.normalize_masked_loss
        )

    def _make_batch(self, items: Sequence[TrainingItem], step: int) -> FlowBatch:
        captions = [self.plan.texts.choose_caption(item, step) for item in items]
        weights = [item.image.loss_weight for item in items]
        return self._collate(
            items,
            [self._draw(item, step) for item in items],
            captions,
            self._make_sigma,
            loss_weights=None if set(weights) == {1.0} else torch.tensor(weights),
        )

    def _collate(
        self,
        items: Sequence[TrainingItem],
        draws: Sequence[ItemDraw],
        captions: Sequence[str],
        make_sigma: Callable[[TrainingItem, float], float],
        *,
        loss_weights: Tensor | None = None,
    ) -> FlowBatch:
        pairs = list(zip(items, draws, strict=True))
        flips = [draw.flip for draw in draws]
        sigmas = [make_sigma(item, draw.level) for item, draw in pairs]
        return FlowBatch(
            flips=flips,
            **move_together(
                {
                    "latents": torch.stack([draw.latents for draw in draws]),
                    **stack_noise([draw.noise for draw in draws]),
                    "sigmas": torch.tensor(sigmas, dtype=torch.float32),
                    "levels": torch.tensor([draw.level for draw in draws], dtype=torch.float32),
                    "conditions": self._get_conditions(captions, items, flips),
                    "loss_mask": self.masks.batch(items, flips),
                    "loss_weights": loss_weights,
                },
                self.host.device,
            ),
        )

    def _get_conditions(
        self, captions: Sequence[str], items: Sequence[TrainingItem], flips: Sequence[bool]
    ) -> list[Conditions]:
        """On the CPU."""
        return [
            self.conditions.get(make_prompt(caption, item, flip=flip))
            for caption, item, flip in zip(captions, items, flips, strict=True)
        ]

    def _make_sigma(self, item: TrainingItem, level: float) -> float:
        shift = self.config.discrete_flow_shift
        return shift_level(level, shift) if shift else self._make_own_sigma(item, level)

    def _make_own_sigma(self, item: TrainingItem, level: float) -> float:
        if self.base.family.has_shift_by_size:
            return shift_level(level, find_shift_by_size(item.crop.target_hw))
        return self.base.shift_level(level)

    def _find_levels(
        self, item: TrainingItem, make_sigma: Callable[[TrainingItem, float], float]
    ) -> tuple[float, float]:
        timesteps = self.config.timesteps
        if timesteps == (0, MAX_TIMESTEP):
            return 0.0, 1.0
        return find_levels(lambda level: self.base.find_timestep(make_sigma(item, level)), timesteps)

    def _draw(self, item: TrainingItem, step: int) -> ItemDraw:
        config, random_flip = self.config, self.plan.settings.buckets.random_flip
        flip = random_flip and happens(0.5, config.seed, "flip", step, item.index)
        between = self._find_levels(item, self._make_sigma)
        level = draw_level(config, self.timestep_sampling, step=step, item=item.index, between=between)
        latents = self.latents.get(item, flip=flip)
        return ItemDraw(latents, level, draw_noise(latents, config, step=step, item=item.index), flip)

    @torch.no_grad()
    def validation_losses(self, draws: Sequence[ValidationDraw]) -> Tensor:
        """Masks count as in the training: what they leave out is not to be learned.

        Raises:
            Interrupted: the host cancelled.
        """
        losses = torch.zeros(len(draws))
        with evaluating(self.base.network):
            for part in batch_by_size(draws, self.config.train_batch_size):
                self.host.check_interrupted()
                losses[[draw.index for draw in part]] = self._measure(part).cpu()
        return losses

    def _measure(self, draws: Sequence[ValidationDraw]) -> Tensor:
        items = [draw.item for draw in draws]
        captions = [self.plan.texts.get_measured_caption(item) for item in items]
        batch = self._collate(items, [self._draw_fixed(draw) for draw in draws], captions, self._make_own_sigma)
        with self.base.computing():
            return per_sample_loss(self._predict(batch), self._find_target(batch), self._weight_positions(batch))

    def _draw_fixed(self, draw: ValidationDraw) -> ItemDraw:
        latents = self.latents.get(draw.item, flip=False)
        generator = generator_for(self.config.seed, "validation noise", draw.index)
        low, high = self._find_levels(draw.item, self._make_own_sigma)
        level = low + draw.noise_level * (high - low)
        noise = NoiseDraw(torch.randn(latents.shape, generator=generator))
        return ItemDraw(latents, level, noise, flip=False)

    def draw_samples(self) -> list[list[Image.Image]]:
        counts = self.plan.crops.bucket_counts
        return draw_samples(
            self.base,
            self._get_sample_conditions,
            self.plan.texts.samples,
            usual_size_hw=max(counts, key=lambda size: counts[size]),
            host=self.host,
        )

    def _get_sample_conditions(self, sample: SamplePrompt) -> tuple[Conditions, Conditions]:
        positive, negative = make_sample_prompts(sample)
        return self.conditions.get(positive), self.conditions.get(negative)

    def metadata(self, progress: Progress) -> dict[str, str]:
        config, family = self.config, self.base.family
        return lora_metadata(
            self.plan,
            progress,
            base_model_version=family.base_model,
            architecture=family.modelspec_architecture,
            implementation="https://github.com/comfyanonymous/ComfyUI",
            base_model_name=self.base.name,
            unet_learning_rate=config.learning_rate,
            mixed_precision=self.precision,
            network_args={"target_modules": config.target_modules},
        )

    def facts(self) -> dict[str, Any]:
        return {
            "base_model": {"name": self.base.name, "family": self.base.family.name},
            "timestep_sampling": self.timestep_sampling,
        }
