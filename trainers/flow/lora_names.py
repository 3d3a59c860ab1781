"""The names of a flow model's modules in a LoRA file, and every other spelling that we read.

They are kohya's, made of ComfyUI's own module names: ComfyUI maps them for every model, and they
are the only ones from which diffusers loads all layers of Z-Image, FLUX.2 and Qwen-Image at the
right strength.
"""

from collections.abc import Iterable, Iterator

from ..lora.modules import ModuleKey, ModuleNames, flatten_name

NETWORK = "diffusion_model"
_PREFIXES = ("lora_unet_", "diffusion_model_", "transformer_", "lycoris_", "")


def name_modules(paths: Iterable[str]) -> ModuleNames:
    """Name each module of the network, such as `lora_unet_layers_0_attention_qkv`."""
    names = {(NETWORK, path): f"lora_unet_{flatten_name(path)}" for path in paths}
    return ModuleNames(names, _list_spellings(names), main_component=NETWORK)


def _list_spellings(names: Iterable[ModuleKey]) -> Iterator[tuple[str, ModuleKey]]:
    for key in names:
        for prefix in _PREFIXES:
            yield prefix + flatten_name(key[1]), key
