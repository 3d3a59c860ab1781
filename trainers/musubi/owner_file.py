"""The file in which the machine's owner says where Musubi Tuner is: two lines of TOML. No route of
ComfyUI's server writes it, and neither do we.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..files.client_folders import ClientFolder, find_client_folder
from ..files.config_folder import default_config_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS = ("folder", "python")


def get_owner_file() -> Path:
    return default_config_folder() / "musubi.toml"


def read_owner_file(client_folders: Sequence[ClientFolder] = ()) -> dict[str, str]:
    """Return `folder` and `python`, "" where the file or its line is missing.

    Raises:
        ValueError: the file cannot be read, has other lines, or is where clients of the server can
            write.
    """
    path = get_owner_file()
    if not path.exists():
        return dict.fromkeys(KEYS, "")
    found = find_client_folder(path, client_folders)
    if found is not None:
        raise ValueError(
            f"{path} is below {found.name} ({found.path}), where clients of the server can write, so it is not "
            "read. Set XDG_CONFIG_HOME (on Windows APPDATA) to another folder"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Write two lines in UTF-8, with the paths in single quotes: "
            f"{format_lines('/path/to/musubi-tuner', '/path/to/python').replace(chr(10), ' and ')}"
        ) from error
    return dict.fromkeys(KEYS, "") | {name: _check_line(path, name, value) for name, value in content.items()}


def format_lines(folder: Path | str, python: Path | str) -> str:
    """Return the file's two lines."""
    return f"folder = {_quote(str(folder))}\npython = {_quote(str(python))}"


def _check_line(path: Path, name: str, value: object) -> str:
    if name not in KEYS:
        raise ValueError(f"{path}: unknown line {name!r}. Known: {', '.join(KEYS)}")
    if not isinstance(value, str) or (value.strip() and not Path(value.strip()).expanduser().is_absolute()):
        raise ValueError(f"{path}: {name} must be an absolute path in single quotes, got {value!r}")
    return value.strip()


def _quote(text: str) -> str:
    """In single quotes backslashes are themselves, as Windows' paths need it."""
    return json.dumps(text, ensure_ascii=False) if "'" in text else f"'{text}'"
