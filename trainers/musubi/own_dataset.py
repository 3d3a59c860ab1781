"""Checks the images of a user's own dataset.toml before anything starts: which of them Musubi Tuner
would skip, mix up or fail on.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.text_input import parse_json
from ..wording import name_examples, pluralize
from .config import Recipe
from .dataset_folder import CacheFolder, StagedDataset, hash_facts
from .dataset_toml import Table, format_path, is_video, read_toml, write_toml

_LOWER = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
_EXTENSIONS = (*_LOWER, *(extension.upper() for extension in _LOWER))  # Musubi knows no .Png


@dataclass(frozen=True)
class _Item:
    """An image of a [[datasets]] table, with its control images."""

    path: Path
    caption: str
    controls: tuple[Path, ...]


@dataclass(frozen=True)
class _Content:
    items: list[_Item]
    problems: list[str]
    notices: list[str]


def stage_own(text: str, *, recipe: Recipe, cache_root: Path, cache_facts: Mapping[str, Any]) -> StagedDataset:
    """Read and check the text, and write it again, so that Musubi only gets what we understood.

    A [[datasets]] table without a cache_directory gets one of ours, because Musubi would put its
    caches among the images. Caches in a user's own cache_directory are never reused.

    Raises:
        ValueError: lists every problem, each with its remedy.
    """
    tables, problems = read_toml(text, resolution_step=recipe.architecture.resolution_step)
    contents = [
        _Content([], [], []) if is_video(table) else _read_table(table, number)
        for number, table in enumerate(tables, start=1)
    ]
    problems += [problem for content in contents for problem in content.problems]
    if not problems:
        for number, (table, content) in enumerate(zip(tables, contents, strict=True), start=1):
            problems += [] if is_video(table) else _check_controls(table, content, recipe, f"[[datasets]] {number}")
    if problems:
        raise ValueError("\n".join(problems))
    cache = cache_root / hash_facts(
        tables=tables, images=[_collect_facts(content) for content in contents], **cache_facts
    )
    caches = _choose_caches(tables, contents, cache)
    written = [
        {**table, "cache_directory": format_path(folder.path)} for table, folder in zip(tables, caches, strict=True)
    ]
    has_videos = any(map(is_video, tables))
    return StagedDataset(
        (),
        caches if all("cache_directory" not in table for table in tables) else (),
        cache,
        write_toml({}, written),
        num_images=0 if has_videos else sum(len(content.items) for content in contents),
        num_items=0
        if has_videos
        else sum(len(content.items) * table["num_repeats"] for table, content in zip(tables, contents, strict=True)),
        notices=tuple(notice for content in contents for notice in content.notices),
    )


def has_control(text: str, *, resolution_step: int) -> bool:
    """Return whether a checked dataset.toml has control images."""
    tables, _ = read_toml(text, resolution_step=resolution_step)
    return any("control_directory" in table or _jsonl_has_control(table) for table in tables)


def _choose_caches(tables: list[Table], contents: list[_Content], cache: Path) -> tuple[CacheFolder, ...]:
    folders = [
        Path(table["cache_directory"]) if "cache_directory" in table else cache / str(number)
        for number, table in enumerate(tables, start=1)
    ]
    return tuple(CacheFolder(folder, len(content.items)) for folder, content in zip(folders, contents, strict=True))


def _collect_facts(content: _Content) -> list[list[Any]]:
    """Return facts that identify each image and its caption: sizes and times instead of hashes,
    since the user's folders may be large.
    """
    return [
        [
            [_read_file_facts(path) for path in (item.path, *item.controls)],
            hashlib.sha256(item.caption.encode()).hexdigest(),
        ]
        for item in content.items
    ]


def _read_file_facts(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def _read_table(table: Table, number: int) -> _Content:
    where = f"[[datasets]] {number} of dataset_toml"
    content = (
        _read_directory(table, where)
        if "image_directory" in table
        else _read_jsonl(Path(table["image_jsonl_file"]), where)
    )
    if not content.items and not content.problems:
        content.problems.append(
            f"{where}: no image with a caption. Put a text file of the same name next to each image"
        )
    stems = Counter(item.path.stem for item in content.items)
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        content.problems.append(
            f"{where}: several images are called {twice[0]}, and Musubi Tuner would keep only one in its cache. "
            "Rename them, or move them to separate [[datasets]]"
        )
    return content


def _read_directory(table: Table, where: str) -> _Content:
    folder = Path(table["image_directory"])
    images = sorted(path for path in folder.iterdir() if path.suffix in _EXTENSIONS)
    others = [
        path.name for path in folder.iterdir() if path.suffix.lower() in _LOWER and path.suffix not in _EXTENSIONS
    ]
    notices = [f"{where}: Musubi Tuner ignores {name}. Write its suffix in lower case" for name in others]
    controls = _pair_controls(Path(table["control_directory"]), images) if "control_directory" in table else {}
    items: list[_Item] = []
    problems: list[str] = []
    without: list[str] = []
    for path in images:
        caption_file = path.with_suffix(table["caption_extension"])
        if not caption_file.is_file():
            without.append(path.name)
            continue
        caption, problem = _read_caption(caption_file)
        problems += [f"{where}: {problem}"] if problem else []
        items.append(_Item(path, caption, tuple(controls.get(path, ()))))
    if without and not table.get("multiple_target"):
        shown = name_examples(without, 5)
        notices.append(
            f"{where}: Musubi Tuner leaves out {pluralize(len(without), 'image')} without a caption: {shown}"
        )
    return _Content(items, problems, notices)


def _read_caption(path: Path) -> tuple[str, str]:
    """Return the caption, or the problem with its file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "", f"{path} is not in UTF-8, and Musubi Tuner would fail on it. Save it as UTF-8"
    if text.startswith("\ufeff"):
        return (
            "",
            f"{path} begins with a byte order mark, which would become part of the caption. Save it as UTF-8 "
            "without a BOM",
        )
    return text.strip(), ""


def _pair_controls(folder: Path, images: list[Path]) -> dict[Path, list[Path]]:
    """Pair control images with images as Musubi does: from the longest image name to the shortest,
    each takes all remaining control images that begin with its name and . or _.
    """
    left = {path for path in folder.iterdir() if path.suffix in _EXTENSIONS}
    found: dict[Path, list[Path]] = {}
    for image in sorted(images, key=lambda path: len(path.name), reverse=True):
        own = sorted(path for path in left if path.name.startswith((f"{image.stem}.", f"{image.stem}_")))
        left -= set(own)
        found[image] = own
    return found


def _read_jsonl(path: Path, where: str) -> _Content:
    content = _Content([], [], [])
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        content.problems.append(f"{where}: {path} is not in UTF-8. Save it as UTF-8")
        return content
    for number, line in enumerate(lines, start=1):
        item, problem = _read_jsonl_item(line)
        if item is None:
            content.problems.append(f"{where}: line {number} of {path} {problem}")
        else:
            content.items.append(item)
    return content


def _read_jsonl_item(line: str) -> tuple[_Item | None, str]:
    try:
        entry = parse_json(line)
    except ValueError:
        return None, "is not JSON"
    if not (
        isinstance(entry, dict) and isinstance(entry.get("image_path"), str) and isinstance(entry.get("caption"), str)
    ):
        return None, 'must be {"image_path": "...", "caption": "..."}'
    paths = [Path(value) for name, value in sorted(entry.items()) if name.startswith("control_path")]
    for path in (Path(entry["image_path"]), *paths):
        if not (path.is_absolute() and path.is_file()):
            return None, f"names {path}, which is not the absolute path of a file"
    return _Item(Path(entry["image_path"]), entry["caption"], tuple(paths)), ""


def _jsonl_has_control(table: Table) -> bool:
    return "image_jsonl_file" in table and any(
        item.controls for item in _read_jsonl(Path(table["image_jsonl_file"]), "").items
    )


def _check_controls(table: Table, content: _Content, recipe: Recipe, where: str) -> list[str]:
    architecture, limit = recipe.architecture, recipe.architecture.find_control_limit(recipe.options)
    where = f"{where} of dataset_toml"
    given = "control_directory" in table or any(item.controls for item in content.items)
    if given and architecture.control_images == "none":
        return [f"{where}: {architecture.title} takes no control images. Leave out control_directory"]
    if not given:
        return (
            [f"{where}: {architecture.title} needs control images. Set control_directory"]
            if architecture.control_images == "required"
            else []
        )
    without = [item.path.name for item in content.items if not item.controls]
    too_many = [item.path.name for item in content.items if limit and len(item.controls) > limit]
    problems = (
        [f"{where}: no control image for {', '.join(without[:5])}. Give each control image the name of its image"]
        if without
        else []
    )
    return problems + (
        [f"{where}: {too_many[0]} has several control images, but {architecture.title} takes {limit} per image here"]
        if too_many
        else []
    )
