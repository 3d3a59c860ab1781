"""Reads the captions stored next to images: one text file per image, or one metadata.jsonl for
all.
"""

import codecs
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files.text_input import parse_json
from ..wording import name_examples
from .caption_variants import split_caption_lines

CAPTION_EXTENSIONS = (".txt", ".TXT", ".caption", ".CAPTION")
METADATA_NAME = "metadata.jsonl"
_METADATA_KEYS = ("text", "caption", "prompt")


def read_caption_file(image: Path) -> tuple[str, list[str]]:
    """Return the text of the image's first caption file that is not empty, and remarks about it. It
    may be in UTF-8 or in the encodings that Windows programs use.

    Line breaks are kept: with use_wildcards each line is a caption.
    """
    for extension in CAPTION_EXTENSIONS:
        caption_file = image.with_suffix(extension)
        if not caption_file.is_file():
            continue
        text, encoding = _decode(caption_file.read_bytes())
        if text.strip():
            return "\n".join(split_caption_lines(text)), [] if encoding == "UTF-8" else [
                f"{caption_file.name} is not UTF-8; it was read as {encoding}"
            ]
    return "", []


def read_metadata(folders: Iterable[Path]) -> tuple[dict[Path, str], list[tuple[Path, str]]]:
    """Return captions by image from every folder's metadata.jsonl (HF imagefolder: file_name and
    text, caption or prompt), and each problem with its file.

    If several files name an image, the first one counts.
    """
    captions: dict[Path, str] = {}
    problems: list[tuple[Path, str]] = []
    for folder in folders:
        path = folder / METADATA_NAME
        if not path.is_file():
            continue
        useless_lines = []
        for number, line in enumerate(_decode(path.read_bytes())[0].split("\n"), start=1):
            name, caption = _parse_metadata_line(line)
            if name and caption:
                captions.setdefault(Path(os.path.normpath(folder / name)), caption)
            elif line.strip():
                useless_lines.append(str(number))
        if useless_lines:
            shown = name_examples(useless_lines, 5)
            problems.append(
                (
                    path,
                    f"line {shown}: not a JSON object with file_name and one of {', '.join(_METADATA_KEYS)}; ignored",
                )
            )
    return captions, problems


def _parse_metadata_line(line: str) -> tuple[str, str]:
    try:
        entry: Any = parse_json(line)
    except ValueError:
        return "", ""
    if not isinstance(entry, dict):
        return "", ""
    texts = [entry[key] for key in _METADATA_KEYS if isinstance(entry.get(key), str)]
    name = entry.get("file_name")
    return name if isinstance(name, str) else "", "\n".join(split_caption_lines(texts[0])) if texts else ""


def _decode(text: bytes) -> tuple[str, str]:
    """Return the text and the name of its encoding."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return text.decode("utf-16", errors="replace"), "UTF-16"
    try:
        return text.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        return text.decode("cp1252", errors="replace"), "Windows-1252"
