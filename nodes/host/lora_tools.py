"""The tools for finished LoRAs on ComfyUI's sockets: LORA_MODEL, and MODEL and CLIP with their
patches.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_management
from torch import Tensor

from ...trainers.lora.modules import flatten_name
from ...trainers.lora.tools.config import ExtractConfig
from ...trainers.lora.tools.content import LoraContent, make_content, read_file
from ...trainers.lora.tools.extract import LayerPair
from ...trainers.lora.tools.made_lora import MadeLora, extract_lora
from ...trainers.lora.tools.metadata import ExtractedModel
from ...trainers.sdxl.lora_spellings import standard_names
from ...trainers.sdxl.names import ARCHITECTURE, BASE_MODEL_VERSION, IMPLEMENTATION
from ...trainers.wording import name_examples
from .lora import GraphLora, load_lora
from .progress import ComfyHost, cancellable
from .weights import name_model, read_in_float32, require_trainable, unload_models

_HOST = "https://github.com/comfyanonymous/ComfyUI"


def read_graph_lora(lora: Mapping[str, Tensor], label: str) -> LoraContent:
    """Raises ValueError if this is no LoRA, LoHa or LoKr."""
    metadata = lora.metadata if isinstance(lora, GraphLora) else {}
    return make_content(lora, standard_names(), metadata=metadata, label=label)


def load_graph_lora(path: Path) -> GraphLora:
    """Return a file's tensors and its header.

    Raises:
        ValueError: not a complete .safetensors file, or not a LoRA, LoHa or LoKr.
    """
    file = read_file(path)
    content = make_content(
        file.tensors, standard_names(), metadata=file.metadata, settings=file.settings, label=str(path)
    )
    # PEFT's alphas are in the header, which a LORA_MODEL's other readers do not look at
    tensors = content.tensors() if file.settings else file.tensors
    return GraphLora(tensors, metadata=file.metadata, num_modules=len(content.modules))


def as_graph_lora(made: MadeLora) -> GraphLora:
    return GraphLora(made.tensors, metadata=made.metadata, num_modules=made.num_modules)


def extract_in_graph(
    tuned: tuple[Any, Any], base: tuple[Any, Any], config: ExtractConfig, *, title: str
) -> tuple[GraphLora, str]:
    """Extract the difference of two pairs of MODEL and CLIP (which may be None), all their patches
    included.

    Raises:
        ValueError: they are of different kinds, do not differ, or carry what is not in weights.
        RuntimeError: ComfyUI does not load all of the LoRA on the base model.
    """
    host = ComfyHost()
    with cancellable(host):
        unload_models()
        layers = [*_pair_network(tuned[0], base[0]), *_pair_text_encoders(tuned[1], base[1])]
        made = extract_lora(
            _count(layers, host),
            config,
            _describe_model(base[0], title),
            tuned=name_model(tuned[0]),
            device=comfy.model_management.get_torch_device(),
        )
        host.finish(made.text)
    lora = as_graph_lora(made)
    loaded = load_lora(lora, base[0], base[1])
    if loaded.num_modules != made.num_modules:
        raise RuntimeError(
            f"ComfyUI loads {loaded.num_modules} of the {made.num_modules} extracted modules. Not among them: "
            f"{name_examples(loaded.unknown)}"
        )
    return lora, made.text


def _count(layers: list[LayerPair], host: ComfyHost) -> Iterator[LayerPair]:
    show = host.make_counter("extracting")
    for done, layer in enumerate(layers):
        host.check_interrupted()
        show(done, len(layers), layer.name)
        yield layer


def _pair_network(tuned: Any, base: Any) -> list[LayerPair]:
    prefix, suffix = "diffusion_model.", ".weight"
    names = [name for name, _ in base.model.named_parameters() if name.startswith(prefix) and name.endswith(suffix)]
    kohya = {name: f"lora_unet_{flatten_name(name.removeprefix(prefix).removesuffix(suffix))}" for name in names}
    return _pair("MODEL", tuned, base, kohya)


def _pair_text_encoders(tuned: Any, base: Any) -> list[LayerPair]:
    if tuned is None and base is None:
        return []
    if tuned is None or base is None:
        raise ValueError("connect both clip and clip_base, or neither: the LoRA is the difference of the two")
    return _pair("CLIP", tuned.patcher, base.patcher, _name_text_layers(base.cond_stage_model))


def _name_text_layers(encoders: Any) -> dict[str, str]:
    """The name in a LoRA file of each weight: kohya's, of which an only encoder has no number, else
    ComfyUI's.
    """
    places = comfy.lora.model_lora_keys_clip(encoders, {})
    is_only = not any(name.startswith("lora_te2_") for name in places)
    order = ("lora_te_", "lora_te1_") if is_only else ("lora_te1_", "lora_te2_", "lora_te3_")
    names: dict[str, str] = {}
    for prefix in (*order, "text_encoders."):
        for name, weight in places.items():
            if name.startswith(prefix) and isinstance(weight, str) and "embedding" not in weight:
                names.setdefault(weight, name)
    return names


def _pair(socket: str, tuned: Any, base: Any, names: Mapping[str, str]) -> list[LayerPair]:
    """Pair the linear layers and convolutions of two models."""
    for patcher in (tuned, base):
        require_trainable(socket, patcher, "")
    shapes = [
        {name: weight.shape for name, weight in patcher.model.named_parameters() if name in names}
        for patcher in (tuned, base)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the two {socket}s are of different kinds ({type(tuned.model).__name__} and {type(base.model).__name__}), "
            "or of different sizes. Take the model that the other one was made from"
        )
    return [
        LayerPair(names[name], partial(read_in_float32, tuned, name), partial(read_in_float32, base, name))
        for name, shape in shapes[1].items()
        if len(shape) in (2, 4) and _may_differ(tuned, base, name)
    ]


def _may_differ(tuned: Any, base: Any, name: str) -> bool:
    """Two MODELs of one loader share their weights, and differ in patches only."""
    return tuned.model is not base.model or name in tuned.patches or name in base.patches


def _describe_model(model: Any, title: str) -> ExtractedModel:
    if isinstance(model.model, comfy.model_base.SDXL):
        return ExtractedModel(title, BASE_MODEL_VERSION, ARCHITECTURE, IMPLEMENTATION, name_model(model))
    from .flow_training import choose_family

    family = choose_family(model)
    return ExtractedModel(title, family.base_model, family.modelspec_architecture, _HOST, name_model(model))
