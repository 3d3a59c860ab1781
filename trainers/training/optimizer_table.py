"""The optimizers that users can choose, one row each. Imports no torch.

To add an optimizer, add a row: choices, messages, memory estimate and documentation follow from the
table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMPORT_PATH = (r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", "an import path such as torch.optim.RAdam")
UNKNOWN_STATE_BYTES = 8.0  # of an optimizer outside of the table: two float32 states, like AdamW


@dataclass(frozen=True)
class OptimizerRow:
    """`arguments` are defaults that the user can override. `state_bytes` is the size of the
    optimizer's state per trained parameter.
    """

    name: str
    module: str
    class_name: str
    package: str  # what to pip install
    state_bytes: float
    usual_learning_rate: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    can_be_fused: bool = False  # one kernel for the whole update
    is_elementwise: bool = False  # each weight by itself, whatever matrix it belongs to
    finds_learning_rate: bool = False  # one for everything, so all groups must have the same rate
    own_module: str = ""  # next to this file, with a faster class of the same name and numbers


OPTIMIZERS = {
    row.name: row
    for row in (
        OptimizerRow("AdamW", "torch.optim", "AdamW", "torch", 8.0, "1e-4", can_be_fused=True, is_elementwise=True),
        OptimizerRow("AdamW8bit", "bitsandbytes.optim", "AdamW8bit", "bitsandbytes", 2.0, "1e-4", is_elementwise=True),
        OptimizerRow(
            "Lion8bit", "bitsandbytes.optim", "Lion8bit", "bitsandbytes", 1.0, "1e-5 to 3e-5", is_elementwise=True
        ),
        OptimizerRow("Lion", "lion_pytorch", "Lion", "lion-pytorch", 4.0, "1e-5 to 3e-5", is_elementwise=True),
        OptimizerRow(
            "Adafactor",
            "transformers.optimization",
            "Adafactor",
            "transformers",
            0.3,
            "1e-4",
            # With relative_step it would ignore learning_rate and lr_scheduler.
            arguments={"scale_parameter": False, "relative_step": False, "warmup_init": False},
        ),
        OptimizerRow(
            "Prodigy",
            "prodigyopt",
            "Prodigy",
            "prodigyopt",
            16.0,
            "1",
            arguments={"use_bias_correction": True, "safeguard_warmup": True},
            finds_learning_rate=True,
            own_module=".prodigy",
        ),
        OptimizerRow(
            "AdamWScheduleFree",
            "schedulefree",
            "AdamWScheduleFree",
            "schedulefree",
            8.0,
            "2e-4 to 1e-3",
            is_elementwise=True,
        ),
        OptimizerRow(
            "ProdigyPlusScheduleFree",
            "prodigyplus",
            "ProdigyPlusScheduleFree",
            "prodigy-plus-schedule-free",
            5.0,
            "1",
        ),
        OptimizerRow("CAME", "came_pytorch.CAME", "CAME", "came-pytorch", 4.5, "5e-5 to 2e-4"),
    )
}


def find_optimizer(name: str) -> OptimizerRow:
    """Return the row called `name`, or a row for an import path such as torch.optim.RAdam."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    module, _, class_name = name.rpartition(".")
    package = module.partition(".")[0]
    return OptimizerRow(name, module, class_name, package, UNKNOWN_STATE_BYTES, "its own")


def list_usual_learning_rates() -> str:
    """Return the usual rates for help texts, as in "1e-4 for AdamW, Adafactor; 1 for Prodigy"."""
    names: dict[str, list[str]] = {}
    for row in OPTIMIZERS.values():
        names.setdefault(row.usual_learning_rate, []).append(row.name)
    return "; ".join(f"{rate} for {', '.join(rows)}" for rate, rows in names.items())


def require_listed_optimizer(name: str) -> None:
    """Refuse import paths, for workflows and prompts: a path runs whatever code it names.

    Raises:
        ValueError: the optimizer is not in the table.
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {name!r}. "
            "An import path works on the command line only"
        )
