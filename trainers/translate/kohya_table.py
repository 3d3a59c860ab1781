"""sd-scripts' settings, one row each: those that have a counterpart here, and why others have none.

The defaults are those of sd-scripts' own parsers. A row whose setting does not exist here is listed
as a loss; when the setting comes, the row maps it.
"""

import re
from typing import Any

from .translation import Row
from .values import read_bool, read_float, read_text, read_whole


def _read_save_precision(value: Any) -> str:
    return {"float": "fp32", "no": "fp32"}.get(read_text(value), read_text(value))


def _read_switch(value: Any) -> str:
    return "on" if read_bool(value) else "auto"


def _read_prediction_type(value: Any) -> str:
    return "v_prediction" if read_bool(value) else "auto"


def _read_snr_weighting(value: Any) -> str:
    return "debiased" if read_bool(value) else "min_snr"


def _read_base_dtype(value: Any) -> str:
    return "fp8" if read_bool(value) else ""


# Of datasets: also read from --dataset_config.
DATASET_ROWS = (
    Row("train_batch_size", read_whole, 1),
    Row("bucket_reso_steps", read_whole, 64),
    Row("min_bucket_reso", read_whole, 256),
    Row("max_bucket_reso", read_whole, 1024),
    Row("bucket_no_upscale", read_bool, False),
    Row("flip_aug", read_bool, False),
    Row("color_aug", read_bool, False, off=(False,)),
    Row("shuffle_caption", read_bool, False),
    Row("keep_tokens", read_whole, 0),
    Row("caption_separator", read_text, ","),
    Row("caption_dropout_rate", read_float, 0.0),
    Row("caption_tag_dropout_rate", read_float, 0.0),
    Row("enable_wildcard", read_bool, False),
    Row("validation_split", read_float, 0.0),
)
ROWS = (
    Row("output_name", read_text),
    Row("output_dir", read_text),
    Row("network_dim", read_whole, 4),
    Row("network_alpha", read_float, 1.0),
    Row("network_dropout", read_float, 0.0),
    Row("network_weights", read_text),
    Row("gradient_accumulation_steps", read_whole, 1),
    Row("gradient_checkpointing", read_bool, False),
    Row("max_grad_norm", read_float, 1.0),
    Row("seed", read_whole),
    Row("mixed_precision", read_text, "no"),
    Row("save_every_n_epochs", read_whole, 0),
    Row("save_every_n_steps", read_whole, 0),
    Row("save_precision", _read_save_precision, "fp32"),
    Row("sample_every_n_steps", read_whole, 0),
    Row("validate_every_n_steps", read_whole),
    Row("min_snr_gamma", read_float, 0.0),
    Row("noise_offset", read_float, 0.0),
    Row("v_parameterization", _read_prediction_type),
    Row("zero_terminal_snr", _read_switch),
    Row("torch_compile", read_bool),
    Row("fp8_base", _read_base_dtype, ours="base_dtype"),
    Row("scale_weight_norms", read_float, 0.0),
    Row("debiased_estimation_loss", _read_snr_weighting, ours="snr_weighting", off=("min_snr",)),
    Row("ip_noise_gamma", read_float, 0.0),
    Row("multires_noise_iterations", read_whole, 0),
    Row("loss_type", read_text, "l2", off=("l2",)),
    Row("min_timestep", read_whole),
    Row("max_timestep", read_whole, off=(1000,)),
)
# Rows that count only where another setting has one of these values.
DEPENDENT_ROWS = (
    ("loss_type", ("huber", "smooth_l1"), Row("huber_c", read_float, 0.1)),
    ("loss_type", ("huber", "smooth_l1"), Row("huber_schedule", read_text, "snr")),
    ("loss_type", ("huber", "smooth_l1"), Row("huber_scale", read_float, 1.0, off=(1.0,))),
    ("lr_scheduler", ("warmup_stable_decay",), Row("lr_decay_steps", read_float, 0.0)),
    ("lr_scheduler", ("cosine_with_restarts",), Row("lr_scheduler_num_cycles", read_whole, 1)),
)
# Arguments of the network: the name here, and how it is read.
NETWORK_ARG_ROWS = (
    Row("conv_dim", read_whole),
    Row("conv_alpha", read_float),
    Row("rank_dropout", read_float),
    Row("module_dropout", read_float),
    Row("loraplus_lr_ratio", read_float),
    Row("factor", read_whole),
    Row("decompose_both", read_bool),
    Row("full_matrix", read_bool),
    Row("rs_lora", read_bool),
)

_CACHED, _FLOAT32 = "latents and texts are always cached", "the LoRA is always trained in float32"
_ATTENTION = "attention is always PyTorch's own, which is as fast"
SAME = {
    "cache_latents": _CACHED,
    "cache_latents_to_disk": _CACHED,
    "cache_text_encoder_outputs": _CACHED + ", while the text encoders are not trained",
    "cache_text_encoder_outputs_to_disk": _CACHED + ", while the text encoders are not trained",
    "xformers": _ATTENTION,
    "sdpa": _ATTENTION,
    "mem_eff_attn": _ATTENTION,
    "no_half_vae": "images are always encoded in float32",
    "clip_skip": "SDXL reads the penultimate layer of its text encoders, in sd-scripts too",
    "max_token_length": "captions of any length are read, in chunks of 75 tokens",
    "save_model_as": "a LoRA is always a .safetensors file",
    "save_state": "the state is always saved",
    "save_state_on_train_end": "the state is always saved",
    "sample_at_first": "samples are always drawn before the first step too",
    "skip_cache_check": _CACHED,
    "use_safetensors": "a LoRA is always a .safetensors file",
}
_SPEED, _LOGGED = "speed and memory only", "losses are written to the run's folder"
_KEPT, _UPLOAD = "all checkpoints are kept", "nothing is uploaded"
WITHOUT_EFFECT = {
    "full_bf16": _FLOAT32,
    "full_fp16": _FLOAT32,
    **dict.fromkeys(
        (
            "max_data_loader_n_workers",
            "persistent_data_loader_workers",
            "vae_batch_size",
            "text_encoder_batch_size",
            "lowram",
            "highvram",
            "lowvram",
            "cache_info",
            "cpu_offload_checkpointing",
            "blocks_to_swap",
            "disable_mmap_load_safetensors",
            "dynamo_backend",
            "fused_backward_pass",
            "ddp_timeout",
            "ddp_gradient_as_bucket_view",
            "ddp_static_graph",
            "tokenizer_cache_dir",
            "deepspeed",
            "zero_stage",
            "zero3_init_flag",
            "zero3_save_16bit_model",
            "offload_optimizer_device",
            "offload_optimizer_nvme_path",
            "offload_param_device",
            "offload_param_nvme_path",
            "fp16_master_weights_and_gradients",
            "debug_dataset",
        ),
        _SPEED,
    ),
    **dict.fromkeys(
        (
            "log_with",
            "logging_dir",
            "log_prefix",
            "log_config",
            "log_tracker_name",
            "log_tracker_config",
            "wandb_api_key",
            "wandb_run_name",
            "console_log_level",
            "console_log_file",
            "console_log_simple",
        ),
        _LOGGED,
    ),
    **dict.fromkeys(
        (
            "save_last_n_steps",
            "save_last_n_epochs",
            "save_last_n_steps_state",
            "save_last_n_epochs_state",
            "save_n_epoch_ratio",
        ),
        _KEPT,
    ),
    **dict.fromkeys(
        (
            "huggingface_repo_id",
            "huggingface_token",
            "huggingface_repo_type",
            "huggingface_repo_visibility",
            "huggingface_path_in_repo",
            "save_state_to_huggingface",
            "resume_from_huggingface",
            "async_upload",
        ),
        _UPLOAD,
    ),
    **dict.fromkeys(
        (
            "training_comment",
            "no_metadata",
            "metadata_author",
            "metadata_description",
            "metadata_license",
            "metadata_tags",
            "metadata_title",
            "metadata_usage_hint",
            "metadata_thumbnail",
            "metadata_merged_from",
            "metadata_trigger_phrase",
            "metadata_preprocessor",
            "metadata_is_negative_embedding",
        ),
        "the header is written by this trainer; `lora edit` changes it",
    ),
    "stop_text_encoder_training": "sd-scripts does not stop them either when it trains a LoRA",
    "token_warmup_min": "counts only with token_warmup_step",
    "dataset_repeats": "counts only with in_json",
    "base_weights_multiplier": "counts only with base_weights",
    "sample_sampler": "the command line draws samples by DDIM",
    "sample_every_n_epochs": "samples are counted in steps: sample_every_n_steps",
    "validate_every_n_epochs": "the validation chooses its steps, or validate_every_n_steps",
    "max_validation_steps": "the validation chooses its steps, or validate_every_n_steps",
    "validation_seed": "which images are held out depends on seed",
}
LOST = {
    "adaptive_noise_scale": "the noise offset does not follow the image's mean",
    "noise_offset_random_strength": "noise_offset always has its full strength",
    "ip_noise_gamma_random_strength": "the perturbation always has its full strength",
    "scale_v_pred_loss_like_noise_pred": "min_snr_gamma weighs the loss of such models",
    "v_pred_like_loss": "there is no such loss",
    "weighted_captions": "brackets in captions are not read as weights",
    "caption_dropout_every_n_epochs": "captions are dropped by chance only: caption_dropout",
    "caption_suffix": "add the text to the caption files",
    "keep_tokens_separator": "keep_tokens keeps a number of tags",
    "secondary_separator": "only caption_separator separates tags",
    "token_warmup_step": "captions have all their tags from the start",
    "face_crop_aug_range": "images are not cropped to faces",
    "resize_interpolation": "images are always resized with a Lanczos filter",
    "custom_attributes": "no dataset has any",
    "network_multiplier": "no dataset has its own strength",
    "dim_from_weights": "set rank to that of the file",
    "base_weights": "merge that LoRA into the base model first",
    "resume": "a state of sd-scripts cannot be gone on with; network_weights goes on with its LoRA",
    "initial_epoch": "the run begins with the first",
    "initial_step": "the run begins with the first",
    "skip_until_initial_step": "the run begins with the first",
    "vae": "images are encoded with the base model's own VAE",
    "lr_scheduler_type": "schedules are those of lr_scheduler",
    "lr_scheduler_args": "schedules take no arguments",
    "in_json": "captions are read from files next to the images",
    "metadata_file": "captions are read from files next to the images",
    "dataset_class": "datasets are folders of images",
    "train_inpainting": "inpainting models are not trained",
    "masked_loss": "masks are files NAME-masklabel.png next to the images, or images in a folder mask",
    "conditioning_data_dir": "put the masks next to the images as NAME-masklabel.png, or in a folder mask there",
}

# GUI files and shared TOML files have the settings of all models that sd-scripts trains.
OTHER_MODELS = re.compile(
    r"(flux1?|sd3|anima|lumina|hunyuan(_image)?|t5(xxl)?|qwen3?|gemma2|byt5|clip_[lg]|img|txt|ggpo|logit|single)_.*"
    r"|v2|ae|clip_[lg]|t5xxl|gemma2|qwen3|byt5|text_encoder|discrete_flow_shift|guidance_scale|model_prediction_type"
    r"|model_type|timestep_sampling|sigmoid_scale|weighting_scheme|mode_scale|split_(mode|qkv|attn)|attn_mode"
    r"|train_(blocks|t5xxl|double_block_indices|single_block_indices|lora_ggpo)|enable_all_linear|in_dims"
    r"|apply_t5_attn_mask|mem_eff_save|double_blocks_to_swap|pos_emb_random_crop_rate|enable_scaled_pos_embed"
    r"|save_(clip|t5xxl)|fp8_base_unet|fp8_(scaled|vl)|show_timesteps.*|system_prompt|use_(flash|sage)_attn"
    r"|llm_adapter_path|vae_(chunk_size|disable_cache)|unsloth_offload_checkpointing|compile.*"
)

# Flags whose place here is another one, for who types them. A file with them is translated.
_ELSEWHERE = {
    "enable_bucket": "images are always sorted into buckets",
    "network_module": "see --adapter and --conv-rank",
    "network_args": "see --adapter, --conv-rank and --target-modules",
    "network_train_unet_only": "that is so without --train-text-encoders",
    "network_train_text_encoder_only": "the UNet is always trained",
    "reg_data_dir": "give the folder in --config, in a [[datasets]] table with is_regularization = true",
    "color_aug": "colours are not changed",
    "random_crop": "see --resize-mode random_crop",
    "debiased_estimation_loss": "see --snr-weighting debiased",
}


def explain_absence(name: str) -> str:
    """Say why sd-scripts' flag is not here; "" if it is, or if it is none of theirs."""
    return next((reasons[name] for reasons in (SAME, WITHOUT_EFFECT, LOST, _ELSEWHERE) if name in reasons), "")
