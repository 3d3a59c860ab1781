"""The names of all modules of SDXL base in a LoRA file, in diffusers and in ComfyUI, made without
a model: for tools that have only the file.

SSD-1B, Vega and other relatives have some of these modules, under the same names.
"""

from collections.abc import Iterable, Iterator

from ..lora.modules import ModuleNames
from .model.layout import LDM_PREFIX, bare_text_name, ldm_to_text_encoder_2, ldm_to_unet, unet_to_ldm
from .names import TEXT_ENCODER, TEXT_ENCODER_2, UNET, kohya_names

_NUM_LEVELS, _NUM_DOWN_RESNETS, _NUM_UP_RESNETS, _DEPTH = 3, 2, 3, 10
_LEVELS_WITH_ATTENTION = {"down_blocks": (1, 2), "up_blocks": (0, 1)}
_NUM_LAYERS = {TEXT_ENCODER: 12, TEXT_ENCODER_2: 32}
_RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
_TRANSFORMER_BLOCK = (
    *(f"attn{number}.{layer}" for number in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
)
_ENCODER_LAYER = (
    *(f"self_attn.{layer}_proj" for layer in ("q", "k", "v", "out")),
    *("mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"),
)
_HOST_PREFIXES = {
    UNET: "diffusion_model.",
    TEXT_ENCODER: "text_encoders.clip_l.transformer.",
    TEXT_ENCODER_2: "text_encoders.clip_g.transformer.",
}


def standard_names() -> ModuleNames:
    """Return kohya's name of every module, with the other spellings that we read."""
    return kohya_names(list(_list_unet()), *(list(_list_encoder(part)) for part in (TEXT_ENCODER, TEXT_ENCODER_2)))


def names_of_checkpoint(weight_names: Iterable[str]) -> ModuleNames:
    """Return the same for the modules of a single-file checkpoint of SDXL, of whatever layout.

    Raises:
        ValueError: these are not the weights of one.
    """
    paths = {part: _strip(weight_names, LDM_PREFIX[part]) for part in (UNET, TEXT_ENCODER, TEXT_ENCODER_2)}
    if not all(paths.values()):
        raise ValueError("not an SDXL checkpoint with UNet and both text encoders")
    layers = [name for names in ldm_to_text_encoder_2(paths[TEXT_ENCODER_2]).values() for name in names]
    return kohya_names(
        [name.removesuffix(".weight") for name in ldm_to_unet(paths[UNET]).values()],
        [bare_text_name(name).removesuffix(".weight") for name in paths[TEXT_ENCODER]],
        [name.removesuffix(".weight") for name in layers if name.endswith(".weight")],
    )


def _strip(weight_names: Iterable[str], prefix: str) -> list[str]:
    return [
        name.removeprefix(prefix)
        for name in weight_names
        if name.startswith(prefix)
        and name.endswith((".weight", "in_proj_weight", "text_projection", "positional_embedding"))
    ]


def diffusers_names(names: ModuleNames) -> dict[str, str]:
    """Map each kohya name to that in a LoRA that diffusers saves."""
    return {name: f"{component}.{_add_level(component, path)}" for (component, path), name in names.items()}


def host_names(names: ModuleNames) -> dict[str, str]:
    """Map each kohya name to that of ComfyUI's own weight."""
    ldm = unet_to_ldm(path for component, path in names if component == UNET)
    return {
        name: _HOST_PREFIXES[component] + (ldm[path] if component == UNET else _add_level(component, path))
        for (component, path), name in names.items()
    }


def _add_level(component: str, path: str) -> str:
    return path if component == UNET or path == "text_projection" else f"text_model.{path}"


def _list_unet() -> Iterator[str]:
    yield from ("conv_in", "conv_norm_out", "conv_out")
    yield from (f"{name}_embedding.linear_{number}" for name in ("time", "add") for number in (1, 2))
    for level in range(_NUM_LEVELS):
        yield from _list_level("down_blocks", level, _NUM_DOWN_RESNETS)
        yield from _list_level("up_blocks", level, _NUM_UP_RESNETS)
        if level < _NUM_LEVELS - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv"
            yield f"up_blocks.{level}.upsamplers.0.conv"
    yield from (f"mid_block.resnets.{number}.{layer}" for number in (0, 1) for layer in _RESNET)
    yield from _list_attention("mid_block.attentions.0")


def _list_level(side: str, level: int, num_resnets: int) -> Iterator[str]:
    for number in range(num_resnets):
        yield from (f"{side}.{level}.resnets.{number}.{layer}" for layer in _RESNET)
        if level in _LEVELS_WITH_ATTENTION[side]:
            yield from _list_attention(f"{side}.{level}.attentions.{number}")


def _list_attention(path: str) -> Iterator[str]:
    yield from (f"{path}.{layer}" for layer in ("norm", "proj_in", "proj_out"))
    yield from (f"{path}.transformer_blocks.{block}.{layer}" for block in range(_DEPTH) for layer in _TRANSFORMER_BLOCK)


def _list_encoder(component: str) -> Iterator[str]:
    yield from ("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm")
    for number in range(_NUM_LAYERS[component]):
        yield from (f"encoder.layers.{number}.{layer}" for layer in _ENCODER_LAYER)
    if component == TEXT_ENCODER_2:
        yield "text_projection"
