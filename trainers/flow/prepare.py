"""Prepares a flow model for training: caches latents and conditions, attaches adapters."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from ..dataset.crop_plan import TrainingItem
from ..files.tensor_cache import TensorCache
from ..lora.modules import ModuleNames
from ..training.adapter_shapes import AdapterSettings
from ..training.adapters import (
    AdaptedComponent,
    AdaptedModel,
    group_parameters,
    unwrap_linear_layer,
    wrap_linear_layers,
)
from ..training.block_streaming import spread_evenly
from ..training.config import AUTO_BLOCKS
from ..training.device import COMPUTE_DTYPES
from ..training.distributed import World
from ..training.evaluation import evaluating
from ..training.events import Notice, StageStarted
from ..training.host import Host
from ..training.latent_store import LatentStore, cache_latents
from ..training.layer_values import find_layer_values
from ..training.masks import MaskStore
from ..training.plan import TrainingPlan
from ..wording import name_examples, pluralize
from .base_model import Conditions, FlowBaseModel
from .checkpointing import checkpoint_blocks
from .config import FlowConfig
from .encode import ConditionStore, encode_image
from .lora_names import NETWORK, name_modules
from .prepared_model import PreparedFlow
from .prompt import find_largest_prompt, list_prompts
from .start import Start, read_start
from .targets import AUTO, find_targets, is_linear, list_blocks


def prepare_flow(
    plan: TrainingPlan[FlowConfig],
    base: FlowBaseModel,
    host: Host,
    *,
    hashes: dict[str, str],
    cache: TensorCache,
    world: World,
    plan_memory: Callable[[Conditions, Host], int],
) -> PreparedFlow:
    """Cache latents, masks and conditions, free the device of the encoders, and attach adapters.
    `plan_memory` is called before images are encoded, so that users read early what the training
    needs.
    """
    config = plan.settings.training
    names = name_modules(name for name, module in base.network.named_modules() if is_linear(module))
    targets = find_targets(base.network, base.family, config.target_modules)
    adapters = AdapterSettings.of(config, targets)
    layer_rates = find_layer_values(config.network_reg_lrs, targets, setting="network_reg_lrs")
    start = read_start(config, base.network, targets)
    _add_targets(start, targets, host)
    conditions = _make_condition_store(base, hashes, cache)
    largest = find_largest_prompt(plan, base.count_tokens)
    conditions.encode_one(largest, base)
    num_streamed = plan_memory(conditions.get(largest), host)
    masks = MaskStore(cache, pixels_per_latent=base.pixels_per_latent)
    remedy = "The VAE may be damaged, or need another precision: start ComfyUI with --fp32-vae"
    latents = LatentStore(cache, kind="flow latents", model_hash=hashes["VAE"], remedy=remedy)
    cache_latents(plan, latents, masks, partial(encode_image, base), host, world)
    _cache_conditions(plan, base, conditions, host, world)
    base.release_encoders()
    host.release_memory()
    sampling = base.family.timestep_sampling if config.timestep_sampling == "auto" else config.timestep_sampling
    wrap_linear_layers(base.network, targets, adapters, component=NETWORK, device=host.device)
    adapted = _describe_adapters(config, base, names, torch.float32, layer_rates)
    model = PreparedFlow(plan, host, base, adapted, latents, masks, conditions, sampling)
    _load(model, num_streamed if config.blocks_to_swap == AUTO_BLOCKS else config.blocks_to_swap)
    _drop_idle_layers(model, config, kept={path for _, path in start})
    model.adapted = _describe_adapters(config, base, names, COMPUTE_DTYPES[base.precision], layer_rates)
    if start:
        model.adapted.load(start)
    return model


def _make_condition_store(base: FlowBaseModel, hashes: Mapping[str, str], cache: TensorCache) -> ConditionStore:
    ways = {"vae": hashes["VAE"], "way": base.family.control_images.way} if base.family.control_images else {}
    return ConditionStore(cache, text_hash=hashes["CLIP"], control_facts=ways)


def _load(model: PreparedFlow, num_streamed: int) -> None:
    """Bring the network to the device, but for the weights of blocks that stay in main memory."""
    blocks = list(list_blocks(model.base.network).values())
    streamed = spread_evenly(blocks, num_streamed)
    model.base.load_network(without=streamed)
    if streamed:
        model.stream_weights(streamed)
        model.host.report(Notice(model.streamer.describe(len(blocks))))
    elif model.config.gradient_checkpointing:
        checkpoint_blocks(blocks)


def _cache_conditions(
    plan: TrainingPlan[FlowConfig], base: FlowBaseModel, store: ConditionStore, host: Host, world: World
) -> None:
    prompts = list_prompts(plan)
    host.report(StageStarted("caching", len(prompts)))
    if not world.is_main:  # they are few: one process encodes them for all
        world.wait_for_all()
    store.encode(prompts, base, host)
    if world.is_main and world.size > 1:
        world.wait_for_all()


def _add_targets(start: Start, targets: list[str], host: Host) -> None:
    """Train the layers of the file that the settings do not choose, too."""
    added = [path for _, path in start if path not in targets]
    targets += added
    if added:
        host.report(
            Notice(
                f"network_weights: {pluralize(len(added), 'layer')} of the file that the settings do not choose "
                f"{'is' if len(added) == 1 else 'are'} trained too: {name_examples(added)}"
            )
        )


def _describe_adapters(
    config: FlowConfig,
    base: FlowBaseModel,
    names: ModuleNames,
    dtype: torch.dtype,
    layer_rates: Mapping[str, float],
) -> AdaptedModel:
    groups = group_parameters(
        base.network, "unet", config.learning_rate, layer_rates, loraplus_lr_ratio=config.loraplus_lr_ratio
    )
    return AdaptedModel({NETWORK: AdaptedComponent(base.network, groups)}, names, dtype=dtype)


def _drop_idle_layers(model: PreparedFlow, config: FlowConfig, *, kept: set[str]) -> None:
    """Take the LoRA from layers that have no effect on the output, such as the last block's text
    stream of some models: one backward pass tells them, as they get no gradient.
    """
    if config.target_modules != AUTO:
        return
    item = min(model.plan.crops.items, key=lambda item: item.crop.target_hw[0] * item.crop.target_hw[1])
    gradients = _find_gradients(model, item)
    layers = model.adapted.name_layers()
    idle = [path for path in layers if path not in kept and not gradients[path]]
    if len(idle) == len(layers):  # the base model answers the same to everything
        return
    for path in idle:
        unwrap_linear_layer(model.base.network, path)
    if idle:
        model.host.report(
            Notice(f"{pluralize(len(idle), 'layer')} without effect on the output get no LoRA: {name_examples(idle)}")
        )


def _find_gradients(model: PreparedFlow, item: TrainingItem) -> dict[str, bool]:
    """Tell for each adapted layer whether a gradient reaches it."""
    layers = model.adapted.name_layers()
    with evaluating(*layers.values()):  # dropout would leave some of them without a gradient
        for loss in model.loss_terms([item], 1):
            loss.sum().backward()
    found = {path: any(_has_gradient(p) for p in layer.parameters()) for path, layer in layers.items()}
    for group in model.adapted.groups:
        group.weights.forget_gradients()
    return found


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())
