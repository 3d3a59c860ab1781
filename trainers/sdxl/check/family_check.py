"""What the flight check asks of SDXL."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...check.check_finding import CheckFinding
from ...check.disk_use import FILE_BYTES
from ...check.family_check import CacheSizes, FamilyCost
from ...check.memory_estimate import CUDA_CONTEXT_BYTES, MemoryEstimate, bytes_per_parameter
from ...dataset.control_images import refuse_control_images
from ...dataset.image import TrainingImage
from ...dataset.report import Remark
from ...training.layer_values import find_layer_values
from ...training.plan import TrainingPlan
from ...wording import pluralize
from ..config import SDXLConfig
from ..new_word import require_word

if TYPE_CHECKING:  # it takes seconds to import
    from diffusers import UNet2DConditionModel

MAX_CHUNKS = 3
LATENT_BYTES_PER_PIXEL = 4 * 4 / 64  # four channels in float32, an eighth of the height and width
MASK_BYTES_PER_PIXEL = 4 / 64  # one channel of the same size
CAPTION_CHUNK_BYTES = 77 * 2048 * 2  # hidden states of both text encoders in fp16
POOLED_BYTES = 1280 * 2


@dataclass(frozen=True)
class SDXLCheck:
    """The FamilyCheck of SDXL. It needs no model: all of them have the same layers, unless `unet`
    brings others, or weights of fewer bits. `check_model` raises a ValueError if the trainer would
    refuse the model that there is.
    """

    precision: str = "bf16"
    device_bytes: int | None = None  # of the GPU, if known: it decides what stays in main memory
    base_dtype: str = ""  # one of BASE_DTYPES, or as the precision
    check_model: Callable[[], None] = lambda: None
    unet: "UNet2DConditionModel | None" = None  # its data is not looked at
    title: str = "SDXL"
    speed_settings: tuple[str, ...] = (
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "optimizer",
        "train_text_encoders",
        "num_new_tokens",
        "target_modules",
        "rank",
        "prior_loss_weight",
        "torch_compile",
    )

    @property
    def base_model(self) -> dict[str, str | None]:
        """Other families' runs have a name there."""
        return {"family": None}

    def check_settings(self, config: SDXLConfig) -> None:
        from ..model.standard_unet import standard_unet  # diffusers takes seconds to import
        from ..start import check_settings
        from ..targets import find_unet_targets

        check_settings(config)
        targets = find_unet_targets(standard_unet(), config.target_modules, with_convolutions=config.conv_rank > 0)
        for setting in ("network_reg_dims", "network_reg_lrs"):
            find_layer_values(getattr(config, setting), targets, setting=setting)
        self.check_model()

    def check_plan(self, plan: TrainingPlan[SDXLConfig]) -> None:
        refuse_control_images([item.image for item in plan.all_items], "SDXL")
        require_word(plan)

    def judge_model(self) -> Iterator[CheckFinding]:
        """No model is looked at."""
        yield from ()

    def judge_lengths(self, texts: Iterable[tuple[TrainingImage, Sequence[str]]]) -> Iterator[CheckFinding]:
        from ...captions.clip_tokenizer import TOKENS_PER_CHUNK, count_chunks, token_ids

        num_tokens = {image.name: max(map(len, token_ids(list(variants)))) for image, variants in texts}
        limit = MAX_CHUNKS * TOKENS_PER_CHUNK
        remarks = {
            name: Remark(name, f"{count} tokens, {count_chunks(count)} chunks") for name, count in num_tokens.items()
        }
        overlong = [remarks[name] for name, count in num_tokens.items() if count > limit]
        if overlong:
            advice = "Other programs cut such prompts off, and their last words have little effect. Shorten them"
            message = f"{pluralize(len(overlong), 'caption')} of more than {limit} tokens. {advice}"
            yield CheckFinding("warning", "overlong_caption", message, overlong)
        long = [remarks[name] for name, count in num_tokens.items() if TOKENS_PER_CHUNK < count <= limit]
        if long:
            message = (
                f"{pluralize(len(long), 'caption')} of more than {TOKENS_PER_CHUNK} tokens, learned in chunks; "
                "the first chunk counts most"
            )
            yield CheckFinding("note", "long_caption", message, long)

    def estimate(self, plan: TrainingPlan[SDXLConfig]) -> FamilyCost:
        # diffusers takes seconds to import
        from ...training.device import COMPUTE_DTYPES
        from ...training.quantized_linear import describe_quantized
        from ..memory import estimate_memory
        from ..model.standard_unet import standard_unet
        from ..streaming import describe_blocks_to_swap, resolve_blocks_to_swap

        unet, size_hw = self.unet or standard_unet(), plan.crops.largest_hw

        def count(config: SDXLConfig) -> MemoryEstimate:
            return estimate_memory(unet, config, size_hw=size_hw, precision=self.precision, base_dtype=self.base_dtype)

        free_bytes = None if self.device_bytes is None else self.device_bytes - CUDA_CONTEXT_BYTES
        config = resolve_blocks_to_swap(plan.settings.training, unet, count, free_bytes=free_bytes)
        memory = count(config)
        per_parameter = bytes_per_parameter(
            config.optimizer,
            has_ema=config.ema_decay > 0,
            number_bytes=COMPUTE_DTYPES[self.precision].itemsize,
        )
        notes = (*describe_quantized(unet), *describe_blocks_to_swap(config, unet))
        return FamilyCost(memory, round(memory.adapters_bytes / per_parameter), _count_cache(plan), notes)


def _count_cache(plan: TrainingPlan[SDXLConfig]) -> CacheSizes:
    from ...captions.clip_tokenizer import count_chunks, token_ids

    captions_bytes = 0
    if not plan.settings.training.runs_text_encoders:
        num_chunks = [count_chunks(len(ids)) for ids in token_ids(plan.texts.list_all())]
        captions_bytes = sum(count * CAPTION_CHUNK_BYTES + POOLED_BYTES + FILE_BYTES for count in num_chunks)
    return CacheSizes(LATENT_BYTES_PER_PIXEL, MASK_BYTES_PER_PIXEL, captions_bytes)
