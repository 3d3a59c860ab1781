"""Writes an SDXL model as a single checkpoint in the LDM layout, or as a diffusers folder that the
pipeline loads offline.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import EulerDiscreteScheduler
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ...captions.clip_tokenizer import CHUNK_LENGTH, MERGES_FILE, vocabulary
from ...files.atomic_write import atomic_write
from .inspect_weights import PART_NAMES
from .layout import (
    LDM_PREFIX,
    PARTS,
    Part,
    bare_text_name,
    is_vae_attention_matrix,
    ldm_to_text_encoder_2,
    text_encoder_2_to_ldm,
    text_encoder_to_ldm,
    unet_to_ldm,
    vae_to_ldm,
)
from .noise_schedule import NOISE_SCHEDULE
from .sdxl_model import SDXLModel

_COMPONENTS = {
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_START, _END = "<|startoftext|>", "<|endoftext|>"


def write_checkpoint(model: SDXLModel, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one .safetensors file with all parts, which ComfyUI, A1111 and sd-scripts read, in the
    dtypes of the model.

    Raises:
        RuntimeError: a part is None.
        FileExistsError: `path` exists.
        OSError: the disk is full or the folder cannot be written.
    """
    tensors = {
        LDM_PREFIX[part] + name: weight
        for part in PARTS
        for name, weight in _to_ldm(part, _get_weights(model, part)).items()
    }
    # ComfyUI recognizes these models by the keys; the tensors are empty.
    if model.prediction_type == "v_prediction":
        tensors["v_pred"] = torch.empty(0)
        if model.zero_terminal_snr:
            tensors["ztsnr"] = torch.empty(0)
    _save(tensors, Path(path), metadata or {})


def write_diffusers_folder(model: SDXLModel, path: Path) -> None:
    """Write a folder that StableDiffusionXLPipeline.from_pretrained loads. It gets its name only
    when it is complete.

    Raises:
        RuntimeError: a part is None.
        FileExistsError: `path` exists.
        OSError: the disk is full or the folder cannot be written.
    """
    with _create_folder(Path(path)) as folder:
        for part in PARTS:
            _write_part(model, part, folder / part)
        _make_scheduler(model).save_config(folder / "scheduler")
        _write_tokenizer(folder / "tokenizer", pad_token=_END)
        _write_tokenizer(folder / "tokenizer_2", pad_token="!")
        index = {
            "_class_name": "StableDiffusionXLPipeline",
            "_diffusers_version": diffusers.__version__,
            "force_zeros_for_empty_prompt": True,
        }
        _write_json(folder / "model_index.json", index | _COMPONENTS)


def _get_weights(model: SDXLModel, part: Part) -> dict[str, Tensor]:
    """Return the weights of a part by diffusers' and transformers' names, without the level
    "text_model." of the text encoders.
    """
    return {bare_text_name(name): weight.detach() for name, weight in _get_module(model, part).state_dict().items()}


def _get_module(model: SDXLModel, part: Part) -> Any:
    module: nn.Module | None = getattr(model, part)
    if module is None:
        raise RuntimeError(f"the {PART_NAMES[part]} is no longer in memory, so the model cannot be written")
    return module


def _to_ldm(part: Part, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    match part:
        case "unet":
            return {ldm: weights[name] for name, ldm in unet_to_ldm(weights).items()}
        case "text_encoder":
            return {ldm: weights[name] for name, ldm in text_encoder_to_ldm(weights).items()}
        case "text_encoder_2":
            return _to_open_clip(weights)
        case "vae":
            return {
                ldm: weights[name][:, :, None, None] if is_vae_attention_matrix(name) else weights[name]
                for name, ldm in vae_to_ldm(weights).items()
            }


def _to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    groups = ldm_to_text_encoder_2(dict.fromkeys(text_encoder_2_to_ldm(weights).values()))
    tensors = {
        open_clip: torch.cat([weights[name] for name in names]) if len(names) > 1 else weights[names[0]]
        for open_clip, names in groups.items()
    }
    tensors["text_projection"] = tensors["text_projection"].T
    return tensors


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    with atomic_write(path) as temporary:
        try:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                temporary,
                {"format": "pt", **metadata},
            )
        except SafetensorError as error:
            # safetensors reports the system's error number only as text.
            number = re.search(r"\(os error (\d+)\)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, f"{path}: {error}") from error


@contextmanager
def _create_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` and rename it to `path` if the block succeeds. If it
    fails, leave nothing.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, f"{path} exists already. Choose another name; it was not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_part(model: SDXLModel, part: Part, folder: Path) -> None:
    module, weights = _get_module(model, part), _get_weights(model, part)
    folder.mkdir()
    if part in ("unet", "vae"):
        module.save_config(folder)
        _save(weights, folder / "diffusion_pytorch_model.safetensors", {})
        return
    # Not save_pretrained: transformers 5 writes CLIPTextModel without the "text_model." level, and
    # 4.x then silently initializes the weights at random.
    config = module.config.to_diff_dict() | {
        "architectures": [type(module).__name__],
        "dtype": str(module.dtype).removeprefix("torch."),
    }
    _write_json(folder / "config.json", config)
    names = {name: name if name.startswith("text_projection.") else "text_model." + name for name in weights}
    _save({names[name]: weight for name, weight in weights.items()}, folder / "model.safetensors", {})


def _make_scheduler(model: SDXLModel) -> EulerDiscreteScheduler:
    """Make a scheduler with SDXL's published settings. Zero-terminal-SNR models must start from
    pure noise ("trailing").
    """
    return EulerDiscreteScheduler(
        **NOISE_SCHEDULE,
        prediction_type=model.prediction_type,
        rescale_betas_zero_snr=model.zero_terminal_snr,
        timestep_spacing="trailing" if model.zero_terminal_snr else "leading",
        steps_offset=1,
    )


def _write_tokenizer(folder: Path, *, pad_token: str) -> None:
    folder.mkdir()
    special_tokens = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad_token}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CHUNK_LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    _write_json(folder / "vocab.json", dict(sorted(vocabulary().items(), key=lambda entry: entry[1])))
    _write_json(folder / "special_tokens_map.json", special_tokens)
    _write_json(folder / "tokenizer_config.json", settings | special_tokens)
    shutil.copyfile(MERGES_FILE, folder / "merges.txt")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
