"""What the flight check asks of any other model family than SDXL."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...check.check_finding import CheckFinding
from ...check.disk_use import FILE_BYTES
from ...check.family_check import CacheSizes, FamilyCost
from ...check.memory_estimate import FLOAT32, MemoryEstimate
from ...dataset.image import TrainingImage
from ...dataset.report import Remark
from ...training.plan import TrainingPlan
from ...wording import pluralize
from ..checks import check_control_images, check_settings, check_sizes
from ..config import FlowConfig
from ..families import FlowFamilyRow

USUAL_LIMIT = 512  # tokens of the longest caption, where neither the text encoder nor the family tells


@dataclass(frozen=True)
class FlowEstimate:
    memory: MemoryEstimate
    num_parameters: int  # that are trained
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatentFormat:
    """The latents of the model's VAE, and the width of its texts (0: unknown)."""

    num_channels: int
    pixels_per_latent: int
    text_width: int


@dataclass(frozen=True)
class FlowCheck:
    """The FamilyCheck of a loaded model. `count_tokens` counts as its text encoder does; None: it
    is unknown. `estimate_memory` gets the plan and the number of tokens of its longest caption.
    `check_model` raises a ValueError if the trainer would refuse the model, or finds none of the
    settings' layers in it.
    """

    family: FlowFamilyRow
    name: str
    precision: str
    latents: LatentFormat
    estimate_memory: Callable[[TrainingPlan[FlowConfig], int], FlowEstimate]
    count_tokens: Callable[[str], int] | None = None
    notices: tuple[str, ...] = ()  # on the model
    check_model: Callable[[FlowConfig], None] = lambda _: None

    speed_settings: tuple[str, ...] = (
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "optimizer",
        "target_modules",
        "rank",
        "prior_loss_weight",
    )

    @property
    def title(self) -> str:
        return f"{self.family.name} ({self.name})"

    @property
    def base_model(self) -> dict[str, str | None]:
        """Models of a family differ in size, so that the name counts too."""
        return {"family": self.family.name, "name": self.name}

    def check_settings(self, config: FlowConfig) -> None:
        check_settings(config)
        self.check_model(config)

    def check_plan(self, plan: TrainingPlan[FlowConfig]) -> None:
        check_sizes(plan.crops.bucket_counts, self.family)
        check_control_images([item.image for item in plan.all_items], self.family)

    def judge_model(self) -> Iterator[CheckFinding]:
        yield from (CheckFinding("warning", "model", notice) for notice in self.notices)

    def judge_lengths(self, texts: Iterable[tuple[TrainingImage, Sequence[str]]]) -> Iterator[CheckFinding]:
        limit = self.family.caption_tokens
        if limit is None:
            return
        if self.count_tokens is None:
            message = (
                f"the lengths of captions were not counted: {self.family.name} was trained with at most {limit} "
                "tokens. Connect clip to count them"
            )
            yield CheckFinding("note", "uncounted_captions", message)
            return
        num_tokens = {image.name: max(map(self.count_tokens, variants)) for image, variants in texts}
        long = [Remark(name, f"{count} tokens") for name, count in num_tokens.items() if count > limit]
        if long:
            message = (
                f"{pluralize(len(long), 'caption')} of more than {limit} tokens, which is as many as "
                f"{self.family.name} was trained with. What comes after is learned badly. Shorten them"
            )
            yield CheckFinding("warning", "overlong_caption", message, long)

    def estimate(self, plan: TrainingPlan[FlowConfig]) -> FamilyCost:
        tokens = self._count_all_tokens(sorted(set(plan.texts.list_all())))
        found = self.estimate_memory(plan, max(tokens))
        return FamilyCost(found.memory, found.num_parameters, self._count_cache(tokens), found.notes)

    def _count_all_tokens(self, texts: Sequence[str]) -> list[int]:
        if self.count_tokens is not None:
            return [self.count_tokens(text) for text in texts]
        return [self.family.caption_tokens or USUAL_LIMIT] * len(texts)

    def _count_cache(self, tokens: Sequence[int]) -> CacheSizes:
        area = self.latents.pixels_per_latent**2
        captions_bytes = sum(count * self.latents.text_width * FLOAT32 + FILE_BYTES for count in tokens)
        return CacheSizes(self.latents.num_channels * FLOAT32 / area, FLOAT32 / area, captions_bytes)
