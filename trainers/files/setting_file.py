"""Reads files of settings: TOML and JSON, with errors in the user's words."""

import codecs
import sys
from pathlib import Path
from typing import Any

from .text_input import parse_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOW_TO_WRITE_PATHS = (
    "A backslash in double quotes begins an escape: write paths in single quotes, as in images = 'C:\\photos\\new'"
)


def read_setting_file(path: Path) -> Any:
    """Read a .json file as JSON, any other as TOML.

    Raises:
        ValueError: there is no such file, or it is not valid; the message names it.
    """
    text = _read_text(path)
    if path.suffix.lower() == ".json":
        try:
            return parse_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}. {HOW_TO_WRITE_PATHS}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not valid TOML: brackets are nested too deep") from error


def _read_text(path: Path) -> str:
    """Text in UTF-8 or, with its mark, in UTF-16: Windows' editors write both."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Give the file of settings in it")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    content = path.read_bytes()
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 text. Save the file as UTF-8 in your editor") from error
