"""Makes the header of a LoRA file: the training in the keys that model managers read (kohya's
`ss_*`, `modelspec.*`), and hashes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import count
from pathlib import PurePath, PureWindowsPath
from typing import Any

from torch import Tensor

from ..files.hashes import LEGACY_SIZE, LEGACY_START, legacy_hash
from ..files.weight_writer import cut, lay_out


@dataclass(frozen=True)
class ImageFolder:
    """Images that are counted together (kohya's subset), only those that were trained on."""

    name: str
    captions: list[str]  # one per image, without repeats
    num_repeats: int = 1
    is_regularization: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """A training run in plain values. None means not applicable; the file leaves such keys out."""

    output_name: str
    rank: int
    alpha: float
    resolution: int  # pixels of the square whose area the buckets keep
    started_at: float  # seconds since 1970
    finished_at: float

    # Names of the family: kohya's, ModelSpec's, and the reference implementation whose layer names
    # the file uses.
    base_model_version: str
    architecture: str
    implementation: str
    prediction_type: str | None = None  # "epsilon" or "v" (ModelSpec's words)
    zero_terminal_snr: bool | None = None

    base_model_name: str | None = None
    base_model_legacy_hash: str | None = None  # legacy_file_hash of the base model
    base_model_sha256: str | None = None

    folders: list[ImageFolder] = field(default_factory=list)
    bucket_counts: dict[tuple[int, int], int] = field(default_factory=dict)  # (height, width) -> samples per epoch
    num_regularization_samples: int = 0  # per epoch, of those in bucket_counts
    bucket_no_upscale: bool | None = None
    min_bucket_reso: int | None = None
    max_bucket_reso: int | None = None
    random_crop: bool | None = None
    random_flip: bool | None = None
    color_aug: bool | None = None
    trigger_word: str | None = None

    steps: int = 0  # optimizer steps done
    max_train_steps: int = 0
    epoch: int = 0
    num_epochs: int = 0
    num_batches_per_epoch: int | None = None
    batch_size: int = 1  # per process
    gradient_accumulation_steps: int = 1
    num_processes: int = 1

    unet_learning_rate: float | None = None
    text_encoder_learning_rates: tuple[float | None, float | None] = (None, None)
    optimizer: str | None = None
    lr_scheduler: str | None = None
    lr_warmup_steps: int | None = None
    max_grad_norm: float | None = None
    scale_weight_norms: float | None = None
    mixed_precision: str | None = None
    gradient_checkpointing: bool | None = None
    cache_latents: bool | None = None
    network_dropout: float | None = None
    network_module: str = "networks.lora"
    network_args: dict[str, str] = field(default_factory=dict)
    caption_dropout_rate: float | None = None
    caption_tag_dropout_rate: float | None = None
    shuffle_caption: bool | None = None
    keep_tokens: int | None = None
    masked_loss: bool | None = None
    noise_offset: float | None = None
    multires_noise_iterations: int | None = None
    multires_noise_discount: float | None = None
    ip_noise_gamma: float | None = None
    min_snr_gamma: float | None = None
    debiased_estimation: bool | None = None
    loss_type: str | None = None
    huber_schedule: str | None = None
    huber_c: float | None = None
    prior_loss_weight: float | None = None
    seed: int | None = None

    comment: str | None = None
    tags: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # all settings of the run, for our own use


def build_metadata(record: TrainingRecord) -> dict[str, str]:
    """Build the metadata of a LoRA file: every value is a string, None is left out, and the user's
    folders do not appear.
    """
    values = {
        **_build_network_keys(record),
        **_build_dataset_keys(record),
        **_build_training_keys(record),
        **_build_modelspec_keys(record),
        "lora_trainer_config": json.dumps(_strip_folders(record.settings), sort_keys=True),
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _build_network_keys(record: TrainingRecord) -> dict[str, Any]:
    return {
        "ss_v2": False,
        "ss_base_model_version": record.base_model_version,
        "ss_network_module": record.network_module,
        "ss_network_dim": record.rank,
        "ss_network_alpha": record.alpha,
        "ss_network_dropout": record.network_dropout,
        "ss_network_args": json.dumps(record.network_args),
        "ss_output_name": record.output_name,
        "ss_sd_model_name": record.base_model_name,
        "ss_sd_model_hash": record.base_model_legacy_hash,
        "ss_new_sd_model_hash": record.base_model_sha256,
        "ss_zero_terminal_snr": record.zero_terminal_snr,
    }


def _build_dataset_keys(record: TrainingRecord) -> dict[str, Any]:
    """Unlike kohya, leave out the tags of regularization images: managers show tags as trigger
    words.
    """
    learned = _make_names_distinct(folder for folder in record.folders if not folder.is_regularization)
    regularization = _make_names_distinct(folder for folder in record.folders if folder.is_regularization)
    return {
        "ss_tag_frequency": json.dumps({name: tag_frequency(folder.captions) for name, folder in learned.items()}),
        "ss_dataset_dirs": json.dumps(_describe_folders(learned)),
        "ss_datasets": describe_class_tokens(record.trigger_word) if record.trigger_word else None,
        "ss_reg_dataset_dirs": json.dumps(_describe_folders(regularization)),
        "ss_num_train_images": sum(record.bucket_counts.values()) - record.num_regularization_samples,
        "ss_num_reg_images": record.num_regularization_samples,
        "ss_resolution": (record.resolution, record.resolution),
        "ss_enable_bucket": len(record.bucket_counts) > 1,
        "ss_bucket_info": json.dumps({"buckets": _describe_buckets(record.bucket_counts)}),
        "ss_bucket_no_upscale": record.bucket_no_upscale,
        "ss_min_bucket_reso": record.min_bucket_reso,
        "ss_max_bucket_reso": record.max_bucket_reso,
        "ss_random_crop": record.random_crop,
        "ss_flip_aug": record.random_flip,
        "ss_color_aug": record.color_aug,
        "ss_caption_dropout_rate": record.caption_dropout_rate,
        "ss_caption_tag_dropout_rate": record.caption_tag_dropout_rate,
        "ss_shuffle_caption": record.shuffle_caption,
        "ss_keep_tokens": record.keep_tokens,
        "ss_cache_latents": record.cache_latents,
    }


def describe_class_tokens(words: str) -> str:
    """Return the trigger words where kohya's configuration files have them, and where LoRA managers
    look for them.
    """
    return json.dumps([{"subsets": [{"class_tokens": words}]}])


def _make_names_distinct(folders: Iterable[ImageFolder]) -> dict[str, ImageFolder]:
    """Number repeated names as kohya does: the second "10_dog" becomes "10_dog (2)"."""
    named: dict[str, ImageFolder] = {}
    for folder in folders:
        names = (folder.name if number == 1 else f"{folder.name} ({number})" for number in count(1))
        named[next(name for name in names if name not in named)] = folder
    return named


def _describe_folders(folders: Mapping[str, ImageFolder]) -> dict[str, dict[str, int]]:
    return {
        name: {"n_repeats": folder.num_repeats, "img_count": len(folder.captions)} for name, folder in folders.items()
    }


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """Count each tag, most frequent first. Tags are the parts between commas, in lower case.
    Managers show them as trigger words.
    """
    counts: dict[str, int] = {}
    for caption in captions:
        for tag in filter(None, (part.strip().lower() for part in caption.split(","))):
            counts[tag] = counts.get(tag, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1]))


def _describe_buckets(bucket_counts: Mapping[tuple[int, int], int]) -> dict[int, dict[str, Any]]:
    """Describe buckets in kohya's form: numbered, sizes as (width, height)."""
    return {
        index: {"resolution": [width, height], "count": count}
        for index, ((height, width), count) in enumerate(sorted(bucket_counts.items()))
    }


def _build_training_keys(record: TrainingRecord) -> dict[str, Any]:
    text_encoder_rates = list(record.text_encoder_learning_rates) if any(record.text_encoder_learning_rates) else None
    return {
        "ss_training_started_at": record.started_at,
        "ss_training_finished_at": record.finished_at,
        "ss_steps": record.steps,
        "ss_max_train_steps": record.max_train_steps,
        "ss_epoch": record.epoch,
        "ss_num_epochs": record.num_epochs,
        "ss_num_batches_per_epoch": record.num_batches_per_epoch,
        "ss_batch_size_per_device": record.batch_size,
        "ss_total_batch_size": record.batch_size * record.num_processes * record.gradient_accumulation_steps,
        "ss_gradient_accumulation_steps": record.gradient_accumulation_steps,
        "ss_learning_rate": record.unet_learning_rate,
        "ss_unet_lr": record.unet_learning_rate,
        "ss_text_encoder_lr": text_encoder_rates,
        "ss_optimizer": record.optimizer,
        "ss_lr_scheduler": record.lr_scheduler,
        "ss_lr_warmup_steps": record.lr_warmup_steps,
        "ss_max_grad_norm": record.max_grad_norm,
        "ss_scale_weight_norms": record.scale_weight_norms,
        "ss_mixed_precision": record.mixed_precision,
        "ss_gradient_checkpointing": record.gradient_checkpointing,
        "ss_noise_offset": record.noise_offset,
        "ss_multires_noise_iterations": record.multires_noise_iterations,
        "ss_multires_noise_discount": record.multires_noise_discount,
        "ss_ip_noise_gamma": record.ip_noise_gamma,
        "ss_min_snr_gamma": record.min_snr_gamma,
        "ss_debiased_estimation": record.debiased_estimation,
        "ss_loss_type": record.loss_type,
        "ss_huber_schedule": record.huber_schedule,
        "ss_huber_c": record.huber_c,
        "ss_prior_loss_weight": record.prior_loss_weight,
        "ss_masked_loss": record.masked_loss,
        "ss_seed": record.seed,
        "ss_training_comment": record.comment,
    }


def _build_modelspec_keys(record: TrainingRecord) -> dict[str, Any]:
    """Build the keys of ModelSpec 1.0.1, as sd-scripts writes them."""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": record.architecture,
        "modelspec.implementation": record.implementation,
        "modelspec.title": record.output_name,
        "modelspec.date": datetime.fromtimestamp(int(record.finished_at), tz=timezone.utc).isoformat(),
        "modelspec.resolution": f"{record.resolution}x{record.resolution}",
        "modelspec.prediction_type": record.prediction_type,
        "modelspec.trigger_phrase": record.trigger_word or None,
        "modelspec.tags": ", ".join(record.tags) or None,
    }


def _strip_folders(value: Any) -> Any:
    """Shorten full paths to their last name: the file will be shared, and must not reveal its
    maker's folders.
    """
    if isinstance(value, Mapping):
        return {str(name): _strip_folders(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strip_folders(entry) for entry in value]
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, str) and (value.startswith("/") or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def hash_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes by which A1111, Forge and model managers identify a LoRA, as in sd-scripts.

    `sshs_model_hash` covers the tensors. `sshs_legacy_hash` covers 64 KiB at 1 MiB of the file,
    written with only its `ss_*` metadata.
    """
    header, *data = lay_out(tensors, {name: value for name, value in metadata.items() if name.startswith("ss_")})
    digest = hashlib.sha256()
    for block in data:
        digest.update(block)
    return {
        "sshs_model_hash": digest.hexdigest(),
        "sshs_legacy_hash": legacy_hash(cut([header, *data], LEGACY_START, LEGACY_SIZE)),
        "modelspec.hash_sha256": f"0x{digest.hexdigest()}",
    }
