"""How much memory a training on the graph's MODEL needs, counted on a copy of it without data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ...trainers.check.memory_estimate import CUDA_CONTEXT_BYTES, MemoryEstimate
from ...trainers.check.smaller_settings import smaller_settings
from ...trainers.dataset.bucket_sizes import Size
from ...trainers.flow.base_model import Conditions
from ...trainers.flow.check.family_check import FlowEstimate, LatentFormat
from ...trainers.flow.check.memory import count_adapter_parameters, estimate_memory
from ...trainers.flow.config import FlowConfig
from ...trainers.flow.families import FlowFamilyRow
from ...trainers.flow.targets import find_targets
from ...trainers.training.sample_prompts import read_size
from ...trainers.wording import format_gigabytes
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
        self, config: FlowConfig, size_hw: Size, conditions: Conditions, *, is_streamed: bool
    ) -> MemoryEstimate:
        with torch.inference_mode(False), torch.enable_grad():
            return estimate_memory(
                HollowFlowModel(self.model, self.family),
                config,
                latent_shape=self._find_latent_shape(size_hw),
                conditions=conditions,
                is_streamed=is_streamed,
                decoding_bytes=self._count_decoding(read_size(config.sample_size) or size_hw),
            )

    def choose(
        self, config: FlowConfig, size_hw: Size, conditions: Conditions, *, free_bytes: int
    ) -> tuple[MemoryEstimate, str]:
        """Return the estimate with all weights on the device, if it fits; else with those of blocks
        in main memory, and why.
        """
        whole = self.estimate(config, size_hw, conditions, is_streamed=False)
        device = comfy.model_management.get_torch_device()
        if comfy.model_management.is_device_cpu(device) or count_new_bytes(whole) <= free_bytes:
            return whole, ""
        reason = (
            f"With all weights on the GPU it would be {format_gigabytes(whole.total_bytes)}, so those of the blocks "
            "stay in main memory and come one by one"
        )
        return self.estimate(config, size_hw, conditions, is_streamed=True), reason

    def compare(
        self, config: FlowConfig, size_hw: Size, conditions: Conditions, *, free_bytes: int
    ) -> tuple[MemoryBudget, bool]:
        """Return the needed and the free memory, and whether the blocks' weights are streamed."""
        needed, reason = self.choose(config, size_hw, conditions, free_bytes=free_bytes)

        def estimate(changed: FlowConfig, changed_hw: Size) -> MemoryEstimate:
            return self.estimate(changed, changed_hw, conditions, is_streamed=bool(reason))

        def find_smaller() -> Sequence[tuple[str, MemoryEstimate]]:
            return smaller_settings(config, size_hw, estimate, works=can_step_here)

        notes = (reason,) if reason else ()
        return MemoryBudget.of(needed, find_smaller, free_bytes=free_bytes, notes=notes), bool(reason)

    def count_parameters(self, config: FlowConfig) -> int:
        targets = find_targets(self.network, self.family, config.target_modules)
        return count_adapter_parameters(self.network, targets, config.rank)

    def imagine(self, config: FlowConfig, size_hw: Size, num_tokens: int) -> FlowEstimate:
        """Estimate for a caption of that many tokens, before anything is encoded."""
        conditions = imagine_conditions(self.network, num_tokens)
        device = comfy.model_management.get_torch_device()
        memory, reason = self.choose(
            config,
            size_hw,
            conditions,
            free_bytes=comfy.model_management.get_total_memory(device) - CUDA_CONTEXT_BYTES,
        )
        return FlowEstimate(memory, self.count_parameters(config), (reason,) if reason else ())

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
