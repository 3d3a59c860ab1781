"""What a setting is called here that somebody wrote in another program's words, or mistyped."""

import difflib
from collections.abc import Collection, Iterable

# kohya's sd-scripts, diffusers' scripts and OneTrainer.
_OTHER_NAMES = {
    "network_dim": "rank",
    "network_alpha": "alpha",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "network_dropout": "lora_dropout",
    "conv_dim": "conv_rank",
    "factor": "lokr_factor",
    "decompose_both": "lokr_decompose_both",
    "full_matrix": "lokr_full_matrix",
    "rs_lora": "use_rslora",
    "unet_lr": "learning_rate",
    "text_encoder_lr": "text_encoder_learning_rate",
    "text_encoder_lr1": "text_encoder_learning_rate",
    "text_encoder_lr2": "text_encoder_2_learning_rate",
    "optimizer_type": "optimizer",
    "pretrained_model_name_or_path": "base",
    "train_data_dir": "images",
    "image_dir": "images",
    "instance_data_dir": "images",
    "instance_prompt": "trigger_word",
    "class_tokens": "trigger_word",
    "output_name": "output",
    "max_train_epochs": "num_train_epochs",
    "batch_size": "train_batch_size",
    "lr_scheduler_num_cycles": "lr_num_cycles",
    "save_precision": "save_dtype",
    "save_every_n_epoch": "save_every_n_epochs",
    "checkpointing_steps": "save_every_n_steps",
    "snr_gamma": "min_snr_gamma",
    "shuffle_caption": "shuffle_captions",
    "caption_dropout_rate": "caption_dropout",
    "caption_tag_dropout_rate": "tag_dropout",
    "flip_aug": "random_flip",
    "enable_wildcard": "use_wildcards",
    "validation_split": "validation_share",
    "is_reg": "is_regularization",
    "sample_prompts": "sample_prompt",
    "train_text_encoder": "train_text_encoders",
    "v_parameterization": "prediction_type",
}


def name_here(name: str) -> str:
    """What a setting of another program is called here: the same, if no other name is known."""
    return _OTHER_NAMES.get(name, name)


def suggest_name(name: str, allowed: Collection[str]) -> str | None:
    """The allowed name that is probably meant. Hyphens count as underscores."""
    name = name.lower().replace("-", "_")
    if name in allowed:
        return name
    if _OTHER_NAMES.get(name) in allowed:
        return _OTHER_NAMES[name]
    return next(iter(difflib.get_close_matches(name, allowed, n=1, cutoff=0.75)), None)


def describe_unknown(names: Iterable[str], allowed: Collection[str]) -> str:
    """The names, each with what is probably meant: "network_dim (did you mean rank?)"."""
    suggestions = {name: suggest_name(name, allowed) for name in names}
    return ", ".join(f"{name} (did you mean {known}?)" if known else name for name, known in suggestions.items())
