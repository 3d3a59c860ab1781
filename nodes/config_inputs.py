"""Makes node inputs from the parameters of config classes, in the node's own order.

Each parameter's type, range, choices and help are written once, in trainers/. So is its position on
a node: in the SETTINGS_ORDER of that node.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, get_type_hints

from comfy_api.latest import io

from ..trainers.config import list_field_names
from .host import folders
from .open_settings import AUTO

_STEPS = {
    "alpha": 0.5,
    "learning_rate": 1e-6,
    "text_encoder_learning_rate": 1e-6,
    "text_encoder_2_learning_rate": 1e-6,
    "weight_decay": 1e-3,
    "resolution": 64,
    "bucket_reso_steps": 8,
    "width": 8,
    "height": 8,
}


def check_settings_order(
    order: Sequence[str],
    *configs: type,
    some_of: Sequence[type] = (),
    also: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> tuple[str, ...]:
    """Check and return the order of a node's settings, while its file is imported.

    The order must have every parameter of `configs` once, except those that the node takes
    `elsewhere`. It may have parameters of the configs in `some_of`, and must have the inputs in
    `also`, which are in no config. Append only: saved workflows store widget values by position.

    Raises:
        ValueError: a setting is missing, appears twice, or is in no config.
    """
    expected = [name for config in configs for name in list_field_names(config) if name not in elsewhere]
    expected += also
    known = {*expected, *(name for config in some_of for name in list_field_names(config))}
    missing = [name for name in expected if name not in order]
    if missing:
        raise ValueError(
            f"append {', '.join(missing)} to SETTINGS_ORDER, at its very end: saved workflows store widget values by "
            "position, so an insertion would shift them"
        )
    unknown = [name for name in order if name not in known]
    if unknown:
        raise ValueError(f"SETTINGS_ORDER has {', '.join(unknown)}, which is in no config of the node")
    twice = sorted({name for name in order if order.count(name) > 1})
    if twice:
        raise ValueError(f"SETTINGS_ORDER has {', '.join(twice)} twice")
    return tuple(order)


def make_settings_inputs(
    order: Sequence[str],
    *configs: type,
    visible: Collection[str],
    open_settings: Mapping[str, str] | None = None,
    own: Iterable[io.Input] = (),
    notes: Mapping[str, str] | None = None,
) -> list[io.Input]:
    """Make one optional input for each name in the order, advanced unless it is in `visible`.

    Inputs in `own` are used as they are; all others are made from the parameters of the configs. A
    parameter in `open_settings` may be left open (0, or "auto"); its text there says what then
    decides it. `notes` end the tooltips. If two configs have a parameter, the last one counts.
    """
    own_inputs = {entry.id: entry for entry in own}
    parameters = {spec.name: (spec, get_type_hints(config)[spec.name]) for config in configs for spec in fields(config)}
    open_texts, tooltip_ends = open_settings or {}, notes or {}
    return [
        own_inputs[name]
        if name in own_inputs
        else _make_input(
            *parameters[name], open_texts.get(name), is_advanced=name not in visible, note=tooltip_ends.get(name, "")
        )
        for name in order
    ]


def make_file_input(config: type, name: str, files: Sequence[str]) -> io.Input:
    """Make a choice from a list for a parameter that is a file: a workflow cannot name others."""
    return io.Combo.Input(
        name,
        options=[folders.NONE, *files],
        default=folders.NONE,
        optional=True,
        advanced=True,
        tooltip=find_help_text(config, name).replace("Empty", folders.NONE),
    )


def find_help_text(config: type, name: str) -> str:
    (text,) = (spec.metadata["help"] for spec in fields(config) if spec.name == name)
    return text


def _make_input(spec: Field, kind: Any, open_text: str | None, *, is_advanced: bool, note: str) -> io.Input:
    limits = spec.metadata
    common: dict[str, Any] = {
        "optional": True,
        "advanced": is_advanced or None,
        "tooltip": f"{_build_tooltip(limits['help'], kind, open_text)} {note}".strip(),
    }
    if limits["choices"] or (kind is bool and open_text):
        options = list(limits["choices"] or ("on", "off"))
        if open_text:
            options = [AUTO, *options]
        return io.Combo.Input(spec.name, options=options, default=AUTO if open_text else spec.default, **common)
    if kind is bool:
        return io.Boolean.Input(spec.name, default=spec.default, **common)
    if kind is str:
        return io.String.Input(spec.name, default=spec.default, **common)
    default: Any = 0 if open_text else spec.default
    low = 0 if open_text else limits["min"]
    if kind is int:
        step = _STEPS.get(spec.name, 1)
        return io.Int.Input(spec.name, default=default, min=low, max=limits["max"], step=step, **common)
    return io.Float.Input(
        spec.name,
        default=float(default),
        min=low,
        max=limits["max"],
        step=_STEPS.get(spec.name, 0.01),
        round=False,
        **common,
    )


def _build_tooltip(help_text: str, kind: Any, open_text: str | None) -> str:
    if not open_text:
        return help_text
    return f"{help_text} {AUTO if kind in (bool, str) else 0}: {open_text}."
