"""Borrows the weights that the graph has loaded: MODEL, CLIP and VAE as an SDXLModel on the same
memory.

Tensors that a node receives were made under torch.inference_mode, so autograd cannot save them for
backward. A tensor made outside of it on the same storage can be saved, and costs nothing. The
weights are only ever read.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import torch
from comfy.quant_ops import QuantizedTensor
from diffusers import UNet2DConditionModel
from torch import Tensor

from ...trainers.sdxl.model.inspect_weights import is_weight, unet_config
from ...trainers.sdxl.model.layout import Part
from ...trainers.sdxl.model.sdxl_model import SDXLModel, build_model, from_ldm
from .quantized_weights import keep_quantized, to_floats
from .twin import alias, hollow

_UNET, _VAE = "diffusion_model.", ""
_TEXT_ENCODERS: dict[Part, str] = {"text_encoder": "clip_l.transformer.", "text_encoder_2": "clip_g.transformer."}


@dataclass(frozen=True)
class GraphModel:
    """A node's MODEL (ModelPatcher), CLIP and VAE."""

    model: Any
    clip: Any
    vae: Any


@contextmanager
def training_mode() -> Iterator[None]:
    """Turn on autograd as in a plain Python program. ComfyUI's inference mode is restored
    afterwards, whatever happens.

    Every model of the graph is unloaded first: its weights are then unpatched in main memory, and
    the device is free.
    """
    unload_models()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.soft_empty_cache()


@torch.inference_mode()  # in which they were made: moved outside of it, a weight cannot be detached any more
def unload_models() -> None:
    """Unload every model that ComfyUI has loaded, wherever it computes, and free the device.

    ComfyUI's unload_all_models asks its GPUs only: on a machine with one, a model that computes on
    the CPU would keep another branch's LoRA in its weights.
    """
    comfy.model_management.unload_all_models()
    for device in {loaded.device for loaded in comfy.model_management.current_loaded_models}:
        comfy.model_management.free_memory(1e30, device)
    comfy.model_management.soft_empty_cache()


def is_sdxl(model: Any) -> bool:
    """Tell whether a MODEL is SDXL's.

    Raises:
        ValueError: MODEL is empty.
    """
    if model is None:
        raise ValueError("MODEL is empty: the loader found none in this file. Choose a diffusion model")
    return isinstance(model.model, comfy.model_base.SDXL)


def borrow_model(base: GraphModel) -> SDXLModel:
    """Return the graph's MODEL, CLIP and VAE as an SDXLModel that shares their memory. Its weights
    include the LoRAs and merges in them. Those of the MODEL that have 8 or 4 bits keep them.

    Call it in training_mode.

    Raises:
        ValueError: one of them is missing, not SDXL's, or in a format that cannot be trained on;
            the message names it.
    """
    prediction_type, zero_terminal_snr = _read_prediction(base.model)
    path = find_checkpoint(base.model)
    state_dicts: dict[Part, Mapping[str, Tensor]] = {
        "unet": from_ldm("unet", _read_weights("MODEL", _get_patcher("MODEL", base.model), _UNET)),
        **{part: _read_text_encoder(base.clip, part) for part in _TEXT_ENCODERS},
        "vae": _read_vae_weights(base.vae),
    }
    model = build_model(
        state_dicts,
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        name=name_model(base.model),
        path=path,
    )
    keep_quantized(model.unet)
    return model


@torch.inference_mode(False)
def imagine_unet(model: Any) -> UNet2DConditionModel:
    """Return the MODEL's UNet as borrow_model does, but without data, on the meta device.

    Raises:
        ValueError: it is not SDXL's, or in a format that cannot be trained on.
    """
    require_trainable("MODEL", model, _UNET)
    unet = build_model({"unet": _imagine_unet_weights(model)}, name=name_model(model)).unet
    keep_quantized(unet)
    return unet


def check_sdxl(model: Any, clip: Any) -> None:
    """Check MODEL and CLIP as borrow_model does, without reading a weight. None: not connected.

    Raises:
        ValueError: as borrow_model.
    """
    if model is not None:
        _read_prediction(model)
        require_trainable("MODEL", model, _UNET)
        unet_config({name: tuple(weight.shape) for name, weight in _imagine_unet_weights(model).items()})
    if clip is not None:
        _require_sdxl_text_encoders(clip)
        for prefix in _TEXT_ENCODERS.values():
            require_trainable("CLIP", clip.patcher, prefix)


def _imagine_unet_weights(model: Any) -> Mapping[str, Tensor]:
    """By diffusers' names, on the meta device."""
    names = _list_weights(model, _UNET)
    return from_ldm("unet", {name: hollow(model.model.get_parameter(f"{_UNET}{name}")) for name in names})


def get_unet_dtype(model: Any) -> torch.dtype:
    return next(model.model.diffusion_model.parameters()).dtype


def predicts_v(model: Any) -> bool:
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)


def find_ignored_patches(model: Any) -> list[str]:
    """Return the names of the MODEL's patches that only act when sampling, which the training does
    not see.
    """
    options = model.model_options.get("transformer_options", {})
    found = [name for name in model.object_patches if name != "model_sampling"]
    found += [name for name in ("patches", "patches_replace", "wrappers") if options.get(name)]
    return sorted({*found, *(name for name in model.model_options if "function" in name)})


def _get_patcher(socket: str, owner: Any) -> Any:
    """Return the ModelPatcher. Raises ValueError if it changes the model outside of its weights."""
    # ComfyUI makes a VAE without a model of a file that has none
    if owner is None or getattr(owner, "first_stage_model", owner) is None:
        raise ValueError(
            f"{socket} is empty: the loader found none in this file. Use Load Checkpoint with a complete SDXL "
            "checkpoint, or the separate loaders"
        )
    patcher = getattr(owner, "patcher", owner)
    require_plain(socket, patcher)
    _move_to_main_memory(patcher)
    return patcher


def require_plain(socket: str, patcher: Any) -> None:
    """Check that nothing but its weights makes a model what it is.

    Raises:
        ValueError: it carries a LoRA in bypass mode, or hooks.
    """
    if getattr(patcher, "injections", None) or getattr(patcher, "weight_wrapper_patches", None):
        raise ValueError(
            f"{socket} carries a LoRA in bypass mode, which is not part of its weights. Load it without bypass"
        )
    if getattr(patcher, "hook_patches", None) or getattr(patcher, "forced_hooks", None):
        raise ValueError(
            f"{socket} carries hooks (LoRAs that are scheduled over the steps), which are not part of its weights. "
            "Remove them before training"
        )


@torch.inference_mode()
def _move_to_main_memory(patcher: Any) -> None:
    """With --highvram and --gpu-only an unloaded model stays on the GPU. There, a copy in the
    training's precision would be a second one, and VAE and text encoders would stay for the whole
    run.
    """
    if not comfy.model_management.is_device_cpu(patcher.offload_device):
        patcher.unpatch_model(torch.device("cpu"))


def _read_weights(socket: str, patcher: Any, prefix: str) -> dict[str, Tensor]:
    """Return the weights under `prefix`, without that prefix and with patches applied, as normal
    tensors on the same memory.
    """
    require_trainable(socket, patcher, prefix)
    return {name: alias(_read_weight(patcher, f"{prefix}{name}")) for name in _list_weights(patcher, prefix)}


def _list_weights(patcher: Any, prefix: str) -> list[str]:
    """List the names under `prefix`, without it. Scales of inputs are left out: the weights do not
    depend on them.
    """
    names = [name for name, _ in patcher.model.named_parameters()]
    return [
        name.removeprefix(prefix) for name in names if name.startswith(prefix) and not name.endswith(".input_scale")
    ]


def require_trainable(socket: str, patcher: Any, prefix: str) -> None:
    """Check that the weights under `prefix` are plain ones, or in a quantized form of ComfyUI's own
    whose values are those of the weights.

    Raises:
        ValueError: they are not; the message names one.
    """
    require_plain(socket, patcher)
    for name, weight in patcher.model.named_parameters():
        if not name.startswith(prefix):
            continue
        if name.endswith(".pre_quant_scale"):
            raise ValueError(
                f"{socket} is quantized with scales of its inputs ({name}), which cannot be trained on. Load its fp16, "
                "bf16, fp32 or fp8 file"
            )
        if not isinstance(weight, QuantizedTensor) and type(weight.data) is not Tensor:
            raise ValueError(
                f"{socket} holds its weights as {type(weight.data).__name__} ({name}), a quantized form that cannot be "
                "trained on. Load a .safetensors file in fp16, bf16, fp32 or fp8 with ComfyUI's own loaders"
            )


@torch.inference_mode()
def _read_weight(patcher: Any, name: str) -> Tensor:
    """Return a weight in main memory. The device applies the patches, as it does for sampling, but
    the patched weight does not stay there: images and captions are cached first.
    """
    if name not in patcher.patches:
        return patcher.model.get_parameter(name)
    return patcher.patch_weight_to_device(name, device_to=patcher.load_device, return_weight=True).cpu()


def read_in_float32(patcher: Any, name: str) -> Tensor:
    """Return a copy of a weight on the device, with its patches, before ComfyUI rounds it to the
    model's dtype. Its model must be trainable, and unloaded.
    """
    weight = to_floats(patcher.model.get_parameter(name)).to(patcher.load_device, torch.float32, copy=True)
    return comfy.lora.calculate_weight(patcher.patches[name], weight, name) if name in patcher.patches else weight


def _read_text_encoder(clip: Any, part: Part) -> dict[str, Tensor]:
    patcher = _get_patcher("CLIP", clip)
    _require_sdxl_text_encoders(clip)
    weights = _read_weights("CLIP", patcher, _TEXT_ENCODERS[part])
    return {name: to_floats(weight) for name, weight in weights.items() if is_weight(part, name)}


def _require_sdxl_text_encoders(clip: Any) -> None:
    patcher = clip.patcher
    if not all(
        any(name.startswith(prefix) for name, _ in patcher.model.named_parameters())
        for prefix in _TEXT_ENCODERS.values()
    ):
        raise ValueError(
            f"CLIP is not SDXL's but {type(patcher.model).__name__}: SDXL needs CLIP-L and CLIP-G. Use "
            "DualCLIPLoader with type sdxl"
        )
    if clip.layer_idx not in (None, -2):
        raise ValueError(
            f"CLIP Set Last Layer is {clip.layer_idx}; SDXL is trained on the penultimate layer. Set it to -2, or "
            "remove the node"
        )


def _read_vae_weights(vae: Any) -> Mapping[str, Tensor]:
    weights = _read_weights("VAE", _get_patcher("VAE", vae), _VAE)
    try:
        return from_ldm("vae", {name: to_floats(weight) for name, weight in weights.items()})
    except ValueError as error:
        raise ValueError(
            f"VAE is not SDXL's but {type(vae.first_stage_model).__name__}. Load the checkpoint's own VAE or "
            "sdxl_vae.safetensors"
        ) from error


def _read_prediction(model: Any) -> tuple[Any, bool]:
    """Return the prediction type and zero terminal SNR with which the graph samples, the patch of
    ModelSamplingDiscrete included.
    """
    if not isinstance(getattr(model, "model", None), comfy.model_base.SDXL):
        found = type(model.model).__name__ if model is not None else "empty"
        raise ValueError(
            f"MODEL is not SDXL but {found}. Choose an SDXL base model (SDXL 1.0, Pony, Illustrious, NoobAI and "
            "the like)"
        )
    sampling = model.get_model_object("model_sampling")
    noise_levels, predictions = (
        comfy.model_sampling.ModelSamplingDiscrete,
        (comfy.model_sampling.EPS, comfy.model_sampling.V_PREDICTION),
    )
    others = (comfy.model_sampling.ModelSamplingDiscreteEDM, comfy.model_sampling.EDM, comfy.model_sampling.X0)
    if not (isinstance(sampling, noise_levels) and isinstance(sampling, predictions)) or isinstance(sampling, others):
        found = " with ".join(base.__name__ for base in type(sampling).__mro__[1:3])
        raise ValueError(
            f"MODEL samples with {found}; SDXL is trained with epsilon or v_prediction. Remove the ModelSampling "
            "node, or use ModelSamplingDiscrete"
        )
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return "v_prediction", bool(sampling.zsnr)
    return "epsilon", False


def name_model(model: Any) -> str:
    """Name a MODEL by its file, or by its class if that is unknown."""
    path = find_checkpoint(model)
    return path.stem if path else type(model.model).__name__


def find_checkpoint(model: Any) -> Path | None:
    """Return the file that the MODEL's weights came from; None if patches changed them, or the file
    is unknown.
    """
    loaded_with = getattr(model, "cached_patcher_init", None)
    if model.patches or not loaded_with or not loaded_with[1] or not isinstance(loaded_with[1][0], str):
        return None
    return Path(loaded_with[1][0])
