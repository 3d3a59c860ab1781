"""Moves an optimizer and its arguments from another program to optimizer, weight_decay and
optimizer_args.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from ..training.optimizer_table import IMPORT_PATH, OPTIMIZERS, find_optimizer
from .translation import Translator

# Arguments that a library leaves out of the update by default, and this trainer does not.
_LIBRARY_DEFAULTS: dict[str, dict[str, Any]] = {
    "Prodigy": {"use_bias_correction": False, "safeguard_warmup": False},
    "Adafactor": {"scale_parameter": True},
}
_SAME_NUMBERS = {"PagedAdamW": "AdamW", "PagedAdamW32bit": "AdamW", "PagedAdamW8bit": "AdamW8bit"}


def take_optimizer(translator: Translator, key: str, name: str, arguments: Mapping[str, Any], *, args_key: str) -> None:
    """Set the optimizer called `name`. `key` and `args_key` are their settings for it and for its
    arguments, to show.

    Raises:
        ValueError: there is no such optimizer here: with another one its learning rate would be
            wrong.
    """
    ours = find_our_name(name)
    if ours is None:
        raise ValueError(
            f"{translator.label(key)} {name}: there is no such optimizer here, and its learning rate fits no other. "
            f"Write one of {', '.join(OPTIMIZERS)} into the file, with a learning rate for it"
        )
    if _finds_own_rate(ours, arguments):
        raise ValueError(
            f"{translator.label(args_key)}: Adafactor with relative_step finds its own learning rate and schedule, "
            "which is not done here. Write relative_step=False scale_parameter=False warmup_init=False, and a learning "
            "rate such as 1e-4"
        )
    remark = "the same numbers, its states stay on the GPU" if name in _SAME_NUMBERS and ours != name else ""
    translator.take(key, ours, ours="optimizer", remark=remark)
    if ours.endswith("ScheduleFree"):  # the other programs leave out their schedule then too
        translator.settings.update(lr_scheduler="constant", lr_warmup_steps=0.0)
        translator.without_effect(translator.name_part("the schedule"), f"{ours} has none, so it is constant")
    decay = arguments.get("weight_decay")
    if decay is None:
        translator.take("weight_decay", _choose_default_decay(ours), ours="weight_decay")
    else:
        part = translator.name_part(f"{args_key} weight_decay={decay}")
        translator.take(part, float(decay), ours="weight_decay")
    rest = _write_rest(ours, arguments)
    if rest:
        translator.take(translator.name_part("its other arguments"), rest, ours="optimizer_args")


def _write_rest(ours: str, arguments: Mapping[str, Any]) -> str:
    """Write the arguments that differ from what is the default here."""
    usual = find_optimizer(ours).arguments
    rest = {**_LIBRARY_DEFAULTS.get(ours, {}), **arguments}
    return " ".join(
        f"{name}={_write(value)}"
        for name, value in rest.items()
        if name != "weight_decay" and not (name in usual and usual[name] == value)
    )


def find_our_name(name: str) -> str | None:
    """Return the name in our table, whatever its case and path, or another import path itself."""
    known = {each.lower(): each for each in OPTIMIZERS}
    short = name.rpartition(".")[2]
    found = known.get(short.lower()) or known.get(_SAME_NUMBERS.get(short, "").lower())
    return found or (name if re.fullmatch(IMPORT_PATH[0], name) else None)


def read_arguments(value: Any) -> dict[str, Any]:
    """Read sd-scripts' arguments of an optimizer: a list of name=value, or one text of them. Values
    are Python's, also betas=0.9,0.99.

    Raises:
        ValueError: a part is not name=value.
    """
    return {name: _read_literal(text) for name, text in split_arguments(value).items()}


def split_arguments(value: Any) -> dict[str, str]:
    """Return the arguments of an optimizer or a network, with their values as texts.

    Raises:
        ValueError: a part is not name=value.
    """
    text = " ".join(value) if isinstance(value, list) and all(isinstance(part, str) for part in value) else value
    if not isinstance(text, str):
        raise ValueError("must be name=value pairs")
    pairs = [part.partition("=") for part in re.split(r"\s+(?=\w+\s*=)", text.replace('"', "").strip()) if part]
    if not all(name.strip().isidentifier() and value for name, _, value in pairs):
        raise ValueError("must be name=value pairs with spaces between them")
    return {name.strip(): value.strip(" ,") for name, _, value in pairs}


def _read_literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"has {text!r}, which is no value of Python such as 0.1, True or (0.9,0.99)") from None


def _finds_own_rate(ours: str, arguments: Mapping[str, Any]) -> bool:
    # sd-scripts turns relative_step on where it is not said
    return ours == "Adafactor" and bool(arguments.get("relative_step", True) or arguments.get("warmup_init"))


def _choose_default_decay(ours: str) -> float:
    """The library's own default: 0.01 for every kind of AdamW in torch and bitsandbytes, else 0."""
    return 0.01 if ours.rpartition(".")[2] in ("AdamW", "AdamW8bit") else 0.0


def _write(value: Any) -> str:
    return repr(value).replace(" ", "")
