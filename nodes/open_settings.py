"""The settings of Train LoRA, Train LoRA (SDXL) and Flight Check that a user may leave open (0, or
"auto"), and what decides them then.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..trainers.training.earlier_settings import EarlierSettings

AUTO = "auto"
_FROM_GOAL = "from goal"
FROM_MEMORY: dict[str, str] = dict.fromkeys(
    ("resolution", "train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "optimizer"),
    "from memory",
)
OPEN_SETTINGS = {
    "max_train_steps": f"{_FROM_GOAL} and the number of images",
    **dict.fromkeys(("rank", "alpha", "learning_rate"), _FROM_GOAL),
    **FROM_MEMORY,
}

_OPEN_IN_CONFIG = ("timestep_sampling", "discrete_flow_shift")  # 0 and auto are among their own values

# They belong to this run, or to this machine.
_OF_THE_NODE = ("seed", "mixed_precision", "network_weights")


def drop_open_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that were left open; on and off become booleans."""
    chosen = {name: value for name, value in settings.items() if not (name in OPEN_SETTINGS and value in (0, AUTO))}
    return {
        name: value == "on" if name in OPEN_SETTINGS and value in ("on", "off") else value
        for name, value in chosen.items()
    }


def replace_by_earlier(widgets: dict[str, Any], earlier: "EarlierSettings | None") -> dict[str, Any]:
    """Return the widgets' values, replaced by those that an earlier LoRA was trained with."""
    values = {} if earlier is None else earlier.values
    taken = {
        name: value
        for name, value in values.items()
        if name not in _OF_THE_NODE and not name.startswith(("save_", "sample_"))
    }
    return {**widgets, **{name: _as_widget(name, value) for name, value in taken.items()}}


def _as_widget(name: str, value: Any) -> Any:
    return ("on" if value else "off") if name in OPEN_SETTINGS and isinstance(value, bool) else value


def list_choices(
    settings: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]], *, goal: str, memory: str
) -> dict[str, Any]:
    """Return what the presets came to, for the node's widgets: `given` has the settings that were
    not left open, `chosen` the numbers for those that were. `sections` are the resolved settings.
    """
    resolved = {**sections["training"], **sections["buckets"]}
    names = [name for name in (*OPEN_SETTINGS, *_OPEN_IN_CONFIG) if name in settings and name in resolved]
    given = {name: settings[name] for name in names if settings[name] not in (0, AUTO)}
    unused = {"max_train_steps"} if resolved["num_train_epochs"] else set()
    chosen = {name: resolved[name] for name in names if name not in {*given, *unused}}
    return {"goal": goal, "memory": memory, "given": given, "chosen": chosen}
