"""The layers of a checkpoint file by kohya's names: of SDXL with its text encoders, and of the
network of any other model.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ..files.weight_file import WeightFile, open_weights
from ..lora.modules import flatten_name
from .model.layout import LDM_PREFIX, ldm_to_text_encoder_2
from .names import TEXT_ENCODER, TEXT_ENCODER_2, UNET

_NETWORKS = (LDM_PREFIX[UNET], "diffusion_model.")
_NOT_THE_NETWORK = ("conditioner.", "cond_stage_model.", "first_stage_model.", "text_encoders.", "vae.", "model_ema.")
_SD1_TEXT_ENCODER = "cond_stage_model.transformer."
_EMBEDDINGS = ("token_embedding", "position_embedding", "positional_embedding")
_QUANTIZED = (".scale_weight", ".weight_scale", ".weight_scale_2", ".comfy_quant", ".absmax", ".input_scale")


@dataclass(frozen=True)
class CheckpointLayer:
    """A weight of a file, or one of `num_parts` of it along its first axis. `path` is that of its
    module.
    """

    weight_name: str
    path: str
    part: int = 0
    num_parts: int = 1
    is_transposed: bool = False

    def read(self, file: WeightFile) -> Tensor:
        (weight,) = file.read([self.weight_name]).values()
        return weight.T if self.is_transposed else weight.chunk(self.num_parts)[self.part]


@contextmanager
def open_checkpoint(path: Path) -> Iterator[WeightFile]:
    """Raises ValueError if this is no whole .safetensors file."""
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{path}: not a .safetensors file. ComfyUI makes one of any model with Load Checkpoint and Save Checkpoint"
        )
    try:
        with open_weights(path) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole .safetensors file ({error}). Download or copy it again") from error


def list_layers(file: WeightFile) -> dict[str, CheckpointLayer]:
    """Map kohya's names to the layers of the network and of SDXL's (and SD 1.5's) text encoders
    that a LoRA can change: linear layers and convolutions.

    Raises:
        ValueError: the file is quantized, or has no such layers.
    """
    quantized = next((name for name in file.names if name.endswith(_QUANTIZED)), None)
    if quantized:
        raise ValueError(
            f"{file.path}: its weights are quantized with scales ({quantized}). Take the file in fp16, bf16 or fp32"
        )
    found = dict(_list_all(file.names))
    shapes = file.get_shapes({layer.weight_name for layer in found.values()})
    layers = {name: layer for name, layer in found.items() if len(shapes[layer.weight_name]) in (2, 4)}
    if not layers:
        raise ValueError(f"{file.path}: it has no layers that a LoRA could change. Is it a model?")
    return layers


def list_other_weights(file: WeightFile, layers: dict[str, CheckpointLayer]) -> list[str]:
    """The weights of the same parts of the model that a LoRA has no place for, such as biases."""
    taken = {layer.weight_name for layer in layers.values()}
    prefix = _find_network_prefix(file.names)
    parts = (prefix, LDM_PREFIX[TEXT_ENCODER], LDM_PREFIX[TEXT_ENCODER_2], _SD1_TEXT_ENCODER)
    others = [name for name in file.names if name not in taken and name.startswith(parts)]
    return [name for name in others if prefix or not name.startswith(_NOT_THE_NETWORK)]


def _find_network_prefix(names: Collection[str]) -> str:
    return next((prefix for prefix in _NETWORKS if any(name.startswith(prefix) for name in names)), "")


def _list_all(names: Collection[str]) -> Iterator[tuple[str, CheckpointLayer]]:
    open_clip = LDM_PREFIX[TEXT_ENCODER_2]
    prefixes = {
        LDM_PREFIX[TEXT_ENCODER]: "lora_te1_",
        _SD1_TEXT_ENCODER: "lora_te_",
        _find_network_prefix(names): "lora_unet_",
    }
    for name in names:
        if not name.endswith(".weight") or any(part in name for part in _EMBEDDINGS):
            continue
        for prefix, kohya_prefix in prefixes.items():
            if name.startswith(prefix) and (prefix or not name.startswith(_NOT_THE_NETWORK)):
                path = name.removeprefix(prefix).removesuffix(".weight")
                yield kohya_prefix + flatten_name(path), CheckpointLayer(name, path)
                break
    yield from _list_open_clip([name.removeprefix(open_clip) for name in names if name.startswith(open_clip)])


def _list_open_clip(names: list[str]) -> Iterator[tuple[str, CheckpointLayer]]:
    """Text encoder 2 keeps the three matrices of its attention as one, and its projection
    transposed.
    """
    prefix = LDM_PREFIX[TEXT_ENCODER_2]
    known = [name for name in names if not any(part in name for part in (*_EMBEDDINGS, "logit_scale"))]
    for name, paths in ldm_to_text_encoder_2(known).items():
        for part, path in enumerate(paths):
            bare = path.removesuffix(".weight")
            if bare == path:
                continue
            level = "" if bare == "text_projection" else "text_model_"
            layer = CheckpointLayer(prefix + name, bare, part, len(paths), is_transposed=name == "text_projection")
            yield f"lora_te2_{level}{flatten_name(bare)}", layer
