"""How much memory a training on the graph's MODEL needs, counted on a copy of it without data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch

from ...trainers.check.memory_estimate import CUDA_CONTEXT_BYTES, FRAGMENTATION, MemoryEstimate
from ...trainers.check.smaller_settings import smaller_settings
from ...trainers.dataset.bucket_sizes import Size
from ...trainers.flow.base_model import Conditions
from ...trainers.flow.check.family_check import USUAL_LIMIT, FlowEstimate, LatentFormat
from ...trainers.flow.check.memory import FrozenWeights, count_adapter_parameters, estimate_memory
from ...trainers.flow.config import FlowConfig
from ...trainers.flow.families import FlowFamilyRow
from ...trainers.flow.presets import choose_resolution, describe_need
from ...trainers.flow.targets import find_targets, list_blocks
from ...trainers.training.adapter_shapes import AdapterSettings
from ...trainers.training.block_streaming import describe_swap
from ...trainers.training.config import AUTO_BLOCKS
from ...trainers.training.run_settings import RunSettings
from ...trainers.training.sample_prompts import read_size
from ..open_settings import drop_open_settings
from .flow_checks import find_pooled_width, find_text_width
from .hollow_model import HollowFlowModel
from .memory_budget import MemoryBudget, can_step_here, count_new_bytes
from .settings import find_device_bytes

_USUAL_WIDTH = 4096  # of a text whose layer is unknown
_TILE = 64  # latents: by such tiles ComfyUI decodes images that are too large


@dataclass(frozen=True)
class GraphMemory:
    """A MODEL with what is connected next to it. Without a VAE, samples count nothing, and without
    VAE and CLIP, caching.
    """

    model: Any
    family: FlowFamilyRow
    vae: Any = None
    clip: Any = None

    @property
    def network(self) -> torch.nn.Module:
        return self.model.model.diffusion_model

    def describe_latents(self) -> LatentFormat:
        found = self.model.model.latent_format
        return LatentFormat(found.latent_channels, found.spacial_downscale_ratio, find_text_width(self.network) or 0)

    def estimate(
        self,
        config: FlowConfig,
        size_hw: Size,
        conditions: Conditions,
        *,
        num_streamed: int,
        free_bytes: int | None = None,
    ) -> MemoryEstimate:
        """Estimate for images of that size. ComfyUI encodes in what is free (`free_bytes`; None:
        plenty): it then takes parts of a text encoder, and tiles of an image.
        """
        caching_bytes = self._count_caching(size_hw)
        if free_bytes is not None:
            caching_bytes = min(caching_bytes, round(free_bytes / (1 + FRAGMENTATION)))
        with torch.inference_mode(False), torch.enable_grad():
            return estimate_memory(
                HollowFlowModel(self.model, self.family),
                config,
                latent_shape=self._find_latent_shape(size_hw),
                conditions=conditions,
                num_streamed=num_streamed,
                caching_bytes=caching_bytes,
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
            return self.estimate(config, size_hw, conditions, num_streamed=number, free_bytes=free_bytes), number
        whole = self.estimate(config, size_hw, conditions, num_streamed=0, free_bytes=free_bytes)
        device = comfy.model_management.get_torch_device()
        if comfy.model_management.is_device_cpu(device) or count_new_bytes(whole) <= free_bytes:
            return whole, 0
        found = smallest = self.estimate(
            config, size_hw, conditions, num_streamed=weights.num_blocks, free_bytes=free_bytes
        )
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
        return count_adapter_parameters(self.network, targets, AdapterSettings.of(config, targets))

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

    def fit_resolution(
        self, settings: RunSettings[FlowConfig], given: dict[str, Any], memory: str
    ) -> tuple[RunSettings[FlowConfig], str]:
        """Return the settings with the highest resolution that fits `memory` with blocks in main
        memory, unless it is given, and a sentence if none does. The longest captions of the family
        count.
        """
        device_bytes = find_device_bytes(memory)
        if device_bytes is None or "resolution" in drop_open_settings(given):
            return settings, ""
        conditions = imagine_conditions(self.network, self.family.caption_tokens or USUAL_LIMIT)
        config, num_blocks = settings.training, len(list_blocks(self.network))
        number = num_blocks if config.blocks_to_swap == AUTO_BLOCKS else min(config.blocks_to_swap, num_blocks)

        def estimate(resolution: int) -> MemoryEstimate:
            size_hw = resolution, resolution
            return self.estimate(config, size_hw, conditions, num_streamed=number, free_bytes=0)

        resolution, needed = choose_resolution(settings.buckets.resolution, estimate, device_bytes)
        buckets = replace(settings.buckets, resolution=resolution)
        return replace(settings, buckets=buckets), describe_need(needed, resolution, self.family, device_bytes)

    def _find_latent_shape(self, size_hw: Size) -> tuple[int, ...]:
        found = self.model.model.latent_format
        height, width = (side // found.spacial_downscale_ratio for side in size_hw)
        time_axis = (1,) if found.latent_dimensions == 3 else ()
        return (found.latent_channels, *time_axis, height, width)

    def _count_caching(self, size_hw: Size) -> int:
        """Of the text encoder or of the VAE with an image, one after the other."""
        encoder_bytes = 0 if self.clip is None or _is_on_cpu(self.clip.patcher) else self.clip.patcher.model_size()
        if self.vae is None or _is_on_cpu(self.vae.patcher):
            return encoder_bytes
        shape = (1, 3, *((1,) if self.vae.latent_dim == 3 else ()), *size_hw)
        vae_bytes = self.vae.patcher.model_size() + self.vae.memory_used_encode(shape, self.vae.vae_dtype)
        return round(max(encoder_bytes, vae_bytes))

    def _count_decoding(self, size_hw: Size) -> int:
        """Of a tile: ComfyUI decodes in tiles where the whole image does not fit."""
        if self.vae is None:
            return 0
        channels, *time_axis, height, width = self._find_latent_shape(size_hw)
        tile = (1, channels, *time_axis, min(height, _TILE), min(width, _TILE))
        return round(self.vae.patcher.model_size() + self.vae.memory_used_decode(tile, self.vae.vae_dtype))


def _is_on_cpu(patcher: Any) -> bool:
    return comfy.model_management.is_device_cpu(patcher.load_device)


def imagine_conditions(network: torch.nn.Module, num_tokens: int) -> Conditions:
    """Make what a text encoder of the model would give, in its shapes."""
    text = torch.zeros(1, num_tokens, find_text_width(network) or _USUAL_WIDTH)
    pooled_width = find_pooled_width(network)
    others = {} if pooled_width is None else {"pooled_output": torch.zeros(1, pooled_width)}
    layers = getattr(network, "llama_layers", None)
    if layers:  # HiDream takes the layers of a Llama in addition
        others["conditioning_llama3"] = torch.zeros(1, max(layers) + 1, num_tokens, text.shape[-1])
    return [text, others]
