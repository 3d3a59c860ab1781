"""Node inputs from the parameters of a config class: each parameter's type, range, choices and help
are written once, in trainers/.
"""

from collections.abc import Collection
from dataclasses import Field, fields
from typing import Any, get_type_hints

from comfy_api.latest import io

AUTO = "auto"
_STEPS = {
    "alpha": 0.5,
    "learning_rate": 1e-6,
    "text_encoder_learning_rate": 1e-6,
    "text_encoder_2_learning_rate": 1e-6,
    "weight_decay": 1e-3,
}


def config_inputs(
    config_class: type, *, auto: dict[str, str], leave_out: Collection[str] = (), visible: Collection[str] = ()
) -> list[io.Input]:
    """One optional input per parameter, advanced unless `visible`.

    A parameter in `auto` may be left open (0, or "auto"): something else decides it, as its text
    there says.
    """
    hints = get_type_hints(config_class)
    return [
        _input(spec, hints[spec.name], auto.get(spec.name), is_advanced=spec.name not in visible)
        for spec in fields(config_class)
        if spec.name not in leave_out
    ]


def chosen_settings(settings: dict[str, Any], *, auto: dict[str, str]) -> dict[str, Any]:
    """The settings without those that were left open; on and off as booleans."""
    chosen = {name: value for name, value in settings.items() if not (name in auto and value in (0, AUTO))}
    return {name: value == "on" if name in auto and value in ("on", "off") else value for name, value in chosen.items()}


def _input(spec: Field, kind: Any, auto_text: str | None, *, is_advanced: bool) -> io.Input:
    limits = spec.metadata
    common: dict[str, Any] = {
        "optional": True,
        "advanced": is_advanced or None,
        "tooltip": _tooltip(limits["help"], kind, auto_text),
    }
    if limits["choices"] or (kind is bool and auto_text):
        options = list(limits["choices"] or ("on", "off"))
        if auto_text:
            options = [AUTO, *options]
        return io.Combo.Input(spec.name, options=options, default=AUTO if auto_text else spec.default, **common)
    if kind is bool:
        return io.Boolean.Input(spec.name, default=spec.default, **common)
    if kind is str:
        return io.String.Input(spec.name, default=spec.default, **common)
    default: Any = 0 if auto_text else spec.default
    low = 0 if auto_text else limits["min"]
    if kind is int:
        return io.Int.Input(spec.name, default=default, min=low, max=limits["max"], **common)
    return io.Float.Input(
        spec.name,
        default=float(default),
        min=low,
        max=limits["max"],
        step=_STEPS.get(spec.name, 0.01),
        round=False,
        **common,
    )


def _tooltip(help_text: str, kind: Any, auto_text: str | None) -> str:
    if not auto_text:
        return help_text
    return f"{help_text} {AUTO if kind in (bool, str) else 0}: {auto_text}."
