"""Which parts of SDXL's UNet may keep their weights in main memory, and how many must."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ..check.memory_estimate import FRAGMENTATION, MemoryEstimate
from ..training.block_streaming import describe_swap, spread_evenly
from ..training.config import AUTO_BLOCKS
from .config import SDXLConfig


def list_blocks(unet: UNet2DConditionModel) -> list[nn.Module]:
    """Return the modules that diffusers' gradient checkpointing computes again: first the
    transformer blocks (70), which have most of the weights, then the ResNet blocks (16).
    """
    return [*_list_transformers(unet), *_list_resnets(unet)]


def choose_streamed(unet: UNet2DConditionModel, number: int) -> list[nn.Module]:
    """Choose so many blocks for main memory, transformer blocks first."""
    transformers = _list_transformers(unet)
    others = max(number - len(transformers), 0)
    return [*spread_evenly(transformers, number), *spread_evenly(_list_resnets(unet), others)]


def resolve_blocks_to_swap(
    config: SDXLConfig,
    unet: UNet2DConditionModel,
    estimate: Callable[[SDXLConfig], MemoryEstimate],
    *,
    free_bytes: int | None,
) -> SDXLConfig:
    """Return the config with a number for blocks_to_swap: as few blocks as it takes for the
    training to fit into the free memory of the device. None: it has no memory of its own.
    """
    if config.blocks_to_swap != AUTO_BLOCKS:
        return config

    def fits(number: int) -> bool:
        needed = estimate(replace(config, blocks_to_swap=number))
        return free_bytes is None or (1 + FRAGMENTATION) * needed.training_bytes <= free_bytes

    num_blocks = len(list_blocks(unet))
    number = 0 if fits(0) else min(1 + bisect_left(range(1, num_blocks + 1), True, key=fits), num_blocks)
    return replace(config, blocks_to_swap=number)


def describe_blocks_to_swap(config: SDXLConfig, unet: UNet2DConditionModel) -> tuple[str, ...]:
    """Return a line for the user, or none if all weights stay on the device."""
    num_blocks = len(list_blocks(unet))
    number = min(config.blocks_to_swap, num_blocks)
    return (describe_swap(number, num_blocks),) if number > 0 else ()


def _list_transformers(unet: UNet2DConditionModel) -> list[nn.Module]:
    return [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


def _list_resnets(unet: UNet2DConditionModel) -> list[nn.Module]:
    """All but one: diffusers keeps the activations of the middle's first."""
    kept = unet.mid_block.resnets[0] if unet.mid_block is not None else None
    return [module for module in unet.modules() if isinstance(module, ResnetBlock2D) and module is not kept]
