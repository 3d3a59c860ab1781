"""Reads the captions stored next to images: one text file per image, or one metadata.jsonl or CSV
file for all. Names the files and lines that belong to no image.
"""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..files.text_input import parse_json
from ..wording import make_printable, name_examples, name_first, pluralize
from .caption_variants import split_caption_lines
from .image_files import EXTENSIONS, OTHER_IMAGE_EXTENSIONS
from .text_encoding import DecodedText, UndecidedEncoding, decode_text, decode_texts

CAPTION_EXTENSIONS = (".txt", ".TXT", ".caption", ".CAPTION")
METADATA_NAME = "metadata.jsonl"
METADATA_NAMES = (METADATA_NAME, "metadata.csv", "captions.csv")  # the first that names an image counts
MAX_CAPTION_BYTES = 256 * 1024
MAX_METADATA_BYTES = 256 * 2**20
MAX_NAMED = 10
_METADATA_KEYS = ("text", "caption", "prompt")
_NAME_COLUMNS = ("file_name", "filename", "file", "image", "image_file", "image_path", "path", "name")
_CAPTION_COLUMNS = (*_METADATA_KEYS, "captions", "description", "tags")
# Other programs keep captions in such files, which we do not read.
_OTHER_CAPTION_EXTENSIONS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".tags", ".cap", ".captions", ".text")
_LINES_BETWEEN_CHECKS = 1000
_MASK_SUFFIX = "-masklabel"


@dataclass(frozen=True)
class StoredCaption:
    """A caption and what to say about it. error: why it cannot be used. Line breaks are kept: with
    use_wildcards each line is a caption.
    """

    text: str = ""
    notes: list[str] = field(default_factory=list)
    error: str = ""


def list_caption_files(image: Path) -> list[Path]:
    """Return the paths where the image's caption can be; the first that is not empty counts."""
    beside = [image.with_suffix(extension) for extension in CAPTION_EXTENSIONS]
    return beside + [image.with_name(image.name + extension) for extension in CAPTION_EXTENSIONS]


def read_caption_files(
    images: Iterable[Path], *, check_interrupted: Callable[[], None] = lambda: None
) -> dict[Path, StoredCaption]:
    """Read the caption files of all images at once, as their encoding is decided together. Images
    without one are missing in the result.
    """
    files_by_image: dict[Path, list[Path]] = {}
    contents: dict[Path, bytes] = {}
    errors: dict[Path, str] = {}
    for image in images:
        check_interrupted()
        files_by_image[image] = [file for file in list_caption_files(image) if file.is_file()]
        for file in files_by_image[image]:
            if file in contents or file in errors:
                continue
            try:
                contents[file] = _read_bounded(file)
            except (OSError, _TooLong) as error:
                errors[file] = f"its caption {file.name} cannot be used: {_describe_error(error)}"
    decoded = decode_texts(contents, check_interrupted)
    return {image: _choose_caption(files, decoded, errors) for image, files in files_by_image.items() if files}


class _TooLong(ValueError):
    """The file is larger than any caption."""


def _read_bounded(file: Path) -> bytes:
    with open(file, "rb") as stream:
        content = stream.read(MAX_CAPTION_BYTES + 1)
    if len(content) > MAX_CAPTION_BYTES:
        raise _TooLong(f"it has more than {MAX_CAPTION_BYTES // 1024} KB, which is no caption. Shorten it")
    return content


def _describe_error(error: OSError | _TooLong) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _choose_caption(
    files: Sequence[Path], decoded: Mapping[Path, DecodedText | UndecidedEncoding], errors: Mapping[Path, str]
) -> StoredCaption:
    for file in files:
        if file in errors:
            return StoredCaption(error=errors[file])
        found = decoded[file]
        if isinstance(found, UndecidedEncoding):
            return StoredCaption(error=f"its caption {file.name} cannot be used: {found}. Save it as UTF-8")
        if found.text.strip():
            return StoredCaption("\n".join(split_caption_lines(found.text)), _note_encoding(file, found))
    return StoredCaption()


def _note_encoding(file: Path, found: DecodedText) -> list[str]:
    if found.doubt:
        return [
            f"{file.name} was read as {found.encoding}, but could be {found.doubt}. If so, save all captions as UTF-8"
        ]
    return [] if found.encoding == "UTF-8" else [f"{file.name} is not UTF-8; it was read as {found.encoding}"]


def read_metadata(
    folders: Iterable[Path], images: Sequence[Path], *, check_interrupted: Callable[[], None] = lambda: None
) -> tuple[dict[Path, str], list[tuple[Path, str]]]:
    """Return captions by image from every folder's metadata.jsonl (HF imagefolder: file_name and
    text, caption or prompt) and CSV files, and each problem with its file.

    If several files name an image, the first one counts. An image may be named with Windows'
    backslashes, with another extension, or by a path of another machine.

    Raises:
        ValueError: a file is in an unknown encoding, or too large.
    """
    captions: dict[Path, str] = {}
    problems: list[tuple[Path, str]] = []
    known = _KnownImages(images)
    for folder in folders:
        for path in (folder / name for name in METADATA_NAMES):
            if not path.is_file():
                continue
            text, notes = _read_metadata_text(path)
            problems += [(path, note) for note in notes]
            read = _read_csv if path.suffix == ".csv" else _read_json_lines
            useless_lines, without_image = [], []
            for count, (number, name, caption) in enumerate(read(text, folder, known)):
                if count % _LINES_BETWEEN_CHECKS == 0:
                    check_interrupted()
                found = known.find(folder, name) if name and caption else []
                for image in found:
                    captions.setdefault(image, caption)
                if not (name and caption):
                    useless_lines.append(str(number))
                elif not found:
                    without_image.append(name)
            problems += [(path, problem) for problem in _describe_problems(path, useless_lines, without_image)]
    return captions, problems


def _read_metadata_text(path: Path) -> tuple[str, list[str]]:
    size = path.stat().st_size
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"{path}: {size:,} bytes are too many for captions; at most {MAX_METADATA_BYTES:,}")
    try:
        decoded = decode_text(path.read_bytes())
    except UndecidedEncoding as error:
        raise ValueError(f"{path}: {error}. Save it as UTF-8") from error
    notes = [] if decoded.encoding == "UTF-8" else [f"it is not UTF-8; it was read as {decoded.encoding}"]
    return decoded.text, notes


def _describe_problems(path: Path, useless_lines: list[str], without_image: list[str]) -> list[str]:
    problems = []
    if useless_lines:
        expected = (
            f"the columns {_NAME_COLUMNS[0]} and {_METADATA_KEYS[0]}"
            if path.suffix == ".csv"
            else f"a JSON object with file_name and one of {', '.join(_METADATA_KEYS)}"
        )
        problems.append(f"line {name_examples(useless_lines, 5)}: not {expected}; ignored")
    if without_image:
        shown = name_first((make_printable(name) for name in without_image), MAX_NAMED)
        problems.append(f"{pluralize(len(without_image), 'line')} of no image that is read: {shown}")
    return problems


class _KnownImages:
    """The images of the dataset, found by the names that metadata files give them."""

    def __init__(self, images: Sequence[Path]) -> None:
        self._paths = set(images)
        self._by_stem: dict[Path, list[Path]] = {}
        for image in images:
            self._by_stem.setdefault(image.with_suffix(""), []).append(image)

    def find(self, folder: Path, name: str) -> list[Path]:
        """Return the image, or the images that differ from the name only in their extension."""
        for candidate in (name, name.replace("\\", "/")):
            path = Path(os.path.normpath(folder / candidate))
            if path in self._paths:
                return [path]
            if found := self._by_stem.get(path if _has_no_extension(path) else path.with_suffix("")):
                return found
        windows_name = PureWindowsPath(name)
        if windows_name.is_absolute() or PurePosixPath(name).is_absolute():  # a path of another machine
            return self.find(folder, windows_name.name) if windows_name.name else []
        return []


def _has_no_extension(path: Path) -> bool:
    return path.suffix.lower() not in EXTENSIONS + OTHER_IMAGE_EXTENSIONS


def _read_json_lines(text: str, _folder: Path, _known: _KnownImages) -> Iterator[tuple[int, str, str]]:
    """Yield line number, name and caption; "" for what a line lacks."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, *_parse_metadata_line(line)


def _parse_metadata_line(line: str) -> tuple[str, str]:
    try:
        entry: Any = parse_json(line)
    except ValueError:
        return "", ""
    if not isinstance(entry, dict):
        return "", ""
    texts = [entry[key] for key in _METADATA_KEYS if isinstance(entry.get(key), str)]
    name = entry.get("file_name")
    return (name if isinstance(name, str) else ""), (_clean_caption(texts[0]) if texts else "")


def _clean_caption(text: str) -> str:
    """Return the caption's lines; "" if it is too long, or has half of a surrogate pair."""
    is_text = len(text) <= MAX_CAPTION_BYTES and not any("\ud800" <= character <= "\udfff" for character in text)
    return "\n".join(split_caption_lines(text)) if is_text else ""


def _read_csv(text: str, folder: Path, known: _KnownImages) -> Iterator[tuple[int, str, str]]:
    """Yield line number, name and caption; "" for what a line lacks. Without a line that names the
    columns, the first two are name and caption.
    """
    first_row, delimiter = _read_first_row(text, folder, known)
    columns = _find_columns(first_row)
    name_column, caption_column = columns or (0, 1)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    if columns:
        next(rows)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:  # such as a cell of more than 128 KB
            row = ["?"]
        if any(row):
            name, caption = (
                row[column].strip() if column < len(row) else "" for column in (name_column, caption_column)
            )
            yield rows.line_num, name, _clean_caption(caption)


def _read_first_row(text: str, folder: Path, known: _KnownImages) -> tuple[list[str], str]:
    """Return the first row and its delimiter: the one by which it names columns or an image."""
    first_line = text.partition("\n")[0][: MAX_CAPTION_BYTES // 4]
    rows = {delimiter: next(csv.reader([first_line], delimiter=delimiter), []) for delimiter in ",;\t"}
    for delimiter, row in rows.items():
        if _find_columns(row) or (len(row) > 1 and known.find(folder, row[0].strip())):
            return row, delimiter
    return rows[","], ","


def _find_columns(header: list[str]) -> tuple[int, int] | None:
    titles = [title.strip().lower() for title in header]
    names = [titles.index(title) for title in _NAME_COLUMNS if title in titles]
    captions = [titles.index(title) for title in _CAPTION_COLUMNS if title in titles]
    return (names[0], captions[0]) if names and captions else None


def note_unused_files(files_by_folder: Mapping[Path, Sequence[str]]) -> list[tuple[Path, str]]:
    """Return the caption files that belong to no image, and the files of other kinds that may hold
    captions, each with what to say. `files_by_folder` has the names of all files next to the
    images.
    """
    orphans: list[Path] = []
    others: list[Path] = []
    for folder, names in files_by_folder.items():
        images = [name for name in names if _has_extension(name, EXTENSIONS + OTHER_IMAGE_EXTENSIONS)]
        used = {file.name for image in images for file in list_caption_files(Path(image))}
        same_letters = {name.casefold(): name for name in used}
        orphans += [folder / name for name in names if _is_orphan(folder / name, used, same_letters)]
        others += [
            folder / name
            for name in names
            if _has_extension(name, _OTHER_CAPTION_EXTENSIONS) and name not in METADATA_NAMES
        ]
    notes = _note_first(orphans, "it belongs to no image. Name a caption like its image, such as a.txt for a.png")
    return notes + _note_first(
        others, f"such files are not read. Captions are .txt, .caption, {', '.join(METADATA_NAMES)}"
    )


def _has_extension(name: str, extensions: tuple[str, ...]) -> bool:
    return os.path.splitext(name)[1].lower() in extensions


def _is_orphan(file: Path, used: set[str], same_letters: Mapping[str, str]) -> bool:
    if not _has_extension(file.name, (".txt", ".caption")) or file.name in used or file.stem.endswith(_MASK_SUFFIX):
        return False
    # Where the file system ignores case, A.txt is a.png's caption.
    other = same_letters.get(file.name.casefold())
    return other is None or not file.with_name(other).exists()


def _note_first(files: list[Path], reason: str) -> list[tuple[Path, str]]:
    notes = [(file, reason) for file in files[:MAX_NAMED]]
    if len(files) > MAX_NAMED:
        notes.append((files[MAX_NAMED], f"it and {len(files) - MAX_NAMED - 1} more files: {reason}"))
    return notes
