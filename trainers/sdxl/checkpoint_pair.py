"""Two checkpoint files, layer by layer, for the extraction of a LoRA."""

from functools import partial

import torch

from ..files.weight_file import WeightFile
from ..lora.tools.extract import LayerPair
from ..lora.tools.metadata import ExtractedModel
from ..wording import name_examples
from .checkpoint_layers import list_layers, list_other_weights
from .model.layout import LDM_PREFIX
from .names import ARCHITECTURE, BASE_MODEL_VERSION, IMPLEMENTATION


def pair_layers(tuned: WeightFile, base: WeightFile) -> list[LayerPair]:
    """Pair the layers of two files. Nothing is read before its turn.

    Raises:
        ValueError: one of them is quantized or no model, or they are of different models.
    """
    of_tuned, of_base = list_layers(tuned), list_layers(base)
    common = [name for name in of_base if name in of_tuned]
    missing = [name for name in of_base if name not in of_tuned and name.startswith("lora_unet_")]
    if missing or not common:
        raise ValueError(
            f"{tuned.path} lacks {len(missing)} of the {len(of_base)} layers of {base.path} "
            f"({name_examples(missing)}), so they are models of different kinds"
        )
    return [LayerPair(name, partial(of_tuned[name].read, tuned), partial(of_base[name].read, base)) for name in common]


def list_left_out(tuned: WeightFile, base: WeightFile) -> list[str]:
    """The weights that differ and that a LoRA has no place for, such as biases and norms."""
    others = set(list_other_weights(base, list_layers(base)))
    return [
        name for name in list_other_weights(tuned, list_layers(tuned)) if name in others and _differ(name, tuned, base)
    ]


def _differ(name: str, tuned: WeightFile, base: WeightFile) -> bool:
    weights = [file.read([name])[name] for file in (tuned, base)]
    return weights[0].shape != weights[1].shape or not torch.equal(weights[0].float(), weights[1].float())


def describe_model(base: WeightFile, *, name: str, title: str) -> ExtractedModel:
    """What the LoRA's header says of its base model."""
    is_sdxl = any(weight.startswith(LDM_PREFIX["text_encoder_2"]) for weight in base.names)
    if not is_sdxl:
        return ExtractedModel(title, base_model_name=name)
    return ExtractedModel(title, BASE_MODEL_VERSION, ARCHITECTURE, IMPLEMENTATION, name)
