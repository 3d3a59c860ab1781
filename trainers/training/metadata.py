"""What a run of any family writes into the header of its LoRA: plan, settings and progress."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..dataset.caption_variants import CaptionConfig, flatten_caption, split_caption_lines
from ..dataset.crop_plan import TrainingItem
from ..dataset.dataset import Dataset
from ..lora.header import ImageFolder, TrainingRecord, build_metadata
from .adapter_shapes import AdapterSettings
from .config import TrainingConfig
from .family import Progress
from .loss import HUBER_TYPES
from .lr_schedule import count_steps
from .plan import TrainingPlan


def lora_metadata(
    plan: TrainingPlan, progress: Progress, *, network_args: Mapping[str, str] | None = None, **of_the_family: Any
) -> dict[str, str]:
    """Return kohya's ss_* and modelspec.* keys as of progress.step. `network_args` come after those
    of the adapter; `of_the_family` are more fields of TrainingRecord.
    """
    record = TrainingRecord(
        output_name=progress.title,
        started_at=progress.started_at,
        finished_at=time.time(),
        **_describe_dataset(plan),
        **_describe_steps(plan, progress.step),
        **_describe_network(plan.settings.training, network_args or {}),
        **_describe_optimizer(plan),
        **_describe_objective(plan),
        settings={name: value for section in plan.settings.to_dict().values() for name, value in section.items()},
        **of_the_family,
    )
    return build_metadata(record)


def _describe_dataset(plan: TrainingPlan) -> dict[str, Any]:
    buckets, captions, items = plan.settings.buckets, plan.settings.captions, plan.crops.items
    return {
        "resolution": buckets.resolution,
        "folders": _list_folders(plan.dataset, items, captions),
        "num_regularization_samples": sum(item.image.is_regularization for item in items),
        "bucket_counts": plan.crops.bucket_counts,
        "bucket_no_upscale": buckets.bucket_no_upscale,
        "min_bucket_reso": buckets.min_bucket_reso,
        "max_bucket_reso": buckets.max_bucket_reso,
        "random_crop": buckets.resize_mode == "random_crop",
        "random_flip": buckets.random_flip,
        "trigger_word": plan.dataset.trigger_word or None,
        "caption_dropout_rate": plan.settings.training.caption_dropout,
        "caption_tag_dropout_rate": captions.tag_dropout,
        "shuffle_caption": captions.shuffle_captions,
        "keep_tokens": captions.keep_tokens,
    }


def _describe_steps(plan: TrainingPlan, step: int) -> dict[str, Any]:
    config, schedule = plan.settings.training, plan.schedule
    return {
        "steps": step,
        "max_train_steps": schedule.total_steps,
        "epoch": -(-step // schedule.steps_per_epoch),
        "num_epochs": -(-schedule.total_steps // schedule.steps_per_epoch),
        "num_batches_per_epoch": schedule.num_batches,
        "batch_size": config.train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_processes": schedule.num_processes,
    }


def _describe_network(config: TrainingConfig, network_args: Mapping[str, str]) -> dict[str, Any]:
    adapters = AdapterSettings.of(config)
    return {
        "rank": config.rank,
        "alpha": adapters.alpha,
        "network_module": "networks.lora" if config.adapter == "lora" else "lycoris.kohya",
        "network_dropout": config.lora_dropout or None,
        "network_args": {
            **describe_adapter(config),
            **_describe_convolutions(adapters),
            **_describe_dropout(config),
            **_describe_rates_and_ranks(config),
            **network_args,
        },
        "scale_weight_norms": config.scale_weight_norms or None,
    }


def _describe_optimizer(plan: TrainingPlan) -> dict[str, Any]:
    config = plan.settings.training
    return {
        "optimizer": config.optimizer,
        "lr_scheduler": config.lr_scheduler,
        "lr_warmup_steps": count_steps(config.lr_warmup_steps, plan.schedule.total_steps),
        "max_grad_norm": config.max_grad_norm,
        "gradient_checkpointing": config.gradient_checkpointing,
        "cache_latents": True,
        "seed": config.seed,
    }


def _describe_objective(plan: TrainingPlan) -> dict[str, Any]:
    config = plan.settings.training
    has_huber_c = config.loss_type in HUBER_TYPES
    return {
        "masked_loss": any(item.image.mask_sha256 for item in plan.crops.items) or None,
        "prior_loss_weight": _find_prior_loss_weight(config, plan.dataset),
        "noise_offset": config.noise_offset or None,
        "multires_noise_iterations": config.multires_noise_iterations or None,
        "multires_noise_discount": config.multires_noise_discount if config.multires_noise_iterations else None,
        "ip_noise_gamma": config.ip_noise_gamma or None,
        "loss_type": config.loss_type,
        "huber_schedule": config.huber_schedule if has_huber_c else None,
        "huber_c": config.huber_c if has_huber_c else None,
    }


def describe_adapter(config: TrainingConfig) -> dict[str, str]:
    """Return what LyCORIS would be told to train the same; nothing for a LoRA."""
    match config.adapter:
        case "dora":
            return {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}
        case "loha":
            return {"algo": "loha"}
        case "lokr":
            args = {
                "factor": config.lokr_factor,
                "decompose_both": config.lokr_decompose_both,
                "full_matrix": config.lokr_full_matrix,
            }
            return {"algo": "lokr", **{name: str(value) for name, value in args.items()}}
    return {}


def _describe_convolutions(adapters: AdapterSettings) -> dict[str, str]:
    """By the names of sd-scripts and LyCORIS."""
    if not adapters.conv_rank:
        return {}
    return {"conv_dim": str(adapters.conv_rank), "conv_alpha": f"{adapters.conv_alpha:g}"}


def _describe_dropout(config: TrainingConfig) -> dict[str, str]:
    rates = {"rank_dropout": config.rank_dropout, "module_dropout": config.module_dropout}
    return {name: f"{rate:g}" for name, rate in rates.items() if rate}


def _describe_rates_and_ranks(config: TrainingConfig) -> dict[str, str]:
    values = {
        "network_reg_dims": config.network_reg_dims,
        "network_reg_lrs": config.network_reg_lrs,
        "loraplus_lr_ratio": f"{config.loraplus_lr_ratio:g}" if config.loraplus_lr_ratio else "",
    }
    return {name: text for name, text in values.items() if text}


def _list_folders(dataset: Dataset, items: Sequence[TrainingItem], captions: CaptionConfig) -> list[ImageFolder]:
    """Group the trained images by their folder and its repeats."""
    folders: dict[tuple[str, int, bool], ImageFolder] = {}
    for image in dict.fromkeys(item.image for item in items):
        num_repeats = image.num_repeats * dataset.num_repeats
        name = image.subset.rpartition("/")[2] or dataset.folder_name
        folder = ImageFolder(name, [], num_repeats, image.is_regularization)
        # With wildcards every line is a caption, so that no tag reaches across the end of a line.
        caption = (
            ", ".join(split_caption_lines(image.caption)) if captions.use_wildcards else flatten_caption(image.caption)
        )
        folders.setdefault((image.subset, num_repeats, image.is_regularization), folder).captions.append(caption)
    return list(folders.values())


def _find_prior_loss_weight(config: TrainingConfig, dataset: Dataset) -> float | None:
    """Return the weight of the regularization images, which kohya calls prior_loss_weight. Without
    such images: that of our prior preservation, which replaces them.
    """
    weights = [image.loss_weight for image in dataset.images if image.is_regularization]
    return weights[0] if weights else config.prior_loss_weight or None
