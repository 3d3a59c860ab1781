"""OneTrainer's settings, one row each. Nested ones have dots: unet.train."""

import re
from typing import Any

from .translation import NOTHING, Row
from .values import read_bool, read_float, read_text, read_whole

_DTYPES = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "fp32"}
_PRECISIONS = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "no", "TFLOAT_32": "no"}


def _read_precision(value: Any) -> str:
    return _PRECISIONS.get(value, str(value))


def _read_output_dtype(value: Any) -> str:
    return _DTYPES.get(value, str(value))


def read_base_dtype(value: Any) -> str:
    """OneTrainer's FLOAT_W8A8 computes in 8 bits too: that is another thing."""
    return {"FLOAT_8": "fp8", "INT_8": "int8", "NFLOAT_4": "nf4"}.get(
        value, "" if value in (*_DTYPES, "NONE") else value
    )


ROWS = (
    Row("lora_rank", read_whole, 16),
    Row("lora_alpha", read_float, 1.0),
    Row("dropout_probability", read_float, 0.0, ours="lora_dropout"),
    Row("lora_model_name", read_text, NOTHING, ours="network_weights"),
    Row("epochs", read_whole, 100, ours="num_train_epochs"),
    Row("batch_size", read_whole, 1),
    Row("gradient_accumulation_steps", read_whole, 1),
    Row("train_dtype", _read_precision, "fp16", ours="mixed_precision"),
    Row("output_dtype", _read_output_dtype, "fp32", ours="save_dtype"),
    Row("offset_noise_weight", read_float, 0.0, ours="noise_offset"),
    Row("unmasked_weight", read_float, 0.1),
    Row("normalize_masked_area_loss", read_bool, False, ours="normalize_masked_loss"),
    Row("compile", read_bool, NOTHING, ours="torch_compile"),
)
_SPEED, _FILES = "speed and memory only", "files of the run are kept in its folder"
WITHOUT_EFFECT = {
    **dict.fromkeys(
        (
            "async_offloading",
            "dataloader_threads",
            "train_device",
            "temp_device",
            "enable_autocast_cache",
            "fallback_train_dtype",
            "attention_mechanism",
            "clear_cache_before_training",
            "fused_gradient_reduce",
            "async_gradient_reduce",
            "async_gradient_reduce_buffer",
            "gradient_reduce_precision",
            "multi_gpu",
            "device_indexes",
            "unet.offload_fraction",
            "unet.activation_offloading",
            "layer_offload_fraction",
            "enable_activation_offloading",
            "enable_async_offloading",
            "only_cache",
            "optimizer.fused",
            "optimizer.fused_back_pass",
            "optimizer.foreach",
            "optimizer.stochastic_rounding",
            "optimizer.block_wise",
            "optimizer.min_8bit_size",
            "optimizer.optim_bits",
            "optimizer.quant_block_size",
            "optimizer.log_every",
            "optimizer.compile",
            "latent_caching",
        ),
        _SPEED,
    ),
    **dict.fromkeys(
        (
            "workspace_dir",
            "cache_dir",
            "debug_mode",
            "debug_dir",
            "huggingface_cache_dir",
            "offline_mode",
            "tensorboard",
            "tensorboard_expose",
            "tensorboard_always_on",
            "tensorboard_port",
            "prevent_overwrites",
            "include_train_config",
            "backup_after",
            "backup_after_unit",
            "rolling_backup",
            "rolling_backup_count",
            "backup_before_save",
            "continue_last_backup",
            "save_skip_first",
            "save_filename_prefix",
            "output_model_format",
            "sample_skip_first",
            "sample_image_format",
            "sample_video_format",
            "sample_audio_format",
            "samples_to_tensorboard",
            "non_ema_sampling",
            "bundle_additional_embeddings",
        ),
        _FILES,
    ),
    "validation": "validation images are measured when the validation chooses",
    "validate_after": "validation images are measured when the validation chooses",
    "validate_after_unit": "validation images are measured when the validation chooses",
    "lora_weight_dtype": "the LoRA is always trained in float32",
    "vae.weight_dtype": "images are always encoded in float32",
    "text_encoder.weight_dtype": "the frozen weights have the number format of mixed_precision",
    "text_encoder_2.weight_dtype": "the frozen weights have the number format of mixed_precision",
}
# The reason, and what leaves it off, besides nothing, false and 0.
LOST: dict[str, tuple[str, tuple[Any, ...]]] = {
    "mae_strength": ("the loss is the squared error", ()),
    "log_cosh_strength": ("the loss is the squared error", ()),
    "huber_strength": ("OneTrainer's Huber loss adds to the squared error, and its delta is another one", ()),
    "mse_strength": ("the squared error counts as it is", (1.0,)),
    "generalized_offset_noise": ("noise_offset is the same at every timestep", ()),
    "perturbation_noise_weight": ("OneTrainer adds it to what the model should find too", ()),
    "timestep_distribution": ("OneTrainer's shapes of timesteps are its own", ("UNIFORM",)),
    "dynamic_timestep_shifting": ("timesteps of SDXL are not shifted", ()),
    "timestep_shift": ("timesteps of SDXL are not shifted", (1.0,)),
    "learning_rate_min_factor": ("the learning rate falls to 0", ()),
    "custom_learning_rate_scheduler": ("schedules are those of lr_scheduler", ()),
    "custom_conditioning_image": ("SDXL has no conditioning images", ()),
    "loss_scaler": ("the loss is the mean of the batch", ("NONE",)),
    "force_circular_padding": ("images are not made tileable", ()),
    "additional_embeddings": ("embeddings are not trained", ()),
    "embedding.model_name": ("embeddings are not trained", ()),
    "text_encoder_layer_skip": ("SDXL reads the penultimate layer of its text encoders", ()),
    "text_encoder_2_layer_skip": ("SDXL reads the penultimate layer of its text encoders", ()),
    "vae.model_name": ("images are encoded with the base model's own VAE", ()),
    "unet.model_name": ("the base model's own UNet is trained", ()),
    "unet.dropout_probability": ("it is no setting of SDXL", ()),
    "force_epsilon_prediction": ("prediction_type epsilon does it", ()),
}
# Parts of other models, tables of the program itself, and settings that count for other models.
OTHER_MODELS = re.compile(
    r"(prior|transformer|unconditional_transformer|text_encoder_[34]|effnet_encoder|decoder\w*|quantization|cloud"
    r"|secrets|optimizer_defaults|embedding|embeddings|vae|lokr|oft)[._].*"
    r"|frames|text_encoder(_2)?_sequence_length|text_encoder_[34]_layer_skip|embedding_\w+|preserve_embedding_norm"
    r"|(unet|text_encoder|text_encoder_2)\.(include|attention_mask|guidance_scale|train_embedding|weight_dtype"
    r"|gradient_checkpointing|activation_offloading|offload_fraction|stop_training_after.*)"
    r"|vb_loss_strength|huber_delta|lora_decompose_\w+|noising_\w+|scheduler_params|optimizer_defaults|secrets|cloud"
    r"|ema_update_step_interval|embedding|__version|(vae|text_encoder|text_encoder_2)\.\w+"
)
