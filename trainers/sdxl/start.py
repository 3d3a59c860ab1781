"""What can be checked before a training: its optimizer, and the LoRA that it starts from, alone and
against the model.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..lora.modules import AdapterModule, ModuleKey, ModuleNames, clone_module
from ..lora.read import check_sdxl_tensors, list_ranks, load_tensors, read_lora
from ..training.adapter_layers import find_size
from ..training.adapter_shapes import AdapterSettings, find_highest_rank
from ..training.adapters import require_kind, require_rank, require_same_shapes
from ..training.events import Notice
from ..training.host import Host
from ..training.optimizers import check_optimizer
from ..wording import name_examples, pluralize
from .config import SDXLConfig
from .model.sdxl_model import SDXLModel
from .names import NEW_TOKENS, TEXT_ENCODER, TEXT_ENCODER_2, UNET, module_key

Start = dict[ModuleKey, AdapterModule]
_NOTHING_TRAINED = (
    "learning_rate is 0 and the text encoders are not trained, so nothing would be trained. Set learning_rate"
)


def get_learning_rates(config: SDXLConfig) -> dict[str, float]:
    """The learning rate of each part that can be trained; 0: it is not."""
    return {
        UNET: config.learning_rate,
        TEXT_ENCODER: config.text_encoder_learning_rate if config.train_text_encoders else 0.0,
        TEXT_ENCODER_2: config.text_encoder_2_learning_rate if config.train_text_encoders else 0.0,
    }


def check_settings(config: SDXLConfig) -> None:
    """Check what needs no model: the optimizer with its arguments and learning rates, and that
    network_weights is a LoRA that this run can start from.

    Raises:
        ValueError, ImportError: it is not so.
    """
    rates = {part: rate for part, rate in get_learning_rates(config).items() if rate}
    if not rates:
        raise ValueError(_NOTHING_TRAINED)
    if config.num_new_tokens:
        rates[NEW_TOKENS] = config.token_learning_rate
    check_optimizer(config, rates)
    if config.network_weights:
        label = f"network_weights: {config.network_weights}"
        tensors, _ = load_tensors(Path(config.network_weights), label=label)
        check_sdxl_tensors(tensors, label)
        require_kind(tensors, config.adapter)
        require_rank(list_ranks(tensors), find_highest_rank(config))


def read_start(
    config: SDXLConfig,
    model: SDXLModel,
    names: ModuleNames,
    targets: dict[str, list[str]],
    adapters: AdapterSettings,
    host: Host,
) -> Start:
    """Read network_weights. Adds to `targets` the layers of trained parts that the file trains and
    the settings do not choose, such as convolutions and the projection of text encoder 2.

    Raises:
        ValueError: the file cannot be read, is not a LoRA for this model, has a higher rank than
            this run, or a layer that cannot be trained.
    """
    unused: list[str] = []
    label = f"network_weights: {config.network_weights}"
    start = read_lora(Path(config.network_weights), names, pass_over=unused.extend)
    unused += _drop_last_layer(start, config, model, names)
    if unused:
        host.report(
            Notice(
                f"{label}: {pluralize(len(unused), 'entry')} passed over that SDXL does not use: "
                f"{name_examples(unused)}"
            )
        )
    _require_trained_parts(start, targets, names, label)
    layers = _collect_layers(model, start)
    _require_sizes(start, layers, names, label, adapters)
    added = _add_targets(start, targets, layers, names)
    if added:
        host.report(
            Notice(
                f"{label}: {pluralize(len(added), 'layer')} of the file that the settings do not choose "
                f"{'is' if len(added) == 1 else 'are'} trained too: {name_examples(added)}"
            )
        )
    return {key: clone_module(module) for key, module in start.items()}  # the file may change meanwhile


def _drop_last_layer(start: Start, config: SDXLConfig, model: SDXLModel, names: ModuleNames) -> list[str]:
    """Drop the last layer of text encoder 1: sd-scripts saves it, but SDXL never uses it."""
    assert model.text_encoder is not None
    last = f"encoder.layers.{model.text_encoder.config.num_hidden_layers - 1}."
    dropped = [key for key in start if key[0] == TEXT_ENCODER and key[1].startswith((last, "final_layer_norm"))]
    for key in dropped:
        del start[key]
    return [names[key] for key in dropped]


def _require_trained_parts(start: Start, targets: Mapping[str, list[str]], names: ModuleNames, label: str) -> None:
    """Check that every part of the model that the file changes is trained."""
    settings = {
        UNET: "learning_rate above 0",
        TEXT_ENCODER: "train_text_encoders on and text_encoder_learning_rate above 0",
        TEXT_ENCODER_2: "train_text_encoders on and text_encoder_2_learning_rate above 0",
    }
    for part, setting in settings.items():
        of_part = [names[key] for key in start if key[0] == part]
        if of_part and part not in targets:
            raise ValueError(
                f"{label}: {len(of_part)} modules of the file are not trained in this run, such as {of_part[0]}. "
                f"Set {setting}"
            )


def _collect_layers(model: SDXLModel, start: Start) -> dict[ModuleKey, tuple[str, nn.Module]]:
    """The path and the layer of every module of the file."""
    return {
        key: (path, layer)
        for part in (UNET, TEXT_ENCODER, TEXT_ENCODER_2)
        for path, layer in getattr(model, part).named_modules()
        if (key := module_key(part, path)) in start
    }


def _require_sizes(
    start: Start,
    layers: Mapping[ModuleKey, tuple[str, nn.Module]],
    names: ModuleNames,
    label: str,
    settings: AdapterSettings,
) -> None:
    for key, module in start.items():
        path, layer = layers[key]
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise ValueError(
                f"{label}: {names[key]} cannot be trained: only linear and convolution layers can. Start from a "
                "LoRA without it"
            )
        size = find_size(layer)
        outputs, inputs = size.outputs, size.inputs * math.prod(size.kernel)
        if module.size != (outputs, inputs):
            raise ValueError(
                f"{label}: {names[key]} has {module.size[1]} inputs and {module.size[0]} outputs, this layer {inputs} "
                f"and {outputs}; the file belongs to another base model"
            )
        require_same_shapes(module, size, settings.for_name(path), names[key])


def _add_targets(
    start: Start,
    targets: dict[str, list[str]],
    layers: Mapping[ModuleKey, tuple[str, nn.Module]],
    names: ModuleNames,
) -> list[str]:
    chosen = {(part, path) for part, paths in targets.items() for path in paths}
    added = [key for key in start if (key[0], layers[key][0]) not in chosen]
    for key in added:
        targets[key[0]].append(layers[key][0])
    return [names[key] for key in added]
