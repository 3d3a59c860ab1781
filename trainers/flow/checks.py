"""What settings and a plan must be to suit a model family, and what its user should know."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ..dataset.control_images import refuse_control_images
from ..dataset.image import TrainingImage
from ..lora.read import check_tensors, list_ranks, load_tensors
from ..training.adapter_shapes import find_highest_rank
from ..training.adapters import require_kind, require_rank
from ..training.optimizers import check_optimizer
from ..wording import name_examples, pluralize
from .base_model import FlowBaseModel
from .config import FlowConfig
from .families import FlowFamilyRow


def check_settings(config: FlowConfig) -> None:
    """Check what needs no model: the learning rate, the optimizer with its arguments, and that
    network_weights is a LoRA that this run can start from.

    Raises:
        ValueError, ImportError: it is not so.
    """
    if not config.learning_rate:
        raise ValueError("learning_rate is 0, so nothing would be trained. Set learning_rate")
    check_optimizer(config, {"unet": config.learning_rate})
    if config.network_weights:
        label = f"network_weights: {config.network_weights}"
        tensors, _ = load_tensors(Path(config.network_weights), label=label)
        check_tensors(tensors, label)
        require_kind(tensors, config.adapter)
        require_rank(list_ranks(tensors), find_highest_rank(config))


def check_sizes(sizes_hw: Collection[tuple[int, int]], family: FlowFamilyRow) -> None:
    """Check that no image is cropped to a size that the model would pad.

    Raises:
        ValueError: one is.
    """
    step = family.resolution_step
    wrong = [f"{width} x {height}" for height, width in sizes_hw if height % step or width % step]
    if wrong:
        raise ValueError(
            f"{family.name} takes images whose sides are multiples of {step} pixels, not {name_examples(wrong)}. Set "
            f"bucket_reso_steps and resolution to multiples of {step}"
        )


def check_control_images(images: Iterable[TrainingImage], family: FlowFamilyRow) -> None:
    """Check that the model looks at the control images of the dataset.

    Raises:
        ValueError: it looks at none, or not at that many.
    """
    if family.control_images is None:
        refuse_control_images(images, family.name)
        return
    limit = family.control_images.limit
    for image in images:
        if limit and len(image.control_images) > limit:
            raise ValueError(
                f"{image.name} has {len(image.control_images)} control images, but this {family.name} takes {limit} "
                "per image. Remove the others"
            )


def list_long_captions(captions: Iterable[str], base: FlowBaseModel) -> Iterator[str]:
    """Yield a notice if captions have more tokens than the model was trained with."""
    limit = base.family.caption_tokens
    if limit is None:
        return
    counts = {caption: base.count_tokens(caption) for caption in captions}
    long = sorted((caption for caption in counts if counts[caption] > limit), key=lambda caption: -counts[caption])
    if long:
        yield (
            f"{pluralize(len(long), 'caption')} longer than the {limit} tokens that {base.family.name} was trained "
            f"with; the longest has {counts[long[0]]} and begins with {long[0][:40]!r}. Shorten them: what comes after "
            "is learned badly"
        )
