"""The record of an SDXL training, for the header of its LoRA file."""

import time
from collections.abc import Sequence

from ..config import as_dict
from ..dataset.bucket_config import BucketConfig
from ..dataset.crop_plan import TrainingItem
from ..dataset.dataset import Dataset
from ..lora.header import PictureFolder, TrainingRecord, build_metadata
from .config import SDXLConfig
from .prepare import Run


def training_metadata(
    config: SDXLConfig,
    buckets: BucketConfig,
    dataset: Dataset,
    run: Run,
    *,
    step: int,
    started_at: float,
    title: str,
    num_processes: int,
) -> dict[str, str]:
    """kohya's ss_* and modelspec.* keys as of `step`; started_at in seconds since 1970."""
    trained = {group.name: group.learning_rate for group in run.adapted.groups}
    model, captions = run.model, run.texts.captions
    record = TrainingRecord(
        output_name=title,
        rank=config.rank,
        alpha=config.alpha,
        resolution=buckets.resolution,
        prediction_type="v_prediction" if run.objective.prediction_type == "v_prediction" else "epsilon",
        zero_terminal_snr=run.zero_terminal_snr,
        started_at=started_at,
        finished_at=time.time(),
        base_model_name=model.name,
        base_model_legacy_hash=model.legacy_hash,
        base_model_sha256=model.sha256,
        folders=_folders(dataset, run.plan.items),
        num_regularization_samples=sum(item.image.is_regularization for item in run.plan.items),
        bucket_counts=run.plan.bucket_counts,
        bucket_no_upscale=buckets.bucket_no_upscale,
        min_bucket_reso=buckets.min_bucket_reso,
        max_bucket_reso=buckets.max_bucket_reso,
        random_crop=buckets.resize_mode == "random_crop",
        random_flip=buckets.random_flip,
        trigger_word=dataset.trigger_word or None,
        steps=step,
        max_train_steps=run.total_steps,
        epoch=-(-step // run.steps_per_epoch),
        num_epochs=-(-run.total_steps // run.steps_per_epoch),
        num_batches_per_epoch=run.num_batches_per_epoch,
        batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_processes=num_processes,
        unet_learning_rate=trained.get("unet"),
        text_encoder_learning_rates=(trained.get("text_encoder"), trained.get("text_encoder_2")),
        optimizer=config.optimizer,
        lr_scheduler=config.lr_scheduler,
        lr_warmup_steps=run.num_warmup_steps,
        max_grad_norm=config.max_grad_norm,
        mixed_precision=run.precision,
        gradient_checkpointing=config.gradient_checkpointing,
        cache_latents=True,
        network_dropout=config.lora_dropout or None,
        network_args={"target_modules": config.target_modules},
        caption_dropout_rate=config.caption_dropout,
        caption_tag_dropout_rate=captions.tag_dropout,
        shuffle_caption=captions.shuffle_captions,
        keep_tokens=captions.keep_tokens,
        masked_loss=any(item.image.mask_sha256 for item in run.plan.items) or None,
        noise_offset=config.noise_offset or None,
        min_snr_gamma=config.min_snr_gamma or None,
        prior_loss_weight=_prior_loss_weight(config, dataset),
        seed=config.seed,
        settings={**as_dict(config), **as_dict(buckets), **as_dict(captions)},
    )
    return build_metadata(record)


def _folders(dataset: Dataset, items: Sequence[TrainingItem]) -> list[PictureFolder]:
    """Pictures that are trained on, by the folder that they came with and its repeats."""
    folders: dict[tuple[str, int, bool], PictureFolder] = {}
    for image in dict.fromkeys(item.image for item in items):
        num_repeats = image.num_repeats * dataset.num_repeats
        name = image.subset.rpartition("/")[2] or dataset.folder_name
        folder = PictureFolder(name, [], num_repeats, image.is_regularization)
        folders.setdefault((image.subset, num_repeats, image.is_regularization), folder).captions.append(image.caption)
    return list(folders.values())


def _prior_loss_weight(config: SDXLConfig, dataset: Dataset) -> float | None:
    """kohya's word for the weight of regularization pictures; without any, that of our prior
    preservation, which does their work.
    """
    weights = [image.loss_weight for image in dataset.images if image.is_regularization]
    return weights[0] if weights else config.prior_loss_weight or None
