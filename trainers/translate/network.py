"""Moves the kind of adapter from sd-scripts and LyCORIS."""

from typing import Any

from .kohya_table import NETWORK_ARG_ROWS
from .optimizer import split_arguments
from .translation import Row, Translator
from .values import is_off, read_bool, read_text, read_whole

_LYCORIS = "lycoris.kohya"
# What is trained here, by the module of sd-scripts, or by the algorithm of LyCORIS.
_ADAPTERS = {
    "networks.lora": "lora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
}
_ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
_LYCORIS_PRESET = "attn-mlp"  # the layers of target_modules attention_mlp


def take_network(translator: Translator) -> None:
    """Set the adapter and its arguments.

    Raises:
        ValueError: another kind of adapter, or one that does not exist here.
    """
    module = translator.get("network_module", read_text, "networks.lora")
    arguments = translator.get("network_args", split_arguments, {})
    is_lycoris = module == _LYCORIS
    algorithm = str(arguments.pop("algo", "lora")).lower()
    adapter = _ALGORITHMS.get(algorithm) if is_lycoris else _ADAPTERS.get(module)
    is_dora = read_bool(arguments.pop("dora_wd", False))
    if is_dora and adapter == "lora":
        adapter = "dora"
    elif is_dora:
        adapter = None
    shown = f"{module} with algo={algorithm}" if is_lycoris else module
    shown += " and dora_wd=True" if is_dora else ""
    if adapter is None or (adapter != "lora" and not translator.has("adapter")):
        raise ValueError(
            f"{translator.label('network_module')} {shown}: no such adapter is trained here. "
            "Write networks.lora (in kohya_ss: LoRA_type Standard) for a plain LoRA, which the other settings may not "
            "suit"
        )
    if translator.has("adapter"):
        translator.take("network_module", adapter, ours="adapter")
    elif translator.is_given("network_module"):
        translator.same("network_module", "a plain LoRA is trained")
    if is_lycoris:
        _add_lycoris_defaults(translator, arguments)
    _take_arguments(translator, arguments)


def _add_lycoris_defaults(translator: Translator, arguments: dict[str, Any]) -> None:
    """LyCORIS also trains convolutions, with the rank of the other layers unless told otherwise."""
    preset = arguments.pop("preset", "full")
    if preset != _LYCORIS_PRESET:
        translator.lose("network_module", f"LyCORIS's preset {preset} trains other layers than target_modules")
        arguments.setdefault("conv_dim", translator.get("network_dim", read_whole, 4))


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
