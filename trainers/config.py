"""Parameters as dataclass fields: type, default, range, choices and help, each written once.

Node inputs, command-line flags, the documentation and the LoRA's metadata are generated from these
fields. Nothing here imports torch or diffusers, so reading a configuration takes milliseconds.
"""

import argparse
import dataclasses
import math
import re
import types
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from .similar_names import describe_unknown

_PATHS = ("images", "network_weights")


def param(
    default: Any = MISSING,
    help: str = "",
    *,
    min: float | None = None,
    max: float | None = None,
    choices: Sequence[str] | None = None,
    pattern: tuple[str, str] | None = None,
) -> Any:
    """Return a dataclass field with a range and help. Without a default, a value is required.

    `pattern` allows more values than `choices`: a regular expression, and a description of what it
    matches.
    """
    metadata = {
        "help": help,
        "min": min,
        "max": max,
        "choices": None if choices is None else tuple(choices),
        "pattern": pattern,
    }
    return field(default=default, metadata=metadata, kw_only=True)


def check_ranges(config: Any) -> None:
    """Raise ValueError for the first field outside its range or choices. For __post_init__."""
    for spec in fields(config):
        problem = _find_problem(spec, getattr(config, spec.name))
        if problem:
            raise ValueError(f"{spec.name} {problem}")


def _find_problem(spec: Field, value: Any) -> str | None:
    limits = spec.metadata
    if value is None:
        return None
    # a folder's name may be in an encoding that Python shows as half characters
    if isinstance(value, str) and spec.name not in _PATHS and (half := re.search("[\ud800-\udfff]", value)):
        return f"has U+{ord(half.group()):X}, which is half of a character. Delete it, and write the character again"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    if limits.get("choices") and not _is_choice(value, limits["choices"], limits.get("pattern")):
        others = f", or {limits['pattern'][1]}" if limits.get("pattern") else ""
        return f"must be one of {', '.join(limits['choices'])}{others}; got {value!r}"
    low, high = limits.get("min"), limits.get("max")
    too_low, too_high = low is not None and value < low, high is not None and value > high
    if not (too_low or too_high):
        return None
    if high is None:
        return f"must be {low} or more, got {value}"
    if low is None:
        return f"must be {high} or less, got {value}"
    return f"must be between {low} and {high}, got {value}"


def _is_choice(value: Any, choices: Sequence[str], pattern: tuple[str, str] | None) -> bool:
    return value in choices or bool(pattern and re.fullmatch(pattern[0], str(value)))


def add_flags(parser: argparse.ArgumentParser, config_class: type, *, without: Collection[str] = ()) -> None:
    """Add one flag per field, `--max-train-steps` for `max_train_steps`. A flag that is not given
    sets no value.
    """
    group = parser.add_argument_group(f"{config_class.__name__.removesuffix('Config')} settings")
    hints = get_type_hints(config_class)
    for spec in fields(config_class):
        if spec.name in without:
            continue
        group.add_argument(
            "--" + spec.name.replace("_", "-"),
            dest=spec.name,
            default=argparse.SUPPRESS,
            help=_format_help(spec),
            **_choose_flag_type(hints[spec.name], spec),
        )


def _format_help(spec: Field) -> str:
    limits = spec.metadata
    facts = [] if limits["max"] is None else [f"{limits['min']:.16g} to {limits['max']:.16g}"]
    if limits["pattern"]:
        facts.append(f"or {limits['pattern'][1]}")
    facts.append("required" if spec.default is MISSING else f"default: {_format_default(spec.default)}")
    return f"{limits['help']} ({'; '.join(facts)})".replace("%", "%%")


def _format_default(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default) or "empty"


def _choose_flag_type(hint: Any, spec: Field) -> dict[str, Any]:
    kind = _unwrap_type(hint)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    shown = spec.metadata.get("choices")
    return {"type": kind, "metavar": "{" + ",".join(shown) + "}" if shown else kind.__name__.upper()}


def _unwrap_type(hint: Any) -> Any:
    """Return `int` for `int | None`, and `str` for a Literal."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (member for member in get_args(hint) if member is not type(None))
    return hint if isinstance(hint, type) else str


def check_value(config_class: type, name: str, value: Any, *, source: str) -> Any:
    """Return the value of one field with its type, without regard to the other fields.

    Raises:
        ValueError: a wrong type, or outside the field's range or choices; the message names the
            source.
    """
    (spec,) = (spec for spec in fields(config_class) if spec.name == name)
    value = _check_type(value, _unwrap_type(get_type_hints(config_class)[name]), source)
    problem = _find_problem(spec, value)
    if problem:
        raise ValueError(f"{source} {problem}")
    return value


def from_mapping(config_class: type, values: dict[str, Any], *, source: str) -> Any:
    """Build a config from a TOML table or parsed flags.

    Raises:
        ValueError: a name is unknown or a type is wrong; the message names the source.
    """
    hints = get_type_hints(config_class)
    unknown = sorted(set(values) - {spec.name for spec in fields(config_class)})
    if unknown:
        raise ValueError(
            f"{source}: unknown setting {describe_unknown(unknown, hints)}. Allowed: {', '.join(sorted(hints))}"
        )
    return config_class(
        **{name: _check_type(value, _unwrap_type(hints[name]), f"{source}: {name}") for name, value in values.items()}
    )


def build_config(config_class: type, settings: dict[str, Any]) -> Any:
    """Build a config from the settings of several configs, such as all flags of a command."""
    return from_mapping(config_class, select_settings(config_class, settings), source="settings")


def select_settings(config_class: type, settings: dict[str, Any]) -> dict[str, Any]:
    """Select the settings that belong to the config."""
    return {name: settings[name] for name in list_field_names(config_class) if name in settings}


def _check_type(value: Any, kind: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {kind.__name__}, got {type(value).__name__} {value!r}")
    return value


def list_field_names(config_class: type) -> list[str]:
    return [spec.name for spec in fields(config_class)]


def as_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)
