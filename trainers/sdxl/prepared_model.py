"""An SDXL model with adapters, as the training loop uses it: batches, losses, samples, metadata.

Letters: B batch, H W latent height and width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..captions.clip_tokenizer import tokenize
from ..dataset.crop_plan import TrainingItem
from ..training.adapters import AdaptedModel
from ..training.block_streaming import BlockStreamer
from ..training.compiled_blocks import uncompile_blocks
from ..training.device import COMPUTE_DTYPES
from ..training.evaluation import evaluating
from ..training.family import Progress
from ..training.generators import generator_for
from ..training.host import Host
from ..training.latent_store import LatentStore
from ..training.masks import MaskStore
from ..training.metadata import lora_metadata
from ..training.noise import NoiseDraw, stack_noise
from ..training.plan import TrainingPlan
from ..training.prior_preservation import choose_rows
from ..training.seeds import happens
from ..training.transfer import move_together
from ..training.validation_plan import ValidationDraw, batch_by_size
from .checkpointing import enable_gradient_checkpointing
from .config import SDXLConfig
from .encode import EmbeddingStore
from .model.sdxl_model import SDXLModel
from .model.size_ids import size_ids
from .model.text import TextEmbeddings, encode_captions, stack_embeddings
from .names import ARCHITECTURE, BASE_MODEL_VERSION, IMPLEMENTATION, TEXT_ENCODER, TEXT_ENCODER_2, UNET
from .new_tokens import NewTokens
from .randomness import ItemDraw, draw_item
from .samples import DDIMDrawer, SampleDrawer, draw_samples
from .start import get_learning_rates
from .step import Batch, Objective, distillation_losses, predict, select_rows, weighted_losses
from .streaming import list_blocks


@dataclass
class PreparedSDXL:
    """The PreparedModel of SDXL: everything is encoded, and parts that no step needs are gone."""

    plan: TrainingPlan[SDXLConfig]
    host: Host
    model: SDXLModel
    adapted: AdaptedModel
    latents: LatentStore
    masks: MaskStore
    embeddings: EmbeddingStore | None  # None: the text encoders run in every step
    objective: Objective
    zero_terminal_snr: bool
    precision: str
    drawer: SampleDrawer | None  # None: the trainer's own
    new_tokens: NewTokens | None = None
    streamer: BlockStreamer = field(init=False)

    def __post_init__(self) -> None:
        self.streamer = BlockStreamer(self.host.device)

    @property
    def config(self) -> SDXLConfig:
        return self.plan.settings.training

    def loss_terms(self, items: Sequence[TrainingItem], step: int) -> Iterator[Tensor]:
        """Yield the diffusion loss, and with prior_loss_weight the loss of prior preservation."""
        self._rest_finished_text_encoders(step)
        batch = self.make_batch(items, step)
        self._mask_ranks(batch)
        yield weighted_losses(self.model.unet, batch, self.objective)
        yield from self.prior_terms(batch, items, step)

    def prior_terms(self, batch: Batch, items: Sequence[TrainingItem], step: int) -> Iterator[Tensor]:
        """Yield the loss of prior preservation for the samples that it looks at, if any."""
        rows = choose_rows(items, seed=self.config.seed, step=step) if self.config.prior_loss_weight else []
        if rows:
            class_prompts = [self.plan.texts.choose_class_prompt(items[row], step) for row in rows]
            chosen = select_rows(batch, rows)
            self._mask_ranks(chosen)
            yield self.config.prior_loss_weight * self._compute_prior_losses(chosen, class_prompts)

    def _mask_ranks(self, batch: Batch) -> None:
        """The text encoders see no noise: they train all their ranks."""
        if self.config.tlora_min_rank:
            self.adapted.set_timesteps(UNET, batch.timesteps)

    def _rest_finished_text_encoders(self, step: int) -> None:
        """Compute no gradients for text encoders that are no longer trained, and drop nothing."""
        parts = {TEXT_ENCODER: self.model.text_encoder, TEXT_ENCODER_2: self.model.text_encoder_2}
        for group in self.adapted.groups:
            encoder = parts.get(group.name)
            if encoder is not None and 0 < group.weights.last_step < step:
                encoder.eval()
                for parameter in group.weights.parameters:
                    parameter.requires_grad_(False)

    def enable_gradient_checkpointing(self) -> bool:
        parts = [self.model.unet]
        if self.config.runs_text_encoders:
            parts += [part for part in (self.model.text_encoder, self.model.text_encoder_2) if part is not None]
        missing = [part for part in parts if not part.is_gradient_checkpointing]
        for part in missing:
            enable_gradient_checkpointing(part)
        return bool(missing)

    def stream_more_weights(self) -> int:
        more = self.streamer.choose_more(list_blocks(self.model.unet))
        self.stream_weights(more)
        return self.streamer.num_blocks if more else 0

    def stream_weights(self, blocks: Sequence[nn.Module]) -> None:
        """Keep the frozen weights of these blocks in main memory. Then activations are computed
        again in the backward pass.
        """
        self.enable_gradient_checkpointing()
        uncompile_blocks(blocks)  # their weights are elsewhere in each use
        for block in blocks:
            self.streamer.stream(block, COMPUTE_DTYPES[self.precision])

    def _compute_prior_losses(self, batch: Batch, class_prompts: list[str]) -> Tensor:
        """Compare the predictions for the class prompts with and without the adapters."""
        unet, objective = self.model.unet, self.objective
        with self.adapted.disable_adapters():
            alphas = objective.alphas_cumprod[batch.timesteps]
            base_pred = predict(unet, self.replace_texts(batch, class_prompts), alphas)
        return distillation_losses(unet, self.replace_texts(batch, class_prompts), base_pred, objective)

    def make_batch(self, items: Sequence[TrainingItem], step: int) -> Batch:
        loss_weights = [item.image.loss_weight for item in items]
        return self._collate(
            items,
            [self._draw(item, step) for item in items],
            [self.plan.texts.choose_caption(item, step) for item in items],
            loss_weights=None if set(loss_weights) == {1.0} else torch.tensor(loss_weights),
        )

    def _collate(
        self,
        items: Sequence[TrainingItem],
        draws: list[ItemDraw],
        captions: list[str],
        *,
        loss_weights: Tensor | None = None,
    ) -> Batch:
        pairs = list(zip(items, draws, strict=True))
        embeddings = self.embed(captions)
        batch = Batch(
            **move_together(
                {
                    "latents": torch.stack([draw.latents for draw in draws]),
                    **stack_noise([draw.noise for draw in draws]),
                    "timesteps": torch.tensor([draw.timestep for draw in draws]),
                    "prompt_embeds": embeddings.prompt_embeds,
                    "pooled_prompt_embeds": embeddings.pooled_prompt_embeds,
                    "add_time_ids": torch.tensor([_make_size_ids(*pair) for pair in pairs], dtype=torch.float32),
                    "loss_mask": self.masks.batch(items, [draw.flip for draw in draws]),
                    "loss_weights": loss_weights,
                },
                self.host.device,
            )
        )
        return self._convert_texts(batch)

    def _convert_texts(self, batch: Batch) -> Batch:
        dtype = COMPUTE_DTYPES[self.precision]
        return replace(
            batch,
            prompt_embeds=batch.prompt_embeds.to(dtype),
            pooled_prompt_embeds=batch.pooled_prompt_embeds.to(dtype),
        )

    @torch.no_grad()
    def validation_losses(self, draws: Sequence[ValidationDraw]) -> Tensor:
        """Masks count as in the training: what they leave out is not to be learned.

        Raises:
            Interrupted: the host cancelled.
        """
        losses = torch.zeros(len(draws))
        with evaluating(self.model.unet, self.model.text_encoder, self.model.text_encoder_2):
            for part in batch_by_size(draws, self.config.train_batch_size):
                self.host.check_interrupted()
                losses[[draw.index for draw in part]] = self._measure(part).cpu()
        return losses

    def _measure(self, draws: Sequence[ValidationDraw]) -> Tensor:
        items = [draw.item for draw in draws]
        captions = [self.plan.texts.get_measured_caption(item) for item in items]
        batch = self._collate(items, [self._draw_fixed(draw) for draw in draws], captions)
        return weighted_losses(self.model.unet, batch, self.objective.as_measure())

    def replace_texts(self, batch: Batch, texts: list[str]) -> Batch:
        embeddings = self.embed(texts)
        pair = (embeddings.prompt_embeds, embeddings.pooled_prompt_embeds)
        prompt_embeds, pooled_prompt_embeds = move_together(pair, self.host.device)
        return self._convert_texts(
            replace(batch, prompt_embeds=prompt_embeds, pooled_prompt_embeds=pooled_prompt_embeds)
        )

    def embed(self, captions: list[str]) -> TextEmbeddings:
        """Return embeddings from the cache, or, if they or new tokens are trained, from the text
        encoders with gradients.
        """
        if self.embeddings is not None:
            return stack_embeddings([self.embeddings.get(caption) for caption in captions])
        encoder, encoder_2 = self.model.text_encoder, self.model.text_encoder_2
        assert encoder is not None and encoder_2 is not None
        return encode_captions(encoder, encoder_2, captions, self.new_tokens.tokenize if self.new_tokens else tokenize)

    def _draw(self, item: TrainingItem, step: int) -> ItemDraw:
        random_flip = self.plan.settings.buckets.random_flip
        flip = random_flip and happens(0.5, self.config.seed, "flip", step, item.index)
        return draw_item(self.config, self.latents.get(item, flip=flip), step=step, item=item.index, flip=flip)

    def _draw_fixed(self, draw: ValidationDraw) -> ItemDraw:
        latents = self.latents.get(draw.item, flip=False)
        generator = generator_for(self.config.seed, "validation noise", draw.index)
        noise = NoiseDraw(torch.randn(latents.shape, generator=generator))
        low, high = self.config.timesteps
        return ItemDraw(latents, low + int(draw.noise_level * (high - low)), noise, flip=False)

    def draw_samples(self) -> list[list[Image.Image]]:
        bucket_counts = self.plan.crops.bucket_counts
        return draw_samples(
            self.drawer or self._make_own_drawer(),
            self.model,
            self.embed,
            self.plan.texts.samples,
            usual_size_hw=max(bucket_counts, key=lambda size: bucket_counts[size]),
            host=self.host,
            at_strength=self.adapted.at_strength,
        )

    def _make_own_drawer(self) -> DDIMDrawer:
        assert self.model.vae is not None, "kept for the samples"
        return DDIMDrawer(self.model.vae, self.objective.prediction_type, self.zero_terminal_snr)

    def metadata(self, progress: Progress) -> dict[str, str]:
        config, model = self.config, self.model
        rates = get_learning_rates(config)
        trained = {group.name: rates[group.name] for group in self.adapted.groups if group.name in rates}
        return lora_metadata(
            self.plan,
            progress,
            base_model_version=BASE_MODEL_VERSION,
            architecture=ARCHITECTURE,
            implementation=IMPLEMENTATION,
            base_model_name=model.name,
            base_model_legacy_hash=model.legacy_hash,
            base_model_sha256=model.sha256,
            prediction_type="v" if self.objective.prediction_type == "v_prediction" else "epsilon",
            zero_terminal_snr=self.zero_terminal_snr,
            unet_learning_rate=trained.get(UNET),
            text_encoder_learning_rates=(trained.get(TEXT_ENCODER), trained.get(TEXT_ENCODER_2)),
            mixed_precision=self.precision,
            network_args={"target_modules": config.target_modules},
            min_snr_gamma=(config.min_snr_gamma or None) if config.snr_weighting == "min_snr" else None,
            debiased_estimation=config.snr_weighting == "debiased" or None,
        )

    def facts(self) -> dict[str, Any]:
        model = self.model
        return {
            "base_model": {"name": model.name, "path": str(model.path or ""), "sha256": model.sha256},
            "prediction_type": self.objective.prediction_type,
            "zero_terminal_snr": self.zero_terminal_snr,
        }


def _make_size_ids(item: TrainingItem, draw: ItemDraw) -> list[int]:
    """Return the add_time_ids of one item. In a mirrored image the crop is on the other side."""
    crop = item.crop
    top, left = crop.top_left_yx
    if draw.flip:
        left = crop.resized_hw[1] - crop.target_hw[1] - left
    return size_ids(crop.original_hw, (top, left), crop.target_hw)
