"""How much device memory a training needs, and which settings need less: an estimate from the
UNet's structure, in milliseconds.

The counts below say which tensors PyTorch keeps for the backward pass, read off the classes of
diffusers 0.42, transformers 5 and PEFT; benchmarks/memory_estimate.py compares them with the real
classes. A number has 4 bytes in float32, and 2 in bf16 and fp16, where autocast still normalizes in
float32. A position is a pixel of a level's feature map.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, dropwhile, zip_longest
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from peft.tuners.lora import LoraLayer
from torch import nn

from ...training.adapters import adapter_layers
from ...training.device import COMPUTE_DTYPES
from ...training.optimizer_table import find_optimizer
from ..config import SDXLConfig
from ..model.sdxl_model import SDXLModel
from ..targets import unet_targets

Size = tuple[int, int]  # (height, width) in pixels

GIB = 2**30
FLOAT32 = 4
CUDA_CONTEXT_BYTES = 600 * 2**20  # a rule of thumb: the driver's context and the kernels of torch, cuBLAS and cuDNN
FRAGMENTATION = 0.05  # a rule of thumb: what the allocator holds beside the tensors, and what kernels allocate inside
NUM_TEXT_TOKENS, VOCABULARY_SIZE = 77, 49408
VAE_PARAMETERS, VAE_CHANNELS = 83_653_863, 128
VAE_FEATURE_MAPS = 5  # that the encoder's first level holds at once, in full size


@dataclass(frozen=True)
class TextEncoderShape:
    width: int
    num_layers: int
    num_parameters: int
    num_trained_layers: int

    @property
    def fans(self) -> int:
        """Parameters of rank 1 adapters: per layer four linear layers of width to width, and two
        between width and 4 x width.
        """
        return self.num_trained_layers * (4 * 2 + 2 * 5) * self.width


SDXL_TEXT_ENCODERS = (TextEncoderShape(768, 12, 123_060_480, 11), TextEncoderShape(1280, 32, 694_659_840, 32))


def text_encoder_shapes(model: SDXLModel) -> tuple[TextEncoderShape, ...]:
    """Those of a model whose text encoders are there; the first one's last layer is never
    trained.
    """
    encoders = [
        (encoder, not_trained)
        for encoder, not_trained in ((model.text_encoder, 1), (model.text_encoder_2, 0))
        if encoder is not None
    ]
    return tuple(
        TextEncoderShape(
            encoder.config.hidden_size,
            encoder.config.num_hidden_layers,
            encoder.num_parameters(),
            encoder.config.num_hidden_layers - not_trained,
        )
        for encoder, not_trained in encoders
    )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device. The caching stages are over, and their models gone, when the training
    stage begins.
    """

    weights_bytes: int  # frozen
    adapters_bytes: int  # with their gradients and the optimizer's states
    activations_bytes: int
    caching_bytes: int  # the larger one of caching latents and captions, weights included
    overhead_bytes: int

    @property
    def training_bytes(self) -> int:
        return self.weights_bytes + self.adapters_bytes + self.activations_bytes

    @property
    def total_bytes(self) -> int:
        return max(self.training_bytes, self.caching_bytes) + self.overhead_bytes

    def text(self) -> str:
        """One line, such as "about 7.1 GB: weights 4.8, adapters 0.6, activations 0.8, CUDA
        0.9".
        """
        parts = {"weights": self.weights_bytes, "adapters": self.adapters_bytes, "activations": self.activations_bytes}
        if self.caching_bytes > self.training_bytes:
            parts = {"caching latents and captions": self.caching_bytes}
        parts["CUDA"] = self.overhead_bytes
        return f"about {self.total_bytes / GIB:.1f} GB: " + ", ".join(
            f"{name} {num_bytes / GIB:.1f}" for name, num_bytes in parts.items()
        )


def bytes_per_parameter(optimizer: str) -> float:
    """Of an adapter: the weight, its gradient, and the optimizer's states."""
    return 2 * FLOAT32 + find_optimizer(optimizer).state_bytes


def estimate_memory(
    unet: UNet2DConditionModel,
    config: SDXLConfig,
    *,
    size_hw: Size,
    precision: str,
    num_adapter_parameters: int | None = None,
    text_encoders: Sequence[TextEncoderShape] = SDXL_TEXT_ENCODERS,
) -> MemoryEstimate:
    """The most that a training holds on a GPU, for its largest bucket and precision "no", "bf16" or
    "fp16".

    The UNet may be on the meta device, and may have its adapters already. Gradients count in full,
    as they do from the second micro-batch of a step on.
    """
    rules = _Rules.of(unet, config, COMPUTE_DTYPES[precision].itemsize)
    trained_encoders = text_encoders if config.train_text_encoders else ()
    if num_adapter_parameters is None:
        num_adapter_parameters = config.rank * (
            sum(map(_fans, rules.targets)) + sum(shape.fans for shape in trained_encoders)
        )
    num_frozen = sum(parameter.numel() for name, parameter in unet.named_parameters() if "lora_" not in name)
    weights_bytes = rules.number_bytes * (num_frozen + sum(shape.num_parameters for shape in trained_encoders))
    adapters_bytes = round(num_adapter_parameters * bytes_per_parameter(config.optimizer))
    activations_bytes = config.train_batch_size * (
        _unet_peak(unet, rules, size_hw) + sum(_text_peak(shape, rules) for shape in trained_encoders)
    )
    if rules.uses_autocast and not rules.checkpointing:
        activations_bytes += rules.number_bytes * num_adapter_parameters  # the adapters' casts
    caching_bytes = max(_latents_caching(size_hw), _captions_caching(text_encoders))
    stage_bytes = max(weights_bytes + adapters_bytes + activations_bytes, caching_bytes)
    return MemoryEstimate(
        weights_bytes,
        adapters_bytes,
        activations_bytes,
        caching_bytes,
        CUDA_CONTEXT_BYTES + round(FRAGMENTATION * stage_bytes),
    )


def smaller_settings(
    config: SDXLConfig, size_hw: Size, estimate: Callable[[SDXLConfig, Size], MemoryEstimate]
) -> list[tuple[str, MemoryEstimate]]:
    """Settings that need less memory, the least harmful first, each with what it leads to on top of
    all before it.

    `estimate` is asked for a configuration and the size of its largest bucket; it resolves the
    configuration's mixed_precision.
    """
    steps = []
    for description, changes, resolution in _changes(config):
        if resolution and size_hw[0] * size_hw[1] <= resolution**2:
            continue
        config, size_hw = replace(config, **changes), _scaled(size_hw, resolution) if resolution else size_hw
        steps.append((description, estimate(config, size_hw)))
    return steps


def _changes(config: SDXLConfig) -> Iterator[tuple[str, dict[str, Any], int]]:
    """What to say, the fields to change, and the resolution or 0."""
    if config.mixed_precision == "no":
        yield "mixed_precision auto", {"mixed_precision": "auto"}, 0
    if not config.gradient_checkpointing:
        yield "gradient_checkpointing on", {"gradient_checkpointing": True}, 0
    if config.train_batch_size > 1:
        num_passes = min(config.gradient_accumulation_steps * config.train_batch_size, 1024)
        changes = {"train_batch_size": 1, "gradient_accumulation_steps": num_passes}
        yield f"train_batch_size 1 with gradient_accumulation_steps {num_passes}", changes, 0
    if config.optimizer == "AdamW":
        yield "optimizer AdamW8bit", {"optimizer": "AdamW8bit"}, 0
    if config.optimizer == "Prodigy":
        yield "optimizer AdamW8bit with learning_rate 1e-4", {"optimizer": "AdamW8bit", "learning_rate": 1e-4}, 0
    if config.train_text_encoders:
        yield "train_text_encoders off", {"train_text_encoders": False}, 0
    yield "resolution 768", {}, 768
    yield "resolution 512", {}, 512
    if config.rank > 8:
        yield "rank 8", {"rank": 8}, 0


def _scaled(size_hw: Size, resolution: int) -> Size:
    scale = resolution / (size_hw[0] * size_hw[1]) ** 0.5
    return round(size_hw[0] * scale / 8) * 8, round(size_hw[1] * scale / 8) * 8


# ---- what the backward pass needs ----


@dataclass(frozen=True)
class _Rules:
    """What decides whether a layer's tensors are kept."""

    targets: frozenset[nn.Module]
    number_bytes: int
    rank: int
    dropout: bool
    checkpointing: bool
    text_encoders_trained: bool

    @classmethod
    def of(cls, unet: UNet2DConditionModel, config: SDXLConfig, number_bytes: int) -> "_Rules":
        names = list(adapter_layers(unet)) or (
            unet_targets(unet, config.target_modules) if config.learning_rate else []
        )
        return cls(
            targets=frozenset(map(unet.get_submodule, names)),
            number_bytes=number_bytes,
            rank=config.rank,
            dropout=config.lora_dropout > 0,
            checkpointing=config.gradient_checkpointing,
            text_encoders_trained=config.train_text_encoders,
        )

    @property
    def uses_autocast(self) -> bool:
        return self.number_bytes < FLOAT32

    def trains(self, module: nn.Module) -> bool:
        """Whether a gradient begins here: at an adapter, or at attention to trained text."""
        return not self.targets.isdisjoint(module.modules()) or (
            self.text_encoders_trained and isinstance(module, Transformer2DModel)
        )

    def layer(self, *, input_bytes: float, saved_bytes: float, working_bytes: float) -> "_Layer":
        """A layer that gradient checkpointing runs again in the backward pass, from its input
        alone.
        """
        if self.checkpointing:
            return _Layer(input_bytes, saved_bytes + working_bytes)
        return _Layer(saved_bytes, working_bytes)


@dataclass(frozen=True)
class _Layer:
    kept_bytes: float  # from its forward to its backward pass
    backward_bytes: float = 0  # besides, while its backward pass runs


def _unet_peak(unet: UNet2DConditionModel, rules: _Rules, size_hw: Size) -> int:
    """Of one picture. The backward pass frees from the last layer to the first, so a layer's finds
    all before it still there.
    """
    needing_gradients = dropwhile(lambda layer: not rules.trains(layer[0]), _layers(unet, size_hw))
    costs = [cost for module, num_positions in needing_gradients for cost in _costs(module, num_positions, rules)]
    kept = accumulate(cost.kept_bytes for cost in costs)
    return round(
        max((kept_bytes + cost.backward_bytes for kept_bytes, cost in zip(kept, costs, strict=True)), default=0)
    )


def _layers(unet: Any, size_hw: Size) -> Iterator[tuple[nn.Module, int]]:
    """The layers in the order in which they run, each with its number of positions."""
    height, width = size_hw[0] // 8, size_hw[1] // 8
    num_positions = []
    for block in unet.down_blocks:
        num_positions.append(height * width)
        yield from _block_layers(block, height * width)
        for sampler in block.downsamplers or ():
            yield sampler, height * width
            height, width = -(-height // 2), -(-width // 2)
    if unet.mid_block is not None:
        yield from _block_layers(unet.mid_block, height * width)
    for block in unet.up_blocks:
        yield from _block_layers(block, num_positions.pop())
        for sampler in block.upsamplers or ():
            yield sampler, num_positions[-1]
    yield unet.conv_norm_out, size_hw[0] * size_hw[1] // 64


def _block_layers(block: Any, num_positions: int) -> Iterator[tuple[nn.Module, int]]:
    for pair in zip_longest(block.resnets, getattr(block, "attentions", ())):
        yield from ((layer, num_positions) for layer in pair if layer is not None)


def _costs(module: Any, num_positions: int, rules: _Rules) -> Iterator[_Layer]:
    number = rules.number_bytes
    match module:
        case ResnetBlock2D():
            yield _resnet_cost(module, num_positions, rules)
        case Transformer2DModel():
            num_values = num_positions * module.inner_dim
            yield _Layer(num_values * (FLOAT32 + number))  # input of the norm, input of proj_in
            for block in module.transformer_blocks:
                yield _transformer_cost(block, num_positions, module.inner_dim, rules)
            yield _Layer(num_values * number)  # input of proj_out
        case Downsample2D() | Upsample2D():
            yield _Layer(num_positions * module.channels * number)  # the convolution's input
        case nn.GroupNorm():
            yield _Layer(num_positions * module.num_channels * (2 * FLOAT32 + number))


def _resnet_cost(resnet: ResnetBlock2D, num_positions: int, rules: _Rules) -> _Layer:
    """Two times: input of the norm, its output for SiLU, input of the convolution, which autograd
    keeps for frozen weights too.
    """
    saved = (resnet.in_channels + resnet.out_channels) * (2 * FLOAT32 + rules.number_bytes)
    if resnet.conv_shortcut is not None and rules.uses_autocast:
        saved += resnet.in_channels * rules.number_bytes  # in float32 it is what the norm keeps
    return rules.layer(
        input_bytes=num_positions * resnet.in_channels * rules.number_bytes,
        saved_bytes=num_positions * saved,
        working_bytes=num_positions * max(resnet.in_channels, resnet.out_channels) * FLOAT32,  # a gradient in float32
    )


def _transformer_cost(block: Any, num_positions: int, width: int, rules: _Rules) -> _Layer:
    number = rules.number_bytes
    norms = 3 * FLOAT32
    # query, key, value, output; query, output; two logsumexp
    attention = 6 * number + 2 * FLOAT32 / block.attn1.inner_dim * block.attn1.heads
    feed_forward = 12 * number  # projection of 8 x width, GELU of 4 x width
    saved = width * (norms + attention + feed_forward) + _adapters_saved(block, width, rules)
    text_keys_and_values = 2 * width * NUM_TEXT_TOKENS * number
    return rules.layer(
        input_bytes=num_positions * width * number,
        saved_bytes=num_positions * saved + text_keys_and_values,
        working_bytes=num_positions * width * 9 * number,  # gradients inside the feed-forward
    )


# What an adapted layer multiplies, and how wide it is. Attention's output is kept by attention
# itself, so it costs nothing more.
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


def _adapters_saved(block: nn.Module, width: int, rules: _Rules) -> int:
    """Bytes per position that the adapters keep: the inputs and outputs of their `down`
    products.
    """
    inputs = [
        _ADAPTER_INPUTS[name]
        for name, layer in block.named_modules()
        if layer in rules.targets and name in _ADAPTER_INPUTS
    ]
    num_values = rules.rank * len(inputs)
    if rules.dropout:  # each its own, and a mask of one byte
        return num_values * rules.number_bytes + sum(max(1, factor) for _, factor in inputs) * width * (
            rules.number_bytes + 1
        )
    if not rules.uses_autocast:  # which casts a norm's output anew for each
        inputs = set(inputs)
    return (num_values + sum(factor for _, factor in inputs) * width) * rules.number_bytes


def _text_peak(shape: TextEncoderShape, rules: _Rules) -> int:
    """Of one caption: per layer two norms, query, key, value, output, two inputs of 4 x width, and
    the casts of the adapters' inputs.
    """
    number = rules.number_bytes
    num_casts = 4 if rules.uses_autocast else 2
    layer_bytes = NUM_TEXT_TOKENS * shape.width * (2 * FLOAT32 + (4 + num_casts + 3 * 4) * number)
    if not rules.checkpointing:
        return shape.num_layers * layer_bytes
    return shape.num_layers * NUM_TEXT_TOKENS * shape.width * FLOAT32 + layer_bytes


def _latents_caching(size_hw: Size) -> int:
    """The VAE and its encoder at work on one picture, in float32."""
    return FLOAT32 * (VAE_PARAMETERS + VAE_FEATURE_MAPS * VAE_CHANNELS * size_hw[0] * size_hw[1])


def _captions_caching(text_encoders: Sequence[TextEncoderShape]) -> int:
    """Both encoders with weights of two bytes, and the largest of them, a table of tokens, cast to
    float32.
    """
    num_parameters = sum(shape.num_parameters for shape in text_encoders)
    return 2 * num_parameters + FLOAT32 * VOCABULARY_SIZE * max(shape.width for shape in text_encoders)


def _fans(layer: nn.Module) -> int:
    """Fan-in and fan-out: the parameters of an adapter of rank 1."""
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    assert isinstance(base, (nn.Linear, nn.Conv2d))
    return base.weight.shape[0] + base.weight[0].numel()
