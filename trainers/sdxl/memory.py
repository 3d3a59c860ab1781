"""Estimates the device memory of a training from the UNet's structure, in milliseconds.

activations.py counts what the backward pass keeps, smaller_settings.py lists settings that need
less. benchmarks/memory_estimate.py compares the estimate with the real classes.
"""

from collections.abc import Sequence
from dataclasses import replace

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from ..check.memory_estimate import FLOAT32, MemoryEstimate, bytes_per_parameter
from ..dataset.bucket_sizes import Size
from ..training.adapter_layers import find_size
from ..training.adapter_shapes import AdapterSettings, count_parameters
from ..training.adapters import get_base_layer, list_frozen_parameters
from ..training.block_streaming import NUM_BUFFERS
from ..training.device import COMPUTE_DTYPES
from ..training.quantized_linear import BYTES_PER_WEIGHT, find_quantizable
from ..training.sample_prompts import read_size
from .activations import GradientRules, count_products, estimate_forward_peak, estimate_text_peak, estimate_unet_peak
from .config import SDXLConfig
from .samples import MAX_AT_ONCE, TILE_LATENTS
from .streaming import choose_streamed
from .text_encoder_shapes import SDXL_TEXT_ENCODERS, TextEncoderShape

VOCABULARY_SIZE = 49408
VAE_PARAMETERS, VAE_CHANNELS = 83_653_863, 128
VAE_FEATURE_MAPS = 5  # full-size ones that the first level of the encoder holds at once
VAE_DECODER_FEATURE_MAPS = 6  # likewise, of the decoder's last level


def estimate_memory(
    unet: UNet2DConditionModel,
    config: SDXLConfig,
    *,
    size_hw: Size,
    precision: str,
    base_dtype: str = "",
    num_adapter_parameters: int | None = None,
    text_encoders: Sequence[TextEncoderShape] = SDXL_TEXT_ENCODERS,
) -> MemoryEstimate:
    """Estimate the peak of a training on a GPU, for its largest bucket and precision "no", "bf16"
    or "fp16".

    The UNet may be on the meta device and may already have adapters. Gradients count in full, as
    they do from the second micro-batch of a step on. blocks_to_swap -1 counts as 0.
    """
    streamed = choose_streamed(unet, max(config.blocks_to_swap, 0))
    config = replace(config, gradient_checkpointing=config.gradient_checkpointing or bool(streamed))
    rules = GradientRules.of(unet, config, COMPUTE_DTYPES[precision].itemsize)
    trained_encoders = text_encoders if config.train_text_encoders else ()
    running_encoders = text_encoders if config.runs_text_encoders else ()
    if num_adapter_parameters is None:
        of_encoders = (size for shape in trained_encoders for size in shape.list_trained())
        num_adapter_parameters = count_parameters(of_encoders, AdapterSettings.of(config)) + sum(
            count_parameters([find_size(get_base_layer(layer))], settings) for layer, settings in rules.targets.items()
        )
        num_adapter_parameters += config.num_new_tokens * sum(shape.width for shape in text_encoders)
    weights_bytes = rules.number_bytes * sum(shape.num_parameters for shape in running_encoders)
    weights_bytes += _count_weights(unet, rules.number_bytes, base_dtype)
    weights_bytes -= _count_saved(streamed, rules.number_bytes, base_dtype)
    adapter_bytes = bytes_per_parameter(config.optimizer, has_ema=config.ema_decay > 0, number_bytes=rules.number_bytes)
    adapters_bytes = round(num_adapter_parameters * adapter_bytes)
    activations_bytes = config.train_batch_size * (
        estimate_unet_peak(unet, rules, size_hw) + sum(estimate_text_peak(shape, rules) for shape in running_encoders)
    )
    activations_bytes += count_products(rules)
    caching_bytes = max(_estimate_latents_caching(size_hw), _estimate_captions_caching(text_encoders))
    samples_hw = max(size_hw, read_size(config.sample_size) or size_hw, key=lambda size: size[0] * size[1])
    samples_bytes = _estimate_samples(unet, rules.number_bytes, samples_hw) if config.sample_every_n_steps else 0
    return MemoryEstimate(weights_bytes, adapters_bytes, activations_bytes, caching_bytes, samples_bytes)


def _count_weights(module: nn.Module, number_bytes: int, base_dtype: str) -> int:
    """Count the frozen weights of the UNet or of a block: numbers in the dtype of computation,
    those that are quantized already, and those that base_dtype will quantize.
    """
    whole = sum(
        weight.numel() * (number_bytes if weight.is_floating_point() else weight.element_size())
        for weight in list_frozen_parameters(module)
    )
    if not base_dtype:
        return whole
    return whole - round((number_bytes - BYTES_PER_WEIGHT[base_dtype]) * _count_quantizable(module))


def _count_quantizable(module: nn.Module) -> int:
    transformers = [each for each in module.modules() if isinstance(each, Transformer2DModel)]
    if isinstance(module, BasicTransformerBlock):
        transformers = [module]
    return sum(layer.weight.numel() for each in transformers for _, _, layer in find_quantizable(each))


def _count_saved(streamed: Sequence[nn.Module], number_bytes: int, base_dtype: str) -> int:
    """Count the weights that stay in main memory, less the two buffers that they come through."""
    sizes = [_count_weights(block, number_bytes, base_dtype) for block in streamed]
    return sum(sizes) - NUM_BUFFERS * max(sizes, default=0)


def _estimate_latents_caching(size_hw: Size) -> int:
    """Estimate the VAE and what its encoder holds for one image, in float32."""
    return FLOAT32 * (VAE_PARAMETERS + VAE_FEATURE_MAPS * VAE_CHANNELS * size_hw[0] * size_hw[1])


def _estimate_samples(unet: UNet2DConditionModel, number_bytes: int, size_hw: Size) -> int:
    """Estimate the larger of two stages: the UNet draws all seeds at once, twice for guidance; then
    the VAE decodes one image after the other in tiles, in float32.
    """
    drawing_bytes = 2 * MAX_AT_ONCE * estimate_forward_peak(unet, number_bytes, size_hw)
    tile_height, tile_width = (min(length, TILE_LATENTS * 8) for length in size_hw)
    tile_values = VAE_DECODER_FEATURE_MAPS * VAE_CHANNELS * tile_height * tile_width
    image_values = 2 * 3 * size_hw[0] * size_hw[1]  # the tiles, and the image that is made from them
    return max(drawing_bytes, FLOAT32 * (VAE_PARAMETERS + tile_values + image_values))


def _estimate_captions_caching(text_encoders: Sequence[TextEncoderShape]) -> int:
    """Estimate both encoders with weights of two bytes, and the largest weight, a token table, cast
    to float32.
    """
    num_parameters = sum(shape.num_parameters for shape in text_encoders)
    return 2 * num_parameters + FLOAT32 * VOCABULARY_SIZE * max(shape.width for shape in text_encoders)
