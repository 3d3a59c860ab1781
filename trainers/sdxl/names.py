"""The names of SDXL's modules in a LoRA file: kohya's in LDM form, and every spelling that is
read.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from ..lora.modules import ModuleKey, ModuleNames, flatten_name
from .model.layout import bare_text_name, unet_to_ldm

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"


def module_key(component: str, path: str) -> ModuleKey:
    """The key of a module, the same for every transformers version: 5.x dropped the level
    `text_model` from CLIPTextModel only.
    """
    return (component, path if component == UNET else bare_text_name(path))


def kohya_names(unet_modules: Iterable[str], te1_modules: Iterable[str], te2_modules: Iterable[str]) -> ModuleNames:
    """The kohya name of every module, `lora_unet_input_blocks_4_1_proj_in` for
    `down_blocks.1.attentions.0.proj_in`.

    Give all modules that `list_weighted_modules` finds, not only those that are trained: the LDM
    block numbers count blocks without an adapter too, and a file that is read may hold more modules
    than are trained.
    """
    unet_names = {
        module_key(UNET, path): flatten_name(f"lora_unet_{name}") for path, name in unet_to_ldm(unet_modules).items()
    }
    te1_names = {module_key(TEXT_ENCODER, path): _text_encoder_name("lora_te1_", path) for path in te1_modules}
    te2_names = {module_key(TEXT_ENCODER_2, path): _text_encoder_name("lora_te2_", path) for path in te2_modules}
    names = {**unet_names, **te1_names, **te2_names}
    return ModuleNames(names, _spellings(names), main_component=UNET)


def _text_encoder_name(prefix: str, path: str) -> str:
    path = bare_text_name(path)
    level = "" if path == "text_projection" else "text_model_"
    return flatten_name(prefix + level + path)


_PREFIXES = {
    UNET: ("lora_unet_", "unet_", "diffusion_model_", "lycoris_", ""),
    TEXT_ENCODER: ("lora_te1_", "lora_te_", "text_encoder_", "text_encoders_clip_l_transformer_"),
    TEXT_ENCODER_2: ("lora_te2_", "text_encoder_2_", "text_encoders_clip_g_transformer_"),
}


def _spellings(names: Mapping[ModuleKey, str]) -> Iterator[tuple[str, ModuleKey]]:
    """Every spelling of every module, underscores for dots. A text encoder without a prefix is not
    among them: it could be either.
    """
    for key, name in names.items():
        for prefix in _PREFIXES[key[0]]:
            for spelling in _spellings_without_prefix(key, name):
                yield prefix + spelling, key


def _spellings_without_prefix(key: ModuleKey, kohya_name: str) -> set[str]:
    component, path = key
    flat = flatten_name(path)
    if component == UNET:
        return {
            kohya_name.removeprefix("lora_unet_"),
            flat,
            flat.removesuffix("_0") if flat.endswith("_to_out_0") else flat,
        }
    old = re.sub(r"self_attn_(q|k|v|out)_proj$", r"self_attn_to_\1", flat)  # diffusers before 0.20
    return {level + spelling for level in ("", "text_model_") for spelling in (flat, old)}
