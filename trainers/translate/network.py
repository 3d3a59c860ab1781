"""Moves the kind of adapter from sd-scripts and LyCORIS."""

from typing import Any

from ..training.earlier_settings import ALGORITHMS
from .kohya_table import NETWORK_ARG_ROWS
from .optimizer import split_arguments
from .translation import Row, Translator
from .values import is_off, read_bool, read_float, read_text

_LYCORIS = "lycoris.kohya"
# Our adapter, by the module of sd-scripts.
_ADAPTERS = {
    "networks.lora": "lora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
}
_LYCORIS_PRESET = "attn-mlp"  # the layers of target_modules attention_mlp


def take_network(translator: Translator) -> None:
    """Set the adapter and its arguments.

    Raises:
        ValueError: such an adapter does not exist here.
    """
    module = translator.get("network_module", read_text, "networks.lora")
    arguments = translator.get("network_args", split_arguments, {})
    is_lycoris = module == _LYCORIS
    algorithm = str(arguments.pop("algo", "lora")).lower()
    adapter = ALGORITHMS.get(algorithm) if is_lycoris else _ADAPTERS.get(module)
    is_dora = read_bool(arguments.pop("dora_wd", False))
    if is_dora and adapter == "lora":
        adapter = "dora"
    elif is_dora:
        adapter = None
    shown = f"{module} with algo={algorithm}" if is_lycoris else module
    shown += " and dora_wd=True" if is_dora else ""
    if adapter is None:
        raise ValueError(
            f"{translator.label('network_module')} {shown}: no such adapter is trained here. "
            "Write networks.lora (in kohya_ss: LoRA_type Standard) for a plain LoRA, which the other settings may not "
            "suit"
        )
    translator.take("network_module", adapter, ours="adapter")
    if is_lycoris:
        _add_lycoris_defaults(translator, arguments)
    _take_arguments(translator, arguments)


def _add_lycoris_defaults(translator: Translator, arguments: dict[str, Any]) -> None:
    """LyCORIS also trains convolutions, with rank and alpha of the others unless told otherwise."""
    preset = arguments.pop("preset", "full")
    if preset == _LYCORIS_PRESET:
        arguments.pop("conv_dim", None)
        return
    translator.lose("network_module", f"LyCORIS's preset {preset} trains other layers than target_modules")
    for name, usual, default in (("conv_dim", "network_dim", 4), ("conv_alpha", "network_alpha", 1)):
        if is_off(arguments.get(name)):
            arguments[name] = translator.get(usual, read_float, default)


def _take_arguments(translator: Translator, arguments: dict[str, Any]) -> None:
    rows = {row.name: row for row in NETWORK_ARG_ROWS}
    if not is_off(arguments.get("conv_dim")):
        arguments.setdefault("conv_alpha", 1.0)
    else:
        arguments.pop("conv_alpha", None)
    for name, value in arguments.items():
        row = rows.get(name)
        part = translator.name_part(f"network_args {name}={value}")
        if row is not None:
            translator.take(part, _read(row, value), ours=row.our_name)
        elif not is_off(value):
            translator.lose(part, "there is no such setting here")


def _read(row: Row, value: Any) -> Any:
    try:
        return row.read(value)
    except ValueError as error:
        raise ValueError(f"network_args {row.name} {error}, got {value!r}") from None
