"""Layers with an adapter around a frozen layer of whatever class: LoRA, DoRA, LoHa and LoKr. PEFT's
own layers are in adapters.py.

They compute in the dtype of their input. Letters: O outputs, I inputs times the kernel's pixels, R
rank; L, K and M, N are the factors of outputs and inputs.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

from ..lora.modules import AdapterModule, DoraModule, LohaModule, LokrModule, LoraModule, measure_inputs
from .adapter_shapes import AdapterSettings, LayerSize, list_shapes
from .config import MAX_TIMESTEP
from .quantized_linear import QuantizedLayer

ADAPTER_NAME = "default"


def find_size(layer: nn.Module) -> LayerSize:
    """Return the size of a linear layer of whatever class, or of a convolution."""
    if isinstance(layer, nn.Conv2d):
        return LayerSize(layer.out_channels, layer.in_channels // layer.groups, layer.kernel_size)
    outputs, inputs = (int(getattr(layer, name)) for name in ("out_features", "in_features"))
    return LayerSize(outputs, inputs)


class WrappedLayer(nn.Module):
    """A frozen layer with an adapter that can be switched off."""

    def __init__(self, base_layer: nn.Module, settings: AdapterSettings) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.alpha = settings.alpha
        self.lora_dropout = nn.Dropout(settings.dropout)
        self.disable_adapters = False
        self.strength = 1.0

    def enable_adapters(self, enabled: bool) -> None:
        self.disable_adapters = not enabled

    def __getattr__(self, name: str) -> Any:
        """The model may ask the layer for its weight, its sizes and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)


class LoraLinear(WrappedLayer):
    """A LoRA around a linear layer of whatever class: ComfyUI's quantized layers are no nn.Linear,
    so that PEFT does not know them.
    """

    def __init__(self, base_layer: nn.Module, settings: AdapterSettings, device: torch.device) -> None:
        super().__init__(base_layer, settings)
        inputs, outputs = (int(getattr(base_layer, name)) for name in ("in_features", "out_features"))
        with torch.random.fork_rng(devices=[]):
            down = nn.Linear(inputs, settings.rank, bias=False, device=device)
            up = nn.Linear(settings.rank, outputs, bias=False, device=device)
        self.lora_A = nn.ModuleDict({ADAPTER_NAME: down})
        self.lora_B = nn.ModuleDict({ADAPTER_NAME: up})
        self.scaling = settings.alpha / settings.rank

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return output
        down, up = (each[ADAPTER_NAME].get_parameter("weight").to(x.dtype) for each in (self.lora_A, self.lora_B))
        update = functional.linear(functional.linear(self.lora_dropout(x), down), up)
        return torch.add(output, update, alpha=self.scaling * self.strength)


class AdapterLayer(WrappedLayer):
    """An adapter whose matrices are the parameters of `adapter`, by the names of list_shapes."""

    module_class: type[AdapterModule]

    def __init__(self, base_layer: nn.Module, settings: AdapterSettings, device: torch.device) -> None:
        size = find_size(base_layer)
        settings = settings.for_size(size)
        super().__init__(base_layer, settings)
        self.settings, self.size = settings, size
        self.adapter = nn.ParameterDict()
        for name, shape in list_shapes(self.size, settings).items():  # one by one: given a dict, torch sorts them
            self.adapter[name] = nn.Parameter(torch.zeros(shape, device=device))
        self.scale = settings.alpha / settings.rank

    def matrices(self) -> dict[str, nn.Parameter]:
        return dict(self.adapter.items())

    def make_module(self, matrices: Mapping[str, Tensor]) -> AdapterModule:
        """Return what is saved of these matrices."""
        return self.module_class(alpha=self.alpha, **matrices)  # pyright: ignore[reportCallIssue]

    @abstractmethod
    def start(self, generator: torch.Generator) -> None:
        """Set the first weights, as the reference implementation does, with draws of its own."""

    @abstractmethod
    def load(self, matrices: Mapping[str, Tensor], module: AdapterModule) -> None:
        """Let the matrices act as a module of a file does. They have its shapes, but for the rank
        of a DoRA, which may be lower in the file.
        """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return output
        if self._is_left_out():
            return self._connect(output)
        return torch.add(output, self.compute_update(self.lora_dropout(x)), alpha=self.scale * self.strength)

    def _is_left_out(self) -> bool:
        """Draw whether the base layer answers alone. The draw is on the CPU: nothing waits."""
        share = self.settings.module_dropout if self.training else 0.0
        return share > 0 and torch.rand((), device="cpu").item() < share

    def _connect(self, output: Tensor) -> Tensor:
        """Give an output that the adapter does not change a gradient to it, of zero: a block that
        is computed again, and a loss, must have one even if all modules are left out.
        """
        first = next(iter(self.adapter.values()))
        return torch.add(output, first.flatten()[0].to(output.dtype), alpha=0)

    @abstractmethod
    def compute_update(self, x: Tensor) -> Tensor:
        """Return what the adapter adds to the output, without its strength."""

    def _get(self, name: str, dtype: torch.dtype) -> Tensor:
        return self.adapter[name].to(dtype)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        base = self.base_layer
        return functional.conv2d(x, weight, None, base.stride, base.padding, base.dilation)  # type: ignore[arg-type]


class LowRankLayer(AdapterLayer):
    """A LoRA whose ranks or whose whole can be dropped, and whose ranks may depend on the noise."""

    module_class = LoraModule
    timesteps: Tensor | None = None  # [B] int64 of the inputs, or [1] for all of them, for T-LoRA

    def start(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.adapter["down"].copy_(draw_kaiming(self.adapter["down"].shape, generator))

    def load(self, matrices: Mapping[str, Tensor], module: AdapterModule) -> None:
        assert isinstance(module, LoraModule)
        load_lora(matrices["down"], matrices["up"], module, self.alpha)

    def compute_update(self, x: Tensor) -> Tensor:
        down, up = self._get("down", x.dtype), self._get("up", x.dtype)
        if self.size.kernel:
            return functional.conv2d(self._choose_ranks(self._convolve(x, down), axis=1), up)
        return functional.linear(self._choose_ranks(functional.linear(x, down), axis=-1), up)

    def _choose_ranks(self, low_rank: Tensor, *, axis: int) -> Tensor:
        return self._mask_ranks(self._drop_ranks(low_rank, axis=axis), axis=axis)

    def _mask_ranks(self, low_rank: Tensor, *, axis: int) -> Tensor:
        """Leave out the last ranks, more of them the noisier the input."""
        if self.timesteps is None or not self.training:
            return low_rank
        rank = low_rank.shape[axis]
        kept = count_kept_ranks(self.timesteps, rank=rank, min_rank=self.settings.tlora_min_rank)
        shape = [1] * low_rank.ndim
        shape[0], shape[axis] = len(kept), rank
        mask = torch.arange(rank, device=low_rank.device) < kept.unsqueeze(-1)  # [B, R]
        return low_rank * mask.view(shape).to(low_rank.dtype)

    def _drop_ranks(self, low_rank: Tensor, *, axis: int) -> Tensor:
        """Drop ranks for each item of the batch, and make the others stronger, as in sd-scripts."""
        share = self.settings.rank_dropout if self.training else 0.0
        if not share:
            return low_rank
        shape = [1] * low_rank.ndim
        shape[0], shape[axis] = len(low_rank), low_rank.shape[axis]
        kept = torch.rand(shape, device=low_rank.device) > share
        return low_rank * (kept / (1 - share)).to(low_rank.dtype)


class DoraLayer(LowRankLayer):
    """DoRA with one length for each input, as in the paper and as every loader reads it. PEFT's has
    one for each output.

    Trained is how far each length is from that of the frozen weight: in half precision, the length
    itself would be as wrong as what is learned. Divisors are constants for the backward pass
    (section 4.3 of the paper).
    """

    module_class = DoraModule

    def __init__(self, base_layer: nn.Module, settings: AdapterSettings, device: torch.device) -> None:
        super().__init__(base_layer, settings, device)
        self.base_lengths: Tensor  # [in] float32
        with torch.no_grad():
            lengths = measure_inputs(read_weight(base_layer, torch.float32)).flatten()
        self.register_buffer("base_lengths", lengths.to(device), persistent=False)

    def make_module(self, matrices: Mapping[str, Tensor]) -> DoraModule:
        magnitude = self.base_lengths.to(matrices["offset"].device) + matrices["offset"]
        shape = (1, -1, *(1 for _ in self.size.kernel))
        return DoraModule(matrices["down"], matrices["up"], self.alpha, magnitude.view(shape))

    def load(self, matrices: Mapping[str, Tensor], module: AdapterModule) -> None:
        assert isinstance(module, DoraModule)
        super().load(matrices, module)
        lengths = self.base_lengths.to(matrices["offset"].device)
        matrices["offset"].copy_(module.magnitude.flatten().to(lengths) - lengths)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(V * lengths) x = V (lengths * x): the base layer gets scaled inputs."""
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        if self._is_left_out():
            return self._connect(self.base_layer(x, *args, **kwargs))
        stretch = self._find_stretch(x.dtype).to(x.dtype)
        stretched = torch.addcmul(x, x, stretch.view(-1, *(1 for _ in self.size.kernel)))
        output = self.base_layer(stretched, *args, **kwargs)
        return torch.add(output, self.compute_update(self.lora_dropout(stretched)), alpha=self.scale)

    def _find_stretch(self, dtype: torch.dtype) -> Tensor:
        """Return wanted length / length of W + up @ down - 1 for each input, float32."""
        lengths = self._measure(dtype)
        eps = torch.finfo(torch.float32).eps  # as in ComfyUI
        return (self.base_lengths - lengths + self.adapter["offset"].float()) / (lengths + eps)

    @torch.no_grad()
    def _measure(self, dtype: torch.dtype) -> Tensor:
        """The lengths of the columns of W + s * up @ down, without that matrix: the squares of
        W's, plus s * down * (2 * up.T @ W + s * up.T @ up @ down) for each column.
        """
        down, up = (self.adapter[name].flatten(1).float() for name in ("down", "up"))
        weight = read_weight(self.base_layer, dtype).flatten(1)
        crossed = (up.t().to(dtype) @ weight).float()  # [R, I]
        mixed = torch.addmm(crossed, up.t() @ up, down, beta=2, alpha=self.scale)
        change = self.scale * (down * mixed).sum(0).view(self.size.inputs, -1).sum(1)
        return (self.base_lengths.square() + change).clamp_min_(0).sqrt_()


class LohaLayer(AdapterLayer):
    """LoHa. Its product is as large as the weight, and is made again for the backward pass."""

    module_class = LohaModule

    def start(self, generator: torch.Generator) -> None:
        """As in LyCORIS: normal, with a spread of 0.1 for w1_a and 1 for both w?_b."""
        with torch.no_grad():
            for name, spread in (("w1_a", 0.1), ("w1_b", 1.0), ("w2_b", 1.0)):
                self.adapter[name].copy_(spread * torch.randn(self.adapter[name].shape, generator=generator))

    def load(self, matrices: Mapping[str, Tensor], module: AdapterModule) -> None:
        load_same_shapes(matrices, module, learned="w2_a", strength=module.scale / self.scale)

    def compute_update(self, x: Tensor) -> Tensor:
        factors = (self._get(name, x.dtype) for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return _HadamardProduct.apply(x, self, *factors)  # pyright: ignore[reportReturnType]

    def multiply_by(self, x: Tensor, weight: Tensor) -> Tensor:
        """weight [O, I]."""
        if not self.size.kernel:
            return functional.linear(x, weight)
        return self._convolve(x, weight.view(len(weight), self.size.inputs, *self.size.kernel))

    def differentiate(self, x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of the weight [O, I]."""
        if not self.size.kernel:
            rows = gradient.flatten(0, -2)
            return gradient @ weight, rows.t() @ x.flatten(0, -2)
        base: Any = self.base_layer
        weight = weight.view(len(weight), self.size.inputs, *self.size.kernel)
        how = (base.stride, base.padding, base.dilation)
        of_inputs = grad.conv2d_input(x.shape, weight, gradient, *how)
        return of_inputs, grad.conv2d_weight(x, weight.shape, gradient, *how).flatten(1)


class _HadamardProduct(torch.autograd.Function):
    """((w1_a @ w1_b) * (w2_a @ w2_b)) x, without keeping matrices of the weight's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LohaLayer, *factors: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, *factors)
        w1_a, w1_b, w2_a, w2_b = factors
        return layer.multiply_by(x, (w1_a @ w1_b).mul_(w2_a @ w2_b))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        first, second = w1_a @ w1_b, w2_a @ w2_b
        of_x, of_product = ctx.layer.differentiate(x, first * second, gradient)
        of_first, of_second = second.mul_(of_product), first.mul_(of_product)
        return (
            of_x,
            None,
            of_first @ w1_b.t(),
            w1_a.t() @ of_first,
            of_second @ w2_b.t(),
            w2_a.t() @ of_second,
        )


class LokrLayer(AdapterLayer):
    """LoKr in two small products: the second factor for each of M groups of inputs, then the first
    one between the groups. The Kronecker product itself is never made.
    """

    module_class = LokrModule

    def __init__(self, base_layer: nn.Module, settings: AdapterSettings, device: torch.device) -> None:
        super().__init__(base_layer, settings, device)
        self.scale = self.make_module(self.matrices()).scale  # 1 if both factors are whole

    def start(self, generator: torch.Generator) -> None:
        """As in LyCORIS: kaiming, and zero for the second factor, or for its inputs."""
        with torch.no_grad():
            for name, matrix in self.adapter.items():
                if name not in ("w2", "w2_b"):
                    matrix.copy_(draw_kaiming(matrix.shape, generator))

    def load(self, matrices: Mapping[str, Tensor], module: AdapterModule) -> None:
        learned = "w2" if "w2" in matrices else "w2_b"
        load_same_shapes(matrices, module, learned=learned, strength=module.scale / self.scale)

    def compute_update(self, x: Tensor) -> Tensor:
        first, second = self._join("w1", x.dtype), self._join("w2", x.dtype)  # [L, M], [K, N * pixels]
        if not self.size.kernel:
            groups = functional.linear(x.unflatten(-1, (first.shape[1], -1)), second)  # [..., M, K]
            return torch.matmul(first, groups).flatten(-2)
        batch_size, num_groups = len(x), first.shape[1]
        kernel = second.view(len(second), self.size.inputs // num_groups, *self.size.kernel)
        groups = self._convolve(x.reshape(batch_size * num_groups, -1, *x.shape[2:]), kernel)  # [B * M, K, H, W]
        mixed = torch.matmul(first, groups.view(batch_size, num_groups, -1))
        return mixed.view(batch_size, -1, *groups.shape[2:])

    def _join(self, name: str, dtype: torch.dtype) -> Tensor:
        if name in self.adapter:
            return self._get(name, dtype).flatten(1)
        return self._get(f"{name}_a", dtype) @ self._get(f"{name}_b", dtype)


_LAYERS: dict[str, type[AdapterLayer]] = {"dora": DoraLayer, "loha": LohaLayer, "lokr": LokrLayer}


def choose_layer(settings: AdapterSettings) -> type[AdapterLayer] | None:
    """Return the class of the layers; None for a LoRA without more than its plain dropout."""
    if settings.kind == "lora":
        is_plain = not (settings.rank_dropout or settings.module_dropout or settings.tlora_min_rank)
        return None if is_plain else LowRankLayer
    return _LAYERS[settings.kind]


def read_weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return a frozen layer's weight in full, also of a quantized layer, ours or ComfyUI's."""
    if isinstance(layer, QuantizedLayer):
        return layer.dequantize(dtype)
    weight: Any = layer.weight
    if type(weight) not in (Tensor, nn.Parameter):
        weight = weight.dequantize()
    return weight.to(dtype)


def count_kept_ranks(timesteps: Tensor, *, rank: int, min_rank: int) -> Tensor:
    """Return how many ranks T-LoRA trains at timesteps [B] of 1000 (Soboleva et al. 2025):
    floor((rank - min_rank) * (1000 - t) / 1000) + min_rank. A lower rank than min_rank stays whole.
    """
    floor = min(min_rank, rank)
    return (rank - floor) * (MAX_TIMESTEP - timesteps) // MAX_TIMESTEP + floor


def draw_kaiming(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw uniform in +-1/sqrt(fan_in): kaiming with a = sqrt 5."""
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(math.prod(shape[1:]))


@torch.no_grad()
def load_lora(down: Tensor, up: Tensor, module: LoraModule, alpha: float) -> None:
    """`up` is rescaled: the LoRA acts as strongly as in its file, even if alpha or rank differs. A
    lower rank fills the first rows of `down`; the others stay as they are.
    """
    rank, full_rank = module.rank, down.shape[0]
    # ComfyUI's own trainer flattens the matrices of convolutions
    down[:rank].copy_(module.down.reshape(rank, *down.shape[1:]))
    strength = module.alpha / alpha * (full_rank / rank)
    up[:, :rank].copy_(module.up.reshape(len(up), rank, *up.shape[2:]).float() * strength)


@torch.no_grad()
def load_same_shapes(matrices: Mapping[str, Tensor], module: AdapterModule, *, learned: str, strength: float) -> None:
    for name, matrix in matrices.items():
        value = getattr(module, name)
        matrix.copy_(value.float() * strength if name == learned else value)
