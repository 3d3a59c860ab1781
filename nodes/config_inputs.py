"""Node inputs from the parameters of config classes, in the node's own order.

Each parameter's type, range, choices and help are written once, in trainers/. Where it is on a node
is written once too: in the SETTINGS_ORDER of that node.
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
}


def settings_order(
    order: Sequence[str],
    *configs: type,
    some_of: Sequence[type] = (),
    also: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> tuple[str, ...]:
    """The order of a node's settings, checked while its file is imported.

    It has every parameter of `configs` once, except those that the node takes `elsewhere`; of the
    configs in `some_of` it has those that it names; `also` are inputs that no config has. Append
    only: saved workflows store widget values by position.

    Raises:
        ValueError: a setting has no place in the order, two places, or is in no config.
    """
    expected = [name for config in configs for name in list_field_names(config) if name not in elsewhere]
    expected += also
    known = {*expected, *(name for config in some_of for name in list_field_names(config))}
    missing = [name for name in expected if name not in order]
    if missing:
        raise ValueError(
            f"append {', '.join(missing)} to SETTINGS_ORDER, at its very end: saved workflows store widget values by "
            "position, and an insertion would shift them"
        )
    unknown = [name for name in order if name not in known]
    if unknown:
        raise ValueError(f"SETTINGS_ORDER has {', '.join(unknown)}, which no config of the node has")
    twice = sorted({name for name in order if order.count(name) > 1})
    if twice:
        raise ValueError(f"SETTINGS_ORDER has {', '.join(twice)} twice")
    return tuple(order)


def settings_inputs(
    order: Sequence[str],
    *configs: type,
    visible: Collection[str],
    open_settings: Mapping[str, str] | None = None,
    own: Iterable[io.Input] = (),
) -> list[io.Input]:
    """One optional input for each name of the order, advanced unless `visible`.

    Those in `own` are taken as they are, all others are made from the parameters of the configs. A
    parameter in `open_settings` may be left open (0, or "auto"): something else decides it, as its
    text there says.
    """
    own_inputs = {entry.id: entry for entry in own}
    parameters = {spec.name: (spec, get_type_hints(config)[spec.name]) for config in configs for spec in fields(config)}
    open_texts = open_settings or {}
    return [
        own_inputs[name]
        if name in own_inputs
        else _input(*parameters[name], open_texts.get(name), is_advanced=name not in visible)
        for name in order
    ]


def file_input(config: type, name: str, files: Sequence[str]) -> io.Input:
    """A parameter that is a file, as a choice from a list: a workflow cannot name other files."""
    return io.Combo.Input(
        name,
        options=[folders.NONE, *files],
        default=folders.NONE,
        optional=True,
        advanced=True,
        tooltip=help_text(config, name).replace("Empty", folders.NONE),
    )


def help_text(config: type, name: str) -> str:
    (text,) = (spec.metadata["help"] for spec in fields(config) if spec.name == name)
    return text


def _input(spec: Field, kind: Any, open_text: str | None, *, is_advanced: bool) -> io.Input:
    limits = spec.metadata
    common: dict[str, Any] = {
        "optional": True,
        "advanced": is_advanced or None,
        "tooltip": _tooltip(limits["help"], kind, open_text),
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


def _tooltip(help_text: str, kind: Any, open_text: str | None) -> str:
    if not open_text:
        return help_text
    return f"{help_text} {AUTO if kind in (bool, str) else 0}: {open_text}."
