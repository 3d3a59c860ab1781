"""How much memory a training on the graph's MODEL needs, counted on a copy of it without data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch

from ...trainers.check.memory_estimate import CUDA_CONTEXT_BYTES, MemoryEstimate
from ...trainers.check.smaller_settings import smaller_settings
from ...trainers.dataset.bucket_sizes import Size
from ...trainers.flow.base_model import Conditions
from ...trainers.flow.check.family_check import FlowEstimate, LatentFormat
from ...trainers.flow.check.memory import FrozenWeights, count_adapter_parameters, estimate_memory
from ...trainers.flow.config import FlowConfig
from ...trainers.flow.families import FlowFamilyRow
from ...trainers.flow.targets import find_targets, list_blocks
from ...trainers.training.adapter_shapes import AdapterSettings
from ...trainers.training.block_streaming import describe_swap
from ...trainers.training.config import AUTO_BLOCKS
from ...trainers.training.sample_prompts import read_size
from .flow_checks import find_pooled_width, find_text_width
from .hollow_model import HollowFlowModel
from .memory_budget import MemoryBudget, can_step_here, count_new_bytes

_USUAL_WIDTH = 4096  # of a text whose layer is unknown
_TILE = 64  # latents: by such tiles ComfyUI decodes images that are too large


@dataclass(frozen=True)
class GraphMemory:
    """A MODEL with what is connected next to it. Without a VAE, samples count nothing."""

    model: Any
    family: FlowFamilyRow
    vae: Any = None

    @property
    def network(self) -> torch.nn.Module:
        return self.model.model.diffusion_model

    def describe_latents(self) -> LatentFormat:
        found = self.model.model.latent_format
        return LatentFormat(found.latent_channels, found.spacial_downscale_ratio, find_text_width(self.network) or 0)

    def estimate(
        self, config: FlowConfig, size_hw: Size, conditions: Conditions, *, num_streamed: int
    ) -> MemoryEstimate:
        with torch.inference_mode(False), torch.enable_grad():
            return estimate_memory(
                HollowFlowModel(self.model, self.family),
                config,
                latent_shape=self._find_latent_shape(size_hw),
                conditions=conditions,
                num_streamed=num_streamed,
                decoding_bytes=self._count_decoding(read_size(config.sample_size) or size_hw),
            )

    def choose(
        self, config: FlowConfig, size_hw: Size, conditions: Conditions, *, free_bytes: int
    ) -> tuple[MemoryEstimate, int]:
        """Return the estimate, and how many blocks keep their weights in main memory: as
        blocks_to_swap says, or as few as it takes to fit.
        """
        weights = FrozenWeights.of(self.network)
        if config.blocks_to_swap != AUTO_BLOCKS:
            number = min(config.blocks_to_swap, weights.num_blocks)
            return self.estimate(config, size_hw, conditions, num_streamed=number), number
        whole = self.estimate(config, size_hw, conditions, num_streamed=0)
        device = comfy.model_management.get_torch_device()
        if comfy.model_management.is_device_cpu(device) or count_new_bytes(whole) <= free_bytes:
            return whole, 0
        found = smallest = self.estimate(config, size_hw, conditions, num_streamed=weights.num_blocks)
        for number in range(1, weights.num_blocks + 1):
            found = replace(smallest, weights_bytes=weights.count_resident(num_streamed=number))
            if count_new_bytes(found) <= free_bytes:
                return found, number
        return found, weights.num_blocks

    def compare(
        self, config: FlowConfig, size_hw: Size, conditions: Conditions, *, free_bytes: int
    ) -> tuple[MemoryBudget, int]:
        """Return the needed and the free memory, and how many blocks' weights are streamed."""
        needed, number = self.choose(config, size_hw, conditions, free_bytes=free_bytes)

        def estimate(changed: FlowConfig, changed_hw: Size) -> MemoryEstimate:
            return self.choose(changed, changed_hw, conditions, free_bytes=free_bytes)[0]

        def find_smaller() -> Sequence[tuple[str, MemoryEstimate]]:
            return smaller_settings(config, size_hw, estimate, works=can_step_here)

        notes = self._explain(number)
        return MemoryBudget.of(needed, find_smaller, free_bytes=free_bytes, notes=notes), number

    def _explain(self, num_streamed: int) -> tuple[str, ...]:
        return (describe_swap(num_streamed, len(list_blocks(self.network))),) if num_streamed else ()

    def count_parameters(self, config: FlowConfig) -> int:
        targets = find_targets(self.network, self.family, config.target_modules)
        return count_adapter_parameters(self.network, targets, AdapterSettings.of(config))

    def imagine(self, config: FlowConfig, size_hw: Size, num_tokens: int) -> FlowEstimate:
        """Estimate for a caption of that many tokens, before anything is encoded."""
        conditions = imagine_conditions(self.network, num_tokens)
        device = comfy.model_management.get_torch_device()
        memory, number = self.choose(
            config,
            size_hw,
            conditions,
            free_bytes=comfy.model_management.get_total_memory(device) - CUDA_CONTEXT_BYTES,
        )
        return FlowEstimate(memory, self.count_parameters(config), self._explain(number))

    def _find_latent_shape(self, size_hw: Size) -> tuple[int, ...]:
        found = self.model.model.latent_format
        height, width = (side // found.spacial_downscale_ratio for side in size_hw)
        time_axis = (1,) if found.latent_dimensions == 3 else ()
        return (found.latent_channels, *time_axis, height, width)

    def _count_decoding(self, size_hw: Size) -> int:
        """Of a tile: ComfyUI decodes in tiles where the whole image does not fit."""
        if self.vae is None:
            return 0
        channels, *time_axis, height, width = self._find_latent_shape(size_hw)
        tile = (1, channels, *time_axis, min(height, _TILE), min(width, _TILE))
        return round(self.vae.patcher.model_size() + self.vae.memory_used_decode(tile, self.vae.vae_dtype))


def imagine_conditions(network: torch.nn.Module, num_tokens: int) -> Conditions:
    """Make what a text encoder of the model would give, in its shapes."""
    text = torch.zeros(1, num_tokens, find_text_width(network) or _USUAL_WIDTH)
    pooled_width = find_pooled_width(network)
    return [text, {} if pooled_width is None else {"pooled_output": torch.zeros(1, pooled_width)}]
