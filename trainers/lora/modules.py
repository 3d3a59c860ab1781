"""A LoRA in memory: one update for each module of a base model, and the modules' names in files."""

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
    """The name of every module of a base model in the file that we write, in the file's order.

    `spellings` maps every other spelling that we read, with underscores for dots, to its module.
    Settings without a prefix in PEFT's metadata belong to `main_component`.
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
    """Underscores for dots, as kohya writes the names of modules."""
    return path.replace(".", "_")


def list_weighted_modules(model: nn.Module) -> list[str]:
    """The paths of all modules with a weight, the same with and without PEFT's adapters
    attached.
    """
    weights = [name for name in model.state_dict() if name.endswith(".weight") and ".lora_" not in name]
    return [name.removesuffix(".weight").removesuffix(".base_layer") for name in weights]
