"""How many bytes an SDXL training writes, from its plan alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...dataset.crop_plan import TrainingItem
from ...training.schedule import Schedule
from ..config import SDXLConfig

LATENT_BYTES_PER_PIXEL = 4 * 4 / 64  # four channels in float32, an eighth of the height and width
MASK_BYTES_PER_PIXEL = 4 / 64  # one channel of the same size
CAPTION_CHUNK_BYTES = 77 * 2048 * 2  # hidden states of both text encoders in fp16
POOLED_BYTES = 1280 * 2
FILE_BYTES = 1024  # overhead of a cache file
SAVED_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class DiskUse:
    """The bytes that a run writes with an empty cache. A cache from earlier runs saves some."""

    latents_bytes: int  # with their masks
    captions_bytes: int
    lora_bytes: int  # one file
    num_checkpoints: int  # without the finished LoRA

    @property
    def total_bytes(self) -> int:
        return self.latents_bytes + self.captions_bytes + self.lora_bytes * (1 + self.num_checkpoints)


def estimate_disk_use(
    items: Sequence[TrainingItem],
    config: SDXLConfig,
    schedule: Schedule,
    *,
    chunks_by_text: Sequence[int],
    random_flip: bool,
    num_parameters: int,
) -> DiskUse:
    """Estimate the bytes. `items` are all that is encoded, `chunks_by_text` has the number of
    75-token chunks of each text.
    """
    crops = {(item.image.sha256, item.crop) for item in items}
    masks = {(item.image.mask_sha256, item.crop) for item in items if item.image.mask_sha256}
    latents_bytes = sum(LATENT_BYTES_PER_PIXEL * math.prod(crop.target_hw) + FILE_BYTES for _, crop in crops) * (
        2 if random_flip else 1
    )
    latents_bytes += sum(MASK_BYTES_PER_PIXEL * math.prod(crop.target_hw) + FILE_BYTES for _, crop in masks)
    captions_bytes = sum(num_chunks * CAPTION_CHUNK_BYTES + POOLED_BYTES + FILE_BYTES for num_chunks in chunks_by_text)
    return DiskUse(
        latents_bytes=round(latents_bytes),
        captions_bytes=0 if config.train_text_encoders else captions_bytes,
        lora_bytes=num_parameters * SAVED_BYTES[config.save_dtype],
        num_checkpoints=len(_list_checkpoints(config, schedule)),
    )


def _list_checkpoints(config: SDXLConfig, schedule: Schedule) -> set[tuple[str, int]]:
    """List the checkpoints by step and by epoch. The last step is the finished LoRA."""
    last = schedule.total_steps - 1
    by_step = range(1, last // config.save_every_n_steps + 1) if config.save_every_n_steps else ()
    by_epoch = (
        range(1, last // (config.save_every_n_epochs * schedule.steps_per_epoch) + 1)
        if config.save_every_n_epochs
        else ()
    )
    return {("step", number) for number in by_step} | {("epoch", number) for number in by_epoch}
