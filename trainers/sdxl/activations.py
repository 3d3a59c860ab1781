"""How many bytes the backward pass of a training needs: the tensors that PyTorch keeps for it.

The counts come from the classes of diffusers 0.42, transformers 5 and PEFT. A number has 4 bytes in
float32, and 2 in bf16 and fp16. A position is a pixel of a level's feature map.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, dropwhile, zip_longest
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from ..check.memory_estimate import FLOAT32
from ..dataset.bucket_sizes import Size
from ..training.adapter_layers import find_size
from ..training.adapter_shapes import AdapterSettings, LayerSize, factorize
from ..training.adapters import find_adapter_layers, get_base_layer
from ..training.float8_layers import Float8Conv2d
from .config import SDXLConfig
from .targets import find_unet_targets
from .text_encoder_shapes import TextEncoderShape

NUM_TEXT_TOKENS = 77


@dataclass(frozen=True)
class GradientRules:
    """The facts that decide whether PyTorch keeps a layer's tensors."""

    targets: dict[nn.Module, AdapterSettings]
    number_bytes: int
    dropout: bool
    checkpointing: bool
    text_has_gradients: bool

    @classmethod
    def of(cls, unet: UNet2DConditionModel, config: SDXLConfig, number_bytes: int) -> "GradientRules":
        names = list(find_adapter_layers(unet)) or (
            find_unet_targets(unet, config.target_modules, with_convolutions=config.conv_rank > 0)
            if config.learning_rate
            else []
        )
        adapters = AdapterSettings.of(config, names)
        return cls(
            targets={unet.get_submodule(name): adapters.for_name(name) for name in names},
            number_bytes=number_bytes,
            dropout=config.lora_dropout > 0,
            checkpointing=config.gradient_checkpointing,
            text_has_gradients=config.runs_text_encoders,
        )

    def trains(self, module: nn.Module) -> bool:
        """Tell whether a gradient starts here: at an adapter, or at attention to text that has
        one.
        """
        return not self.targets.keys().isdisjoint(module.modules()) or (
            self.text_has_gradients and isinstance(module, Transformer2DModel)
        )

    def keeps_input(self, convolution: nn.Module | None) -> bool:
        """Autograd keeps the input of a convolution even for frozen weights."""
        return convolution in self.targets or not isinstance(convolution, Float8Conv2d)

    def layer(self, *, input_bytes: float, saved_bytes: float, working_bytes: float) -> "_Layer":
        """Make a layer. Gradient checkpointing keeps only its input, and runs it again in the
        backward pass.
        """
        if self.checkpointing:
            return _Layer(input_bytes, saved_bytes + working_bytes)
        return _Layer(saved_bytes, working_bytes)


def estimate_unet_peak(unet: UNet2DConditionModel, rules: GradientRules, size_hw: Size) -> int:
    """Estimate the peak of one image. The backward pass frees memory from the last layer to the
    first: while a layer runs, the tensors of all layers before it are still kept.
    """
    needing_gradients = dropwhile(lambda layer: not rules.trains(layer[0]), _list_layers(unet, size_hw))
    costs = [cost for module, num_positions in needing_gradients for cost in _list_costs(module, num_positions, rules)]
    kept = accumulate(cost.kept_bytes for cost in costs)
    return round(
        max((kept_bytes + cost.backward_bytes for kept_bytes, cost in zip(kept, costs, strict=True)), default=0)
    )


def estimate_forward_peak(unet: UNet2DConditionModel, number_bytes: int, size_hw: Size) -> int:
    """Estimate the peak of one image without gradients: all skip connections, and the widest
    layer.
    """
    widest = max(
        num_positions * _count_forward(module, number_bytes) for module, num_positions in _list_layers(unet, size_hw)
    )
    return sum(_list_skips(unet, size_hw)) * number_bytes + widest


def _list_skips(unet: Any, size_hw: Size) -> Iterator[int]:
    """Yield the number of values in each skip connection."""
    num_positions = size_hw[0] * size_hw[1] // 64
    yield num_positions * unet.conv_in.out_channels
    for block in unet.down_blocks:
        yield from (num_positions * resnet.out_channels for resnet in block.resnets)
        for sampler in block.downsamplers or ():
            num_positions = -(-num_positions // 4)
            yield num_positions * sampler.channels


def _count_forward(module: Any, number_bytes: int) -> int:
    """Count the bytes per position: a ResNet block's input twice, its norm and activation; a
    transformer's projections of 8 x, 4 x and 4 x width, and six tensors of its width.
    """
    match module:
        case ResnetBlock2D():
            return 4 * module.in_channels * number_bytes
        case Transformer2DModel():
            return 22 * module.inner_dim * number_bytes
    return 0


def estimate_text_peak(shape: TextEncoderShape, rules: GradientRules) -> int:
    """Estimate the peak of one caption: per layer two norms and their outputs, query, key, value,
    output, and three tensors of 4 x width.
    """
    values = NUM_TEXT_TOKENS * shape.width * rules.number_bytes
    layer_bytes = (2 + 2 + 4 + 3 * 4) * values
    if not rules.checkpointing:
        return shape.num_layers * layer_bytes
    return shape.num_layers * values + layer_bytes


@dataclass(frozen=True)
class _Layer:
    kept_bytes: float  # from its forward to its backward pass
    backward_bytes: float = 0  # in addition, while its backward pass runs


def _list_layers(unet: Any, size_hw: Size) -> Iterator[tuple[nn.Module, int]]:
    """Yield the layers in the order they run, each with its number of positions."""
    height, width = size_hw[0] // 8, size_hw[1] // 8
    num_positions = []
    for block in unet.down_blocks:
        num_positions.append(height * width)
        yield from _list_block_layers(block, height * width)
        for sampler in block.downsamplers or ():
            yield sampler, height * width
            height, width = -(-height // 2), -(-width // 2)
    if unet.mid_block is not None:
        yield from _list_block_layers(unet.mid_block, height * width)
    for block in unet.up_blocks:
        yield from _list_block_layers(block, num_positions.pop())
        for sampler in block.upsamplers or ():
            yield sampler, num_positions[-1]
    yield unet.conv_norm_out, size_hw[0] * size_hw[1] // 64


def _list_block_layers(block: Any, num_positions: int) -> Iterator[tuple[nn.Module, int]]:
    for pair in zip_longest(block.resnets, getattr(block, "attentions", ())):
        yield from ((layer, num_positions) for layer in pair if layer is not None)


def _list_costs(module: Any, num_positions: int, rules: GradientRules) -> Iterator[_Layer]:
    number = rules.number_bytes
    match module:
        case ResnetBlock2D():
            yield _count_resnet(module, num_positions, rules)
        case Transformer2DModel():
            num_values = num_positions * module.inner_dim
            yield _Layer(2 * num_values * number)  # input of the norm, input of proj_in
            for block in module.transformer_blocks:
                yield _count_transformer(block, num_positions, module.inner_dim, rules)
            yield _Layer(num_values * number)  # input of proj_out
        case Downsample2D() | Upsample2D():
            yield _Layer(num_positions * module.channels * number * rules.keeps_input(module.conv))
        case nn.GroupNorm():
            yield _Layer(3 * num_positions * module.num_channels * number)


def _count_resnet(resnet: ResnetBlock2D, num_positions: int, rules: GradientRules) -> _Layer:
    """Count twice: the input of the norm, its output for SiLU, and the input of the convolution."""
    values = num_positions * rules.number_bytes
    convolutions = ((resnet.conv1, resnet.in_channels), (resnet.conv2, resnet.out_channels))
    return rules.layer(
        input_bytes=values * resnet.in_channels,
        saved_bytes=values * sum(channels * (2 + rules.keeps_input(conv)) for conv, channels in convolutions),
        working_bytes=values * max(resnet.in_channels, resnet.out_channels),  # a gradient
    )


def _count_transformer(block: Any, num_positions: int, width: int, rules: GradientRules) -> _Layer:
    number = rules.number_bytes
    norms = 3 * number
    # query, key, value, output; query, output; two logsumexp
    attention = 6 * number + 2 * FLOAT32 / block.attn1.inner_dim * block.attn1.heads
    feed_forward = 12 * number  # projection of 8 x width, GELU of 4 x width
    saved = width * (norms + attention + feed_forward) + _count_adapter_inputs(block, width, rules)
    text_keys_and_values = 2 * width * NUM_TEXT_TOKENS * number
    return rules.layer(
        input_bytes=num_positions * width * number,
        saved_bytes=num_positions * saved + text_keys_and_values,
        working_bytes=num_positions * width * 9 * number,  # gradients inside the feed-forward
    )


# The input of each adapted layer and its width, in multiples of the block's. Attention keeps its
# own output anyway, so that costs nothing.
_ADAPTER_INPUTS = {
    "attn1.to_q": ("norm1", 1),
    "attn1.to_k": ("norm1", 1),
    "attn1.to_v": ("norm1", 1),
    "attn1.to_out.0": ("attn1", 0),
    "attn2.to_q": ("norm2", 1),
    "attn2.to_out.0": ("attn2", 0),
    "ff.net.0.proj": ("norm3", 1),
    "ff.net.2": ("gelu", 4),
}


def _count_adapter_inputs(block: nn.Module, width: int, rules: GradientRules) -> int:
    """Count the bytes per position that the adapters keep: their inputs, and what is between their
    products.
    """
    layers = {
        name: layer for name, layer in block.named_modules() if layer in rules.targets and name in _ADAPTER_INPUTS
    }
    inputs = [_ADAPTER_INPUTS[name] for name in layers]
    num_values = sum(_count_between(find_size(get_base_layer(each)), rules.targets[each]) for each in layers.values())
    if rules.dropout:  # each adapter keeps its own input, and a mask of one byte
        return num_values * rules.number_bytes + sum(max(1, factor) for _, factor in inputs) * width * (
            rules.number_bytes + 1
        )
    return (num_values + sum(factor for _, factor in set(inputs)) * width) * rules.number_bytes


def _count_between(size: LayerSize, settings: AdapterSettings) -> int:
    """Count the values per position between the products of a linear layer's adapter, which the
    backward pass needs. A DoRA also keeps the scaled input.
    """
    match settings.kind:
        case "loha":
            return 0
        case "lokr":
            small_out, _ = factorize(size.outputs, settings.lokr_factor)
            small_in, _ = factorize(size.inputs, settings.lokr_factor)
            return size.outputs // small_out * small_in
        case "dora":
            return settings.rank + size.inputs
    return settings.rank


def count_products(rules: GradientRules) -> int:
    """Count the bytes of the products of matrices, as large as a weight, that the backward pass of
    a LoHa holds at once: two products, two gradients and what comes from them.
    """
    sizes = [find_size(get_base_layer(layer)) for layer, settings in rules.targets.items() if settings.kind == "loha"]
    largest = max((size.outputs * size.inputs * math.prod(size.kernel) for size in sizes), default=0)
    return 4 * largest * rules.number_bytes
