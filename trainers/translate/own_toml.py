"""Writes a translation as this trainer's own TOML file, with all notes as comments."""

import json
from collections.abc import Mapping
from typing import Any

from .translation import Translation

_DATASETS = "datasets"


def write_toml(translation: Translation, *, file: str) -> str:
    """Return the text of the TOML file: first the notes, then the settings, then their datasets."""
    notes = [f"# {line}".rstrip() for line in translation.text(file).splitlines()]
    settings = {name: value for name, value in translation.settings.items() if name != _DATASETS}
    lines = [*notes, "", *_write_table(settings)]
    for table in translation.settings.get(_DATASETS, ()):
        lines += ["", f"[[{_DATASETS}]]", *_write_table(table)]
    return "\n".join(lines) + "\n"


def _write_table(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_write_value(value)}" for name, value in table.items()]


def _write_value(value: Any) -> str:
    if isinstance(value, str):
        # A JSON text is a TOML text, but for this one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
