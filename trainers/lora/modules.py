"""A LoRA of any kind in memory: one update per module of a base model, and the modules' names in
files.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

# (component of the base model, path of the module in it), such as ("unet", "conv_in").
ModuleKey = tuple[str, str]


class AdapterModule(ABC):
    """One layer's update in whatever form. The fields of a subclass are its tensors and `alpha`.

    Letters: O outputs, I inputs times the kernel's pixels, R rank.
    """

    kind: ClassVar[str]  # as the setting `adapter` calls it
    endings: ClassVar[Mapping[str, str]]  # field -> how its tensor's name in a file ends
    alpha: float

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the ends of their names in a file."""
        found = {ending: getattr(self, field) for field, ending in self.endings.items()}
        return {ending: tensor for ending, tensor in found.items() if tensor is not None}

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(O, I)."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """The strength of the update."""

    @property
    @abstractmethod
    def learned(self) -> Tensor:
        """The matrix that starts at zero: as long as it is zero, nothing was learned."""

    @abstractmethod
    def multiply(self) -> Tensor:
        """Return the update [O, I] in float32, without its strength."""

    def measure(self) -> Tensor:
        """Return the Euclidean norm of the update without its strength: a scalar."""
        return torch.linalg.vector_norm(self.multiply())

    def merge_into(self, weight: Tensor, strength: float) -> Tensor:
        """Return a layer's weight with the update, as ComfyUI merges it."""
        return weight + (strength * self.scale * self.multiply()).reshape(weight.shape).to(weight)

    def is_finite(self) -> bool:
        return math.isfinite(self.alpha) and all(map(is_finite, self.tensors().values()))


ModuleT = TypeVar("ModuleT", bound=AdapterModule)


def clone_module(module: ModuleT) -> ModuleT:
    """Return a copy that shares no memory."""
    found = {field: getattr(module, field) for field in module.endings}
    copies = {field: tensor.clone() for field, tensor in found.items() if tensor is not None}
    return replace(module, **copies)  # pyright: ignore[reportArgumentType]: all kinds are dataclasses


@dataclass(frozen=True)
class LoraModule(AdapterModule):
    """alpha / rank * up @ down.

    Linear: down [rank, in], up [out, rank]. Convolution: down [rank, in, kernel, kernel], up [out,
    rank, 1, 1].
    """

    kind = "lora"
    endings: ClassVar = {"down": "lora_down.weight", "up": "lora_up.weight"}

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.up.numel() // self.rank, self.down[0].numel()

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def learned(self) -> Tensor:
        return self.up

    def multiply(self) -> Tensor:
        return self.up.float().flatten(1) @ self.down.float().flatten(1)

    def measure(self) -> Tensor:
        """By products of [rank, rank]: the sum of all squares is the trace of up' up down down'."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        return ((up.t() @ up) * (down @ down.t())).sum().clamp(min=0).sqrt()


@dataclass(frozen=True)
class DoraModule(LoraModule):
    """V = W + alpha / rank * up @ down, with each of its columns at the length that `magnitude`
    says (Liu et al. 2024, equation 5). A column is what one input gives to all outputs.

    magnitude is [1, in], for a convolution [1, in, 1, 1]; [out, 1] and [out, 1, 1, 1] in files of
    programs that scale outputs.
    """

    kind = "dora"
    endings: ClassVar = {**LoraModule.endings, "magnitude": "dora_scale"}

    magnitude: Tensor

    @property
    def scales_inputs(self) -> bool:
        return self.magnitude.shape[0] == 1

    def merge_into(self, weight: Tensor, strength: float) -> Tensor:
        """In float32. Where outputs are scaled, ComfyUI divides by the length that they have
        without the update.
        """
        base = weight.float()
        merged = base + (self.scale * self.multiply()).reshape(weight.shape).to(base)
        lengths = measure_inputs(merged) if self.scales_inputs else measure_outputs(base)
        merged = merged * (self.magnitude.to(base) / (lengths + torch.finfo(base.dtype).eps))
        return (base + strength * (merged - base)).to(weight.dtype)


def measure_inputs(weight: Tensor) -> Tensor:
    """Return the length of each input's column of a weight: [1, in], or [1, in, 1, 1]."""
    return _measure(weight, kept=1)


def measure_outputs(weight: Tensor) -> Tensor:
    return _measure(weight, kept=0)


def _measure(weight: Tensor, *, kept: int) -> Tensor:
    others = [axis for axis in range(weight.ndim) if axis != kept]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True)


@dataclass(frozen=True)
class LohaModule(AdapterModule):
    """alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b), a product element by element (Hyeon-Woo et al.
    2022). w?_a [O, R], w?_b [R, I].
    """

    kind = "loha"
    endings: ClassVar = {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.w1_a.shape[0], self.w1_b.shape[1]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def learned(self) -> Tensor:
        return self.w2_a

    def multiply(self) -> Tensor:
        return (self.w1_a.float() @ self.w1_b.float()) * (self.w2_a.float() @ self.w2_b.float())


@dataclass(frozen=True)
class LokrModule(AdapterModule):
    """alpha / rank * the Kronecker product of w1 [L, M] and w2 [K, N, ...] (LyCORIS: Yeh et al.
    2024), for L * K outputs and M * N inputs.

    Each of the two is whole, or w?_a @ w?_b of a low rank. If both are whole, alpha counts for
    nothing.
    """

    kind = "lokr"
    endings: ClassVar = {name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}

    alpha: float
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None

    @property
    def rank(self) -> int:
        """0: both are whole."""
        low = self.w2_b if self.w2_b is not None else self.w1_b
        return 0 if low is None else low.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        small, large = self._join(self.w1, self.w1_a, self.w1_b), self._join(self.w2, self.w2_a, self.w2_b)
        return small.shape[0] * large.shape[0], small.shape[1] * large.shape[1]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def learned(self) -> Tensor:
        found = self.w2 if self.w2 is not None else self.w2_b
        assert found is not None
        return found

    def measure(self) -> Tensor:
        first, second = self._join(self.w1, self.w1_a, self.w1_b), self._join(self.w2, self.w2_a, self.w2_b)
        return torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)

    def multiply(self) -> Tensor:
        return torch.kron(self._join(self.w1, self.w1_a, self.w1_b), self._join(self.w2, self.w2_a, self.w2_b))

    @staticmethod
    def _join(whole: Tensor | None, left: Tensor | None, right: Tensor | None) -> Tensor:
        """Return the matrix, with the kernel's pixels at the inputs."""
        if whole is not None:
            return whole.float().flatten(1)
        assert left is not None and right is not None
        return left.float() @ right.float()


MODULES: dict[str, type[AdapterModule]] = {
    module.kind: module for module in (LoraModule, DoraModule, LohaModule, LokrModule)
}


def is_finite(weight: Tensor) -> bool:
    """Tell whether all values are numbers."""
    if weight.numel() < 2 or not weight.is_floating_point():
        return bool(weight.float().isfinite().all())
    # the largest magnitude is NaN or infinite if one is: one pass, without a copy
    weight = weight.float() if weight.itemsize == 1 else weight  # torch cannot ask 8-bit numbers
    return all(map(math.isfinite, torch.stack(weight.aminmax()).tolist()))


class ModuleNames(dict[ModuleKey, str]):
    """The file's name for every module of a base model, in the order of our files.

    `spellings` maps every other spelling that we read, with underscores for dots, to its module. In
    PEFT's metadata, settings without a prefix belong to `main_component`. `unused` are
    spellings of modules that other programs save, although the model does not have them.
    """

    def __init__(
        self,
        names: Mapping[ModuleKey, str],
        spellings: Iterable[tuple[str, ModuleKey]],
        *,
        main_component: str,
        unused: Collection[str] = (),
    ) -> None:
        super().__init__(names)
        self.spellings = dict(spellings)
        self.main_component = main_component
        self.unused = frozenset(unused)


def flatten_name(path: str) -> str:
    """Replace dots by underscores, as in kohya's module names."""
    return path.replace(".", "_")


def list_weighted_modules(model: nn.Module) -> list[str]:
    """List the paths of all modules with a weight; PEFT adapters do not change the result."""
    weights = [name for name in model.state_dict() if name.endswith(".weight") and ".lora_" not in name]
    return [name.removesuffix(".weight").removesuffix(".base_layer") for name in weights]
