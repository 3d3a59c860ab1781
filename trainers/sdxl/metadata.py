"""The record of an SDXL training, for the header of its LoRA file."""

import time

from ..buckets import BucketConfig
from ..config import as_dict
from ..dataset import Dataset
from ..lora_metadata import TrainingRecord, build_metadata
from .config import SDXLConfig
from .prepare import Run


def training_metadata(
    config: SDXLConfig, buckets: BucketConfig, dataset: Dataset, run: Run, *, step: int, started_at: float, title: str, num_processes: int
) -> dict[str, str]:
    """kohya's ss_* and modelspec.* keys as of `step`; started_at in seconds since 1970."""
    trained = {group.name: group.learning_rate for group in run.adapted.groups}
    model = run.model
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
        folder_name=dataset.folder_name,
        captions=[image.caption for image in dataset.images],
        num_repeats=dataset.num_repeats,
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
        noise_offset=config.noise_offset or None,
        min_snr_gamma=config.min_snr_gamma or None,
        seed=config.seed,
        settings={**as_dict(config), **as_dict(buckets)},
    )
    return build_metadata(record)
