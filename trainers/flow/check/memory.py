"""Estimates the device memory of a flow training: it counts one step of the model's own modules on
tensors without data, with its long runs of equal blocks cut short.

tests/host/test_flow_memory.py compares the estimate with whole steps of the real trainer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...check.memory_estimate import FLOAT32, MemoryEstimate, bytes_per_parameter
from ...training.adapter_layers import find_size
from ...training.adapter_shapes import AdapterSettings, count_parameters, find_highest_rank
from ...training.adapters import wrap_linear_layers
from ...training.block_streaming import BlockStreamer, spread_evenly
from ...training.device import COMPUTE_DTYPES
from ...training.flat_weights import FlatWeights
from ...training.live_memory import LiveMemory
from ...training.loss import per_sample_loss
from ..base_model import Conditions, FlowBaseModel
from ..checkpointing import checkpoint_blocks
from ..config import FlowConfig
from ..lora_names import NETWORK
from ..objective import loss_weights
from ..targets import find_targets, list_blocks
from .shortened import BlockTimeline, shorten
from .without_data import META, running_without_data

ROUGH_SHARE = 1 / 3  # of the weights, that activations take where they cannot be counted


class NotCountable(RuntimeError):
    """A model does something else for other values, such as routing tokens to experts."""


class Activations(NamedTuple):
    """Bytes: the peak of forward and backward pass, and what equal blocks keep between them."""

    peak_bytes: int
    saved_bytes: int


@dataclass(frozen=True)
class FrozenWeights:
    """Bytes of a network's weights and buffers: all, and those of each block."""

    total_bytes: int
    blocks_bytes: tuple[int, ...]

    @classmethod
    def of(cls, network: nn.Module) -> "FrozenWeights":
        return cls(count_bytes(network), tuple(map(count_bytes, list_blocks(network).values())))

    @property
    def num_blocks(self) -> int:
        return len(self.blocks_bytes)

    def count_resident(self, *, num_streamed: int) -> int:
        """Count what stays on the device. The buffers of streamed blocks count as activations."""
        return self.total_bytes - sum(spread_evenly(self.blocks_bytes, num_streamed))


def count_bytes(module: nn.Module) -> int:
    """Count the bytes of a module's weights and buffers, quantized ones as they are stored."""
    return sum(_count_stored(tensor) for tensor in [*module.parameters(), *module.buffers()])


def _count_stored(tensor: Tensor) -> int:
    stored = getattr(tensor, "_qdata", tensor)
    return stored.numel() * stored.element_size()


def count_adapter_parameters(network: nn.Module, targets: Iterable[str], settings: AdapterSettings) -> int:
    return sum(count_parameters([find_size(network.get_submodule(name))], settings.for_name(name)) for name in targets)


def estimate_memory(
    base: FlowBaseModel,
    config: FlowConfig,
    *,
    latent_shape: Sequence[int],
    conditions: Conditions,
    num_streamed: int = 0,
    caching_bytes: int = 0,
    decoding_bytes: int = 0,
) -> MemoryEstimate:
    """Estimate the peak of a training on a GPU, whose largest images have latents of
    `latent_shape`, [C, ...], and whose longest caption gives these conditions. The weights of
    `num_streamed` blocks stay in main memory.

    The base model's network must be on the meta device, and is changed. The gradients in float32
    count in full, as they do from the second micro-batch of a step on. Those that the layers
    compute come while the backward pass gives up what blocks kept, and count as far as they are
    larger.
    """
    weights = FrozenWeights.of(base.network)
    number_bytes = COMPUTE_DTYPES[base.precision].itemsize
    adapter_bytes = bytes_per_parameter(config.optimizer, has_ema=config.ema_decay > 0, number_bytes=number_bytes)
    if number_bytes < FLOAT32:
        adapter_bytes -= number_bytes
    targets = find_targets(base.network, base.family, config.target_modules)
    num_parameters = count_adapter_parameters(base.network, targets, AdapterSettings.of(config, targets))
    is_rough = False
    try:
        activations = count_activations(
            base, config, latent_shape=latent_shape, conditions=conditions, is_streamed=num_streamed > 0
        )
        activations_bytes = activations.peak_bytes + max(0, number_bytes * num_parameters - activations.saved_bytes)
    except NotCountable:
        activations_bytes, is_rough = round(ROUGH_SHARE * weights.total_bytes), True
    return MemoryEstimate(
        weights_bytes=weights.count_resident(num_streamed=num_streamed),
        adapters_bytes=round(num_parameters * adapter_bytes),
        activations_bytes=activations_bytes,
        caching_bytes=caching_bytes,
        samples_bytes=decoding_bytes if config.sample_every_n_steps else 0,
        is_rough=is_rough,
    )


def count_activations(
    base: FlowBaseModel,
    config: FlowConfig,
    *,
    latent_shape: Sequence[int],
    conditions: Conditions,
    is_streamed: bool = False,
    is_whole: bool = False,
) -> Activations:
    """Count the peak bytes of forward and backward pass, without gradients and weights, but with
    the buffers of streamed blocks. With `is_streamed`, all blocks are.

    `is_whole`: with every block, which takes a minute for a large model and gives the same number.
    """
    network = base.network
    runs = [] if is_whole else shorten(network)
    targets = find_targets(network, base.family, config.target_modules)
    # the peak is with all of them; blocks have lost the names that network_reg_dims chooses by
    adapters = replace(
        AdapterSettings.of(config), module_dropout=0.0, rank=find_highest_rank(config), init_lora_weights="kaiming"
    )
    parameters = wrap_linear_layers(network, targets, adapters, component=NETWORK, device=META)
    FlatWeights(parameters, COMPUTE_DTYPES[base.precision])
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    memory = LiveMemory(leave_out=[*network.parameters(), *network.buffers(), *gradients])
    timeline = BlockTimeline(runs, memory)
    blocks = list_blocks(network).values()
    streamer = BlockStreamer(META)
    for block in blocks if is_streamed else ():
        streamer.stream(block)
    if config.gradient_checkpointing or is_streamed:
        checkpoint_blocks(blocks)
    shape, batch_size = (config.train_batch_size, *latent_shape), config.train_batch_size
    try:
        with running_without_data(), memory, base.computing():
            latents, noise = torch.zeros(shape, device=META), torch.zeros(shape, device=META)
            levels = torch.zeros(batch_size, device=META)
            _compute_loss(base, config, latents, noise, levels, [conditions] * batch_size).backward()
    # what torch raises for .item() and numpy without data, and a list that was cut short
    except (RuntimeError, TypeError, IndexError) as error:
        raise NotCountable(f"{base.family.name} cannot be counted without data: {error}") from error
    return Activations(timeline.find_peak(), timeline.count_saved())


def _compute_loss(
    base: FlowBaseModel,
    config: FlowConfig,
    latents: Tensor,
    noise: Tensor,
    levels: Tensor,
    conditions: Sequence[Conditions],
) -> Tensor:
    target = base.target(latents, noise, levels)
    prediction = base.predict(base.add_noise(latents, noise, levels), levels, conditions)
    losses = per_sample_loss(prediction, target) * loss_weights(levels, config.loss_weighting)
    return losses.sum()
