"""Compares the estimate of trainers/sdxl/memory.py with the peak memory of the real UNet on
the meta device.

Forward and backward of the real classes run on tensors without data, and every storage is counted
from its creation to its deletion. Attention uses the flash kernel, dropout the fused one. Memory
that kernels allocate inside is not counted.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.memory import estimate_memory
from trainers.sdxl.model.standard_unet import SDXL_UNET
from trainers.sdxl.step import Batch, Objective, weighted_losses
from trainers.sdxl.targets import find_unet_targets
from trainers.training.adapter_shapes import AdapterSettings
from trainers.training.adapters import attach_adapters
from trainers.training.device import COMPUTE_DTYPES
from trainers.training.flat_weights import FlatWeights
from trainers.training.float8_layers import keep_float8
from trainers.training.live_memory import LiveMemory
from trainers.wording import GIBIBYTE


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Imitate what CUDA's fused kernels keep, on any device."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _flash_attention))
        stack.enter_context(patch.object(F, "dropout", _fused_dropout))
        yield


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """Save query, key, value, output and one number per query and head, as CUDA's kernels do."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


def _fused_dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Save a mask of one byte per value."""
    return torch.native_dropout(values, p, training)[0] if p and training else values


def measure_activations(
    unet: UNet2DConditionModel, *, size_hw: tuple[int, int], batch_size: int, precision: str
) -> int:
    """Return the peak bytes in forward and backward, without weights and gradients, of a UNet with
    adapters on the meta device.
    """
    batch = meta_batch(unet, size_hw=size_hw, batch_size=batch_size, dtype=COMPUTE_DTYPES[precision])
    for parameter in unet.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    gradients = [parameter.grad for parameter in unet.parameters() if parameter.grad is not None]
    objective = Objective(torch.ones(1000, device="meta"), "epsilon", 0.0)
    with LiveMemory(leave_out=[*unet.parameters(), *gradients]) as memory, cuda_kernels():
        weighted_losses(unet, batch, objective).mean().backward()
    return memory.peak_bytes


def meta_batch(unet: UNet2DConditionModel, *, size_hw: tuple[int, int], batch_size: int, dtype: torch.dtype) -> Batch:
    latent_shape = (batch_size, 4, size_hw[0] // 8, size_hw[1] // 8)
    pooled_width = unet.config["projection_class_embeddings_input_dim"] - 6 * unet.config["addition_time_embed_dim"]
    with torch.device("meta"):
        return Batch(
            latents=torch.zeros(latent_shape),
            noise=torch.zeros(latent_shape),
            timesteps=torch.zeros(batch_size, dtype=torch.int64),
            prompt_embeds=torch.zeros(batch_size, 77, unet.config["cross_attention_dim"], dtype=dtype),
            pooled_prompt_embeds=torch.zeros(batch_size, pooled_width, dtype=dtype),
            add_time_ids=torch.zeros(batch_size, 6),
        )


def meta_unet(
    settings: dict[str, Any], config: SDXLConfig, *, precision: str, in_float8: bool = False
) -> UNet2DConditionModel:
    """Make a UNet with adapters as the trainer does, but without storage."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
    if in_float8:
        keep_float8(nn.Module.to(unet, torch.float8_e4m3fn))
    nn.Module.to(unet, COMPUTE_DTYPES[precision])
    targets = find_unet_targets(unet, config.target_modules, with_convolutions=config.conv_rank > 0)
    parameters = attach_adapters(unet, targets, AdapterSettings.of(config, targets), component="unet")
    FlatWeights(parameters, COMPUTE_DTYPES[precision])
    unet.train()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    print(
        "| precision | checkpointing | resolution | batch | measured GB | estimate GB | estimate / measured |\n"
        + "|---" * 7
        + "|"
    )
    for precision, checkpointing in product(("bf16", "no"), (True, False)):
        config = SDXLConfig(rank=options.rank, gradient_checkpointing=checkpointing)
        unet = meta_unet(SDXL_UNET, config, precision=precision)
        for resolution, batch_size in product(options.resolutions, options.batch_sizes):
            size_hw = (resolution, resolution)
            measured = measure_activations(unet, size_hw=size_hw, batch_size=batch_size, precision=precision)
            estimate = estimate_memory(
                unet, replace(config, train_batch_size=batch_size), size_hw=size_hw, precision=precision
            ).activations_bytes
            row = (
                precision,
                "on" if checkpointing else "off",
                resolution,
                batch_size,
                f"{measured / GIBIBYTE:.2f}",
                f"{estimate / GIBIBYTE:.2f}",
            )
            print("| " + " | ".join(map(str, row)) + f" | {estimate / measured:.3f} |", flush=True)


if __name__ == "__main__":
    main()
