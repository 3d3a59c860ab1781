"""The names of SDXL's modules in a LoRA file: kohya's LDM names, and every other spelling that we
read.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from ..lora.modules import ModuleKey, ModuleNames, flatten_name
from .model.layout import bare_text_name, unet_to_ldm

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"
NEW_TOKENS = "new_tokens"

# In a LoRA's header: the base model as kohya and as ModelSpec name it, and whose names layers have.
BASE_MODEL_VERSION = "sdxl_base_v1-0"
ARCHITECTURE = "stable-diffusion-xl-v1-base/lora"
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"


def module_key(component: str, path: str) -> ModuleKey:
    """Return the key of a module, the same with every version of transformers: 5.x dropped the
    level `text_model`, but only from CLIPTextModel.
    """
    return (component, path if component == UNET else bare_text_name(path))


def kohya_names(unet_modules: Iterable[str], te1_modules: Iterable[str], te2_modules: Iterable[str]) -> ModuleNames:
    """Return the kohya name of every module, such as `lora_unet_input_blocks_4_1_proj_in` for
    `down_blocks.1.attentions.0.proj_in`.

    Pass all modules that `list_weighted_modules` finds, not only the trained ones: LDM block
    numbers count blocks without adapters too, and a file may hold more modules than we train.
    """
    unet_names = {
        module_key(UNET, path): flatten_name(f"lora_unet_{name}") for path, name in unet_to_ldm(unet_modules).items()
    }
    te1_names = {module_key(TEXT_ENCODER, path): _make_text_encoder_name("lora_te1_", path) for path in te1_modules}
    te2_names = {module_key(TEXT_ENCODER_2, path): _make_text_encoder_name("lora_te2_", path) for path in te2_modules}
    names = {**unet_names, **te1_names, **te2_names}
    return ModuleNames(names, _list_spellings(names), main_component=UNET, unused=_UNUSED)


def _make_text_encoder_name(prefix: str, path: str) -> str:
    path = bare_text_name(path)
    level = "" if path == "text_projection" else "text_model_"
    return flatten_name(prefix + level + path)


_PREFIXES = {
    UNET: ("lora_unet_", "unet_", "diffusion_model_", "lycoris_", ""),
    TEXT_ENCODER: ("lora_te1_", "lora_te_", "text_encoder_", "text_encoders_clip_l_transformer_"),
    TEXT_ENCODER_2: ("lora_te2_", "text_encoder_2_", "text_encoders_clip_g_transformer_"),
}


# OneTrainer and others save a projection of text encoder 1, which SDXL does not have.
_UNUSED = {
    prefix + spelling
    for prefix in _PREFIXES[TEXT_ENCODER]
    for spelling in ("text_projection", "text_model_text_projection")
}


def _list_spellings(names: Mapping[ModuleKey, str]) -> Iterator[tuple[str, ModuleKey]]:
    """Yield every spelling of every module, with underscores for dots. Text encoder names need a
    prefix: without one they could belong to either encoder.
    """
    for key, name in names.items():
        for prefix in _PREFIXES[key[0]]:
            for spelling in _list_spellings_without_prefix(key, name):
                yield prefix + spelling, key


def _list_spellings_without_prefix(key: ModuleKey, kohya_name: str) -> set[str]:
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
