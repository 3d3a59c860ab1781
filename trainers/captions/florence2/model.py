"""Loads a Florence-2 folder, native or legacy, into transformers' own class. Downloads nothing,
runs no code from the folder, and keeps no file open.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Florence2Config, Florence2ForConditionalGeneration, GenerationConfig

from ...files.weight_file import read_weights
from ...wording import name_first
from .folder import ModelFolder, read_json
from .legacy import convert_vision_settings, convert_weights

SAFE_TORCH = (2, 6)  # before, weights_only let a pickle run code
_SHARED = "model.language_model.shared.weight"
# One matrix under four names; a file may contain any of them.
_EMBEDDINGS = (
    _SHARED,
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
_VISION_SETTINGS = (
    *(
        "depths",
        "embed_dim",
        "num_heads",
        "num_groups",
        "window_size",
        "patch_size",
        "patch_stride",
        "patch_padding",
        "patch_prenorm",
    ),
    *("projection_dim", "max_position_embeddings", "max_temporal_embeddings", "mlp_ratio", "qkv_bias"),
)
_TEXT_SETTINGS = (
    *(
        "d_model",
        "encoder_layers",
        "decoder_layers",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
    ),
    *(
        "max_position_embeddings",
        "activation_function",
        "scale_embedding",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
    ),
)
_GENERATION_SETTINGS = (
    *(
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
    ),
    "no_repeat_ngram_size",
)
# BART's tokens, which every Florence-2 uses. Some folders leave them to the defaults in their
# Python files.
_BART_TOKENS = {
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}


def load_model(folder: ModelFolder, *, dtype: torch.dtype) -> Florence2ForConditionalGeneration:
    """Load the model on the CPU, in eval mode and frozen.

    Raises:
        ValueError: the weights are damaged, pickled where torch is too old to open such files, or
            do not match the folder's config; the message names one of them.
        RuntimeError: a file was changed while it was read.
    """
    weights = _read_weights(folder)
    num_tokens = weights[_SHARED].shape[0]
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(build_native_config(folder, num_tokens=num_tokens))
    _check_fit(model.state_dict(), weights, folder)
    # Must come first: load_state_dict gives each new parameter the requires_grad of the old one.
    model.requires_grad_(False)
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, strict=True, assign=True)
    _share_embeddings(model)
    return model.eval()


def build_native_config(folder: ModelFolder, *, num_tokens: int) -> Florence2Config:
    """Build the config from the settings that shape the model. The file's other settings depend on
    the version of transformers that wrote it.

    A legacy model has no token for the positions of the image. The embedding of that token is
    never used, so the prompt uses the model's last token instead (an "and" between regions).
    """
    vision, text = folder.config["vision_config"], {**_BART_TOKENS, **folder.config["text_config"]}
    if folder.is_legacy:
        vision = {**vision, **convert_vision_settings(vision)}
    return Florence2Config(
        text_config={
            "model_type": "bart",
            "is_encoder_decoder": True,
            "vocab_size": num_tokens,
            **_select(text, _TEXT_SETTINGS),
        },
        vision_config={"model_type": "florence_vision", "drop_path_rate": 0.0, **_select(vision, _VISION_SETTINGS)},
        image_token_id=num_tokens - 1 if folder.is_legacy else folder.config["image_token_id"],
        **_select(text, ("bos_token_id", "pad_token_id", "eos_token_id")),
    )


def build_generation_config(folder: ModelFolder, *, num_beams: int, max_new_tokens: int) -> GenerationConfig:
    """Configure beam search without sampling, until no better caption can follow (early_stopping
    off, as in microsoft's example).

    The special tokens and the rule against repetition come from the folder. If two files state
    them, microsoft's code reads the config, and transformers' class generation_config.json.
    """
    by_config = _select(folder.config["text_config"], _GENERATION_SETTINGS)
    by_file = _select(read_json(folder.path / "generation_config.json"), _GENERATION_SETTINGS)
    stated = {**_BART_TOKENS, **by_file, **by_config} if folder.is_legacy else {**_BART_TOKENS, **by_config, **by_file}
    return GenerationConfig(
        **stated, num_beams=num_beams, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True
    )


def _select(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: settings[name] for name in names if settings.get(name) is not None}


def _read_weights(folder: ModelFolder) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in folder.weight_files:
        weights |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    if folder.is_legacy:
        weights = convert_weights(weights)
    stored = next((weights[name] for name in _EMBEDDINGS if name in weights), None)
    if stored is None:
        raise ValueError(
            f"{folder.path}: the weights have no word embeddings, so they are not a complete Florence-2 model. "
            "Download it again"
        )
    return {**dict.fromkeys(_EMBEDDINGS, stored), **weights}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return read_weights(file)[0]
    except SafetensorError as error:
        raise _describe_damage(file, error) from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise ValueError(
            f"{file} is a pickle, which can run any code when torch {torch.__version__} opens it (CVE-2025-32434). "
            "Use a model with safetensors, such as florence-community/Florence-2-base, or torch "
            f"{'.'.join(map(str, SAFE_TORCH))} or newer"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and pickle raise many kinds of errors for a damaged file
        raise _describe_damage(file, error) from error


def _describe_damage(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file}: the weights cannot be read ({error}). Download the file again")


def _check_fit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], folder: ModelFolder) -> None:
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unknown:
        raise ValueError(
            f"{folder.path}: not the weights of a Florence-2 model: missing {_name_first(missing)}, unknown "
            f"{_name_first(unknown)}"
        )
    for name, weight in given.items():
        if weight.shape != expected[name].shape:
            raise ValueError(
                f"{folder.path}: {name} is {list(weight.shape)}; config.json says {list(expected[name].shape)}. Does "
                "one of them belong to another model?"
            )


def _name_first(names: list[str]) -> str:
    return name_first(names, 1) or "nothing"


def _share_embeddings(model: Florence2ForConditionalGeneration) -> None:
    """Make equal matrices one parameter, so that it moves to the device once."""
    text = model.model.language_model
    for owner in (text.encoder.embed_tokens, text.decoder.embed_tokens, model.lm_head):
        if torch.equal(owner.weight, text.shared.weight):
            owner.weight = text.shared.weight
