"""A LoRA in memory: one update per module of a base model, and the names of modules in files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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


class ModuleNames(dict[ModuleKey, str]):
    """The file's name for every module of a base model, in the order of our files.

    `spellings` maps every other spelling that we read, with underscores for dots, to its module. In
    PEFT's metadata, settings without a prefix belong to `main_component`.
    """

    def __init__(
        self,
        names: Mapping[ModuleKey, str],
        spellings: Iterable[tuple[str, ModuleKey]],
        *,
        main_component: str,
    ) -> None:
        super().__init__(names)
        self.spellings = dict(spellings)
        self.main_component = main_component


def flatten_name(path: str) -> str:
    """Replace dots by underscores, as in kohya's module names."""
    return path.replace(".", "_")


def list_weighted_modules(model: nn.Module) -> list[str]:
    """List the paths of all modules with a weight; PEFT adapters do not change the result."""
    weights = [name for name in model.state_dict() if name.endswith(".weight") and ".lora_" not in name]
    return [name.removesuffix(".weight").removesuffix(".base_layer") for name in weights]
