"""Musubi Tuner's dataset.toml: writes one in which no file name can break the syntax, and checks a
user's own.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Table = dict[str, Any]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return _is_int(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_int, value)))


KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "a whole number": _is_int,
    "a number with a point, such as 24.0": lambda value: isinstance(value, float) and math.isfinite(value),
    "a whole number or [width, height]": _is_size,
    "a list of whole numbers": lambda value: isinstance(value, list) and all(map(_is_int, value)),
}
_TEXT, _SWITCH, _NUMBER, _FLOAT, _SIZE, _NUMBERS = KINDS

GENERAL_KEYS = {
    "caption_extension": _TEXT,
    "batch_size": _NUMBER,
    "num_repeats": _NUMBER,
    "resolution": _SIZE,
    "enable_bucket": _SWITCH,
    "bucket_no_upscale": _SWITCH,
}
IMAGE_KEYS = GENERAL_KEYS | {
    "image_directory": _TEXT,
    "image_jsonl_file": _TEXT,
    "cache_directory": _TEXT,
    "control_directory": _TEXT,
    "multiple_target": _SWITCH,
    "fp_latent_window_size": _NUMBER,
    "fp_1f_clean_indices": _NUMBERS,
    "fp_1f_target_index": _NUMBER,
    "fp_1f_no_post": _SWITCH,
    "no_resize_control": _SWITCH,
    "control_resolution": _SIZE,
}
VIDEO_KEYS = GENERAL_KEYS | {
    "video_directory": _TEXT,
    "video_jsonl_file": _TEXT,
    "control_directory": _TEXT,
    "target_frames": _NUMBERS,
    "frame_extraction": _TEXT,
    "frame_stride": _NUMBER,
    "frame_sample": _NUMBER,
    "max_frames": _NUMBER,
    "cache_directory": _TEXT,
    "source_fps": _FLOAT,
    "fp_latent_window_size": _NUMBER,
}
SOURCE_KEYS = ("image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file")
PATH_KEYS = (*SOURCE_KEYS, "control_directory", "cache_directory")
GLOB_CHARACTERS = "[*?"


def write_toml(general: Table, datasets: list[Table]) -> str:
    """Return the text of a dataset.toml, for a file in UTF-8 without a byte order mark.

    Raises:
        ValueError: a text has control characters or is not Unicode.
    """
    tables = [("[general]", general)] * bool(general) + [("[[datasets]]", table) for table in datasets]
    return "\n".join(
        f"{title}\n" + "".join(f"{name} = {_format_value(value)}\n" for name, value in table.items())
        for title, table in tables
    )


def format_path(path: Path) -> str:
    """Format with forward slashes: a backslash is an escape in TOML."""
    return path.as_posix()


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_format_value, value)) + "]"
    return repr(value)


def _quote(text: str) -> str:
    """Quote as a basic string. TOML has JSON's escapes, but Musubi's TOML reader (toml 0.10.2)
    misreads those of control characters.
    """
    if any(ord(character) < 32 or ord(character) == 127 or 0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError(f"{text!r} has characters that a dataset.toml cannot hold. Rename the file or folder")
    return json.dumps(text, ensure_ascii=False)


def has_glob_characters(path: Path) -> bool:
    """Return whether Musubi would not find its caches there, because it globs for them with the
    unescaped folder name.
    """
    return any(character in str(path) for character in GLOB_CHARACTERS)


def read_toml(text: str, *, resolution_step: int) -> tuple[list[Table], list[str]]:
    """Return the [[datasets]] of a user's own text, each with the defaults of [general] and Musubi;
    or none of them, and every problem. The images themselves are not checked here.
    """
    try:
        content = tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        return [], [
            f"dataset_toml is not valid TOML: {error}. Write Windows paths with forward slashes, C:/pictures, or in "
            "single quotes"
        ]
    except RecursionError:
        return [], ["dataset_toml is nested too deeply. Write plain [[datasets]] tables"]
    problems = [
        f"dataset_toml: unknown table {name}; only [general] and [[datasets]] are known"
        for name in content
        if name not in ("general", "datasets")
    ]
    general, datasets = content.get("general", {}), content.get("datasets", [])
    if not isinstance(general, dict):
        return [], [*problems, "dataset_toml: general must be a table, [general]"]
    if not (isinstance(datasets, list) and datasets and all(isinstance(table, dict) for table in datasets)):
        return [], [
            *problems,
            "dataset_toml has no [[datasets]] table with an image_directory. Add one for each folder of images",
        ]
    problems += _check_keys(general, GENERAL_KEYS, "[general]")
    for number, table in enumerate(datasets, start=1):
        problems += _check_table(table, f"[[datasets]] {number}")
    if problems:
        return [], problems
    tables = [{**_DEFAULTS, **general, **table} for table in datasets]
    for number, table in enumerate(tables, start=1):
        problems += _check_values(table, f"[[datasets]] {number}", resolution_step)
    problems += _check_shared_caches(tables)
    return ([] if problems else tables), problems


def list_paths(text: str) -> list[tuple[str, str]]:
    """Return the name and the value of every path in the text; nothing where it cannot be read."""
    try:
        content = tomllib.loads(text.removeprefix("\ufeff"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
    datasets = content.get("datasets", [])
    tables = [content.get("general", {}), *(datasets if isinstance(datasets, list) else [])]
    return [
        (name, value)
        for table in tables
        if isinstance(table, dict)
        for name, value in table.items()
        if name in PATH_KEYS and isinstance(value, str)
    ]


# Musubi's own defaults.
_DEFAULTS: Table = {
    "batch_size": 1,
    "num_repeats": 1,
    "resolution": [960, 544],
    "enable_bucket": False,
    "bucket_no_upscale": False,
}


def is_video(table: Mapping[str, Any]) -> bool:
    return "video_directory" in table or "video_jsonl_file" in table


def size_wh(table: Mapping[str, Any]) -> tuple[int, int]:
    """Return (width, height), the order in which Musubi writes sizes."""
    resolution = table["resolution"]
    return (resolution, resolution) if isinstance(resolution, int) else (resolution[0], resolution[1])


def _check_keys(table: Table, keys: Mapping[str, str], where: str) -> list[str]:
    unknown = sorted(set(table) - set(keys))
    problems = [f"{where} of dataset_toml: unknown key {name}. Known: {', '.join(keys)}" for name in unknown]
    wrong = [name for name, value in table.items() if name in keys and not KINDS[keys[name]](value)]
    return problems + [f"{where} of dataset_toml: {name} must be {keys[name]}, got {table[name]!r}" for name in wrong]


def _check_table(table: Table, where: str) -> list[str]:
    sources = [name for name in SOURCE_KEYS if name in table]
    if len(sources) != 1:
        given = " and ".join(sources) or "none"
        return [f"{where} of dataset_toml: give exactly one of {', '.join(SOURCE_KEYS)}; got {given}"]
    return _check_keys(table, VIDEO_KEYS if is_video(table) else IMAGE_KEYS, where)


def _check_values(table: Table, where: str, resolution_step: int) -> list[str]:
    problems = [
        f"{where} of dataset_toml: {name} must be 1 or more, got {table[name]}"
        for name in ("batch_size", "num_repeats")
        if table[name] < 1
    ]
    if not table["enable_bucket"] and any(side % resolution_step for side in size_wh(table)):
        problems.append(
            f"{where} of dataset_toml: without enable_bucket, both sides of resolution must be multiples of "
            f"{resolution_step}, got {table['resolution']}"
        )
    if min(size_wh(table)) < resolution_step:
        problems.append(
            f"{where} of dataset_toml: resolution must be {resolution_step} or more, got {table['resolution']}"
        )
    for name in PATH_KEYS:
        if name in table:
            problems += [
                f"{where} of dataset_toml: {name} {problem}" for problem in _check_path(name, Path(table[name]))
            ]
    directory = table.get("image_directory") or table.get("video_directory")
    if directory and not table.get("caption_extension"):
        problems.append(f'{where} of dataset_toml: caption_extension is missing. Write caption_extension = ".txt"')
    return problems


def _check_path(name: str, path: Path) -> list[str]:
    if not path.is_absolute():
        return [f"must be an absolute path, got {str(path)!r}"]
    if name == "cache_directory" and has_glob_characters(path):
        return [
            f"{path} has one of {' '.join(GLOB_CHARACTERS)} in its name, so Musubi Tuner would not find its caches. "
            "Rename it"
        ]
    if name == "cache_directory":
        return []  # Musubi creates it
    if name.endswith("_file") and not path.is_file():
        return [f"{path}: there is no such file"]
    if name.endswith("_directory") and not path.is_dir():
        return [f"{path}: there is no such folder"]
    return []


def _check_shared_caches(tables: list[Table]) -> list[str]:
    seen: dict[Path, int] = {}
    problems: list[str] = []
    for number, table in enumerate(tables, start=1):
        if "cache_directory" not in table:
            continue
        other = seen.setdefault(Path(table["cache_directory"]), number)
        if other != number:
            problems.append(
                f"[[datasets]] {number} of dataset_toml has the cache_directory of {other}. Give each its own, or none"
            )
    return problems
