"""Applies a LORA_MODEL to MODEL and CLIP as ComfyUI does, and counts the modules that fit."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedLora:
    """`patches` are by weight name. `num_modules` of the LoRA's modules fit the model; `unknown`
    are the names of tensors that do not. `changes_text`: some are for the CLIP.
    """

    patches: dict[Any, Any]
    num_modules: int
    unknown: list[str]
    changes_text: bool


class GraphLora(dict[str, Tensor]):
    """A LORA_MODEL as core's nodes take it: CPU tensors under kohya's names. Save LoRA also uses
    its attributes.

    `metadata` is for the file's header; `num_modules` of its modules load in the model that it was
    trained on.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, metadata: dict[str, str], num_modules: int) -> None:
        super().__init__(tensors)
        self.metadata = metadata
        self.num_modules = num_modules


def load_lora(lora: Mapping[str, Tensor], model: Any, clip: Any) -> LoadedLora:
    """Match the LoRA's modules to weights by ComfyUI's own key map for the MODEL and the CLIP
    (either may be None).
    """
    key_map = comfy.lora.model_lora_keys_unet(model.model, {}) if model is not None else {}
    text_places = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if clip is not None else {}
    key_map.update(text_places)
    tensors = comfy.lora_convert.convert_lora(dict(lora))
    patches = comfy.lora.load_lora(tensors, key_map, log_missing=False)
    unknown = [name for name in tensors if not _has_place(name, key_map)]
    return LoadedLora(patches, len(patches), unknown, bool(patches.keys() & set(text_places.values())))


def _has_place(tensor_name: str, key_map: Mapping[str, Any]) -> bool:
    parts = tensor_name.split(".")
    return any(".".join(parts[:end]) in key_map for end in range(1, len(parts)))


def apply_lora(
    model: Any, clip: Any, lora: Mapping[str, Tensor], *, strength_model: float, strength_clip: float
) -> tuple[Any, Any, LoadedLora]:
    """Return MODEL and CLIP with the LoRA as patches, as core's Load LoRA applies a file. `clip`
    may be None.

    Raises:
        ValueError: no module of the LoRA fits; it was made for another kind of model.
    """
    loaded = load_lora(lora, model, clip)
    if not loaded.patches:
        example = f", such as {next(iter(lora))}" if lora else ""
        raise ValueError(
            f"none of the LoRA's {len(lora)} tensors fits this MODEL or CLIP{example}. Apply it to the kind of "
            "model that it was trained on"
        )
    if loaded.unknown:
        logger.warning(
            "%d tensors of the LoRA fit neither MODEL nor CLIP, such as %s", len(loaded.unknown), loaded.unknown[0]
        )
    patched = patch_models(model, clip, loaded, strength_model=strength_model, strength_clip=strength_clip)
    return *patched, loaded


def patch_models(
    model: Any, clip: Any, loaded: LoadedLora, *, strength_model: float, strength_clip: float
) -> tuple[Any, Any]:
    """Return MODEL and CLIP with the LoRA; those that came in stay as they are. `clip` may be
    None.
    """
    patched_model, patched_clip = model.clone(), clip.clone() if clip is not None else None
    patched_model.add_patches(loaded.patches, strength_model)
    if patched_clip is not None:
        patched_clip.add_patches(loaded.patches, strength_clip)
    return patched_model, patched_clip
