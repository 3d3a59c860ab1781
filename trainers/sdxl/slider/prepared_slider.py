"""An SDXL model with a slider's adapters, as the training loop uses it.

Letters: B batch, C channels, H W latent height and width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...dataset.crop_plan import TrainingItem
from ...training.distributed import World
from ...training.evaluation import evaluating
from ...training.events import StageProgress, StageStarted
from ...training.family import Progress
from ..model.sampling import denoise, make_noise_scheduler
from ..prepared_model import PreparedSDXL
from ..samples import MAX_AT_ONCE
from ..step import Batch, distillation_losses, predict
from .config import SliderConfig
from .objective import slider_target
from .plan import find_drawing_seed, find_drawn_prompt, find_prompts

DRAWING_STEPS, DRAWING_GUIDANCE = 20, 5.0
DIRECTIONS = (1.0, -1.0)  # strengths that are trained


@dataclass
class PreparedSlider(PreparedSDXL):
    """Learns from predictions of the frozen base model, on noisy latents of its own drawings.

    The paper draws part of an image anew in every step, with the LoRA. Noise on finished drawings
    has the same distribution, and a drawing serves in many steps: the base model's sampling then
    costs less than the training.
    """

    @property
    def config(self) -> SliderConfig:
        config = self.plan.settings.training
        assert isinstance(config, SliderConfig), "the plan is not of plan_slider"
        return config

    def loss_terms(self, items: Sequence[TrainingItem], step: int) -> Iterator[Tensor]:
        """Yield half of the loss at strength 1, then half of that at -1, so that the slider leads
        both ways alike; with prior_loss_weight the losses of prior preservation after each.
        """
        batch = self.make_batch(items, step)
        base_pred, direction = self._predict_base(batch, items)
        for strength in DIRECTIONS:
            target = slider_target(base_pred, direction, guidance=strength * self.config.slider_guidance)
            with self.adapted.at_strength(strength):  # until the loop has run the backward pass
                yield distillation_losses(self.model.unet, batch, target, self.objective) / len(DIRECTIONS)
                for losses in self.prior_terms(batch, items, step):
                    yield losses / len(DIRECTIONS)

    def _predict_base(self, batch: Batch, items: Sequence[TrainingItem]) -> tuple[Tensor, Tensor]:
        """Return the frozen base's predictions for the target, and positive less negative, both
        [B, C, H, W].
        """
        prompts = [find_prompts(self.config, item.index) for item in items]
        alphas = self.objective.alphas_cumprod[batch.timesteps]
        with self.adapted.disable_adapters():
            base_pred, positive_pred, negative_pred = (
                predict(self.model.unet, self.replace_texts(batch, list(texts)), alphas).float()
                for texts in zip(*(each.all for each in prompts), strict=True)
            )
        return base_pred, positive_pred - negative_pred

    def draw_missing(self, world: World) -> None:
        """Draw what is not cached yet with the frozen base model; with several processes, each its
        own share first.

        Raises:
            Interrupted: the host cancelled.
        """
        items = self.plan.crops.items
        self.host.report(StageStarted("caching", len(items)))
        with self.adapted.disable_adapters(), evaluating(self.model.unet):
            for share in world.put_own_share_first(items):
                for start in range(0, len(share), MAX_AT_ONCE):
                    chunk = share[start : start + MAX_AT_ONCE]
                    self._draw_chunk([item for item in chunk if not self.latents.has(item)])
                    self.host.report(StageProgress("caching", start + len(chunk), len(share), chunk[-1].image.name))

    def _draw_chunk(self, items: Sequence[TrainingItem]) -> None:
        if not items:
            return
        prompts = [find_drawn_prompt(self.config, item.index) for item in items]
        latents = denoise(
            self.model.unet,
            self.embed([""] * len(items) + prompts),
            make_noise_scheduler(self.objective.prediction_type, zero_terminal_snr=self.zero_terminal_snr),
            seeds=[find_drawing_seed(self.config, item.index) for item in items],
            size_hw=items[0].crop.target_hw,
            num_steps=DRAWING_STEPS,
            guidance_scale=DRAWING_GUIDANCE,
            on_step=self.host.check_interrupted,
        )
        for item, latent in zip(items, latents.cpu(), strict=True):
            self.latents.put(item, latent)

    def metadata(self, progress: Progress) -> dict[str, str]:
        """Managers show tags as trigger words, and a slider has none."""
        config = self.config
        return {
            **super().metadata(progress),
            "ss_tag_frequency": "{}",
            "modelspec.description": f"A slider: strength 1 leads to {config.positive!r}, -1 to {config.negative!r}",
            "modelspec.usage_hint": "Strengths from -2 to 2, without a trigger word",
        }
