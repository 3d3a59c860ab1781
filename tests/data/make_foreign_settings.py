"""Writes the names and defaults of sd-scripts' and OneTrainer's settings next to this file, from
checkouts of them: `python make_foreign_settings.py sd-scripts CHECKOUT` in sd-scripts' interpreter,
`python make_foreign_settings.py onetrainer CHECKOUT` in any.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# TrainConfig makes these parts of a TrainModelPartConfig and changes the values named here.
PARTS = {
    "unet": {"train": True, "stop_training_after": 0, "learning_rate": None},
    "text_encoder": {"train": True, "stop_training_after": 30, "stop_training_after_unit": "EPOCH"},
    "text_encoder_2": {"train": True, "stop_training_after": 30, "stop_training_after_unit": "EPOCH"},
    "vae": {"weight_dtype": "FLOAT_32"},
}


def list_sd_scripts_flags(checkout: Path) -> dict[str, Any]:
    sys.path.insert(0, str(checkout))
    from sdxl_train_network import setup_parser  # pyright: ignore[reportMissingImports]

    actions = [action for action in setup_parser()._actions if action.dest != "help"]
    return {action.dest: action.default for action in actions}


def list_onetrainer_settings(checkout: Path) -> dict[str, Any]:
    """The defaults are in calls such as data.append(("epochs", 100, int, False))."""
    source = (checkout / "modules/util/config/TrainConfig.py").read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    settings = _read_defaults(classes["TrainConfig"])
    settings["optimizer"] = _read_defaults(classes["TrainOptimizerConfig"])
    part = _read_defaults(classes["TrainModelPartConfig"])
    return settings | {name: {**part, **changes} for name, changes in PARTS.items()}


def _read_defaults(node: ast.ClassDef) -> dict[str, Any]:
    rows = [
        call.args[0].elts
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append"
        if isinstance(call.args[0], ast.Tuple)
    ]
    return {ast.literal_eval(name): value for name, default, *_ in rows if (value := _read(default)) is not ...}


def _read(node: ast.expr) -> Any:
    """A literal, or the name of a member of an enumeration; ... for anything else."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return node.attr if isinstance(node, ast.Attribute) and node.attr.isupper() else ...


if __name__ == "__main__":
    program, checkout = sys.argv[1], Path(sys.argv[2])
    names = {"sd-scripts": "sd_scripts_flags", "onetrainer": "onetrainer_settings"}
    found = list_sd_scripts_flags(checkout) if program == "sd-scripts" else list_onetrainer_settings(checkout)
    text = json.dumps(found, indent=1, sort_keys=True, default=str) + "\n"
    (HERE / f"{names[program]}.json").write_text(text, encoding="utf-8")
