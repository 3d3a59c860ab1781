"""A LoRA in memory: one update per module of a base model, and the names of modules in files."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# (component of the base model, path of the module in it), such as ("unet", "conv_in").
ModuleKey = tuple[str, str]


@dataclass(frozen=True)
class LoraModule:
    """One layer's update: alpha / rank * up @ down.

    Linear: down [rank, in], up [out, rank]. Convolution: down [rank, in, kernel, kernel], up [out,
    rank, 1, 1].
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def is_finite(self) -> bool:
        return math.isfinite(self.alpha) and all(is_finite(weight) for weight in (self.down, self.up))


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
