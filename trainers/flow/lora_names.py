"""The names of a flow model's modules in a LoRA file: ComfyUI's own module names below
`diffusion_model`, which ComfyUI maps for every model; and every other spelling that we read.
"""

from collections.abc import Iterable, Iterator

from ..lora.modules import ModuleKey, ModuleNames, flatten_name

NETWORK = "diffusion_model"
_PREFIXES = ("diffusion_model_", "transformer_", "lora_unet_", "lycoris_", "")


def name_modules(paths: Iterable[str]) -> ModuleNames:
    """Name each module of the network, such as `diffusion_model.layers.0.attention.qkv`."""
    names = {(NETWORK, path): f"{NETWORK}.{path}" for path in paths}
    return ModuleNames(names, _list_spellings(names), main_component=NETWORK)


def _list_spellings(names: Iterable[ModuleKey]) -> Iterator[tuple[str, ModuleKey]]:
    for key in names:
        for prefix in _PREFIXES:
            yield prefix + flatten_name(key[1]), key
