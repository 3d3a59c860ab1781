"""A folder of pictures and captions, checked file by file. How the pictures are cropped stands in buckets.py."""

import codecs
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor

from .config import check_ranges, param
from .picture_files import EXTENSIONS, OTHER_PICTURE_EXTENSIONS, UnusablePicture, inspect_picture, picture_sha256, read_alpha, read_rgb

CAPTION_EXTENSIONS = (".txt", ".TXT", ".caption", ".CAPTION")


@dataclass(frozen=True)
class DatasetConfig:
    """Where the pictures are and what their captions become."""

    images: str = param(help="Folder of pictures (png, jpg, jpeg, webp, bmp, avif), each with its caption in a .txt or .caption file of the same name.")
    trigger_word: str = param("", "Word that will call what is learned; put before every caption that does not have it yet.")
    fallback_caption: str = param("", "Caption of pictures that have no caption file.")
    num_repeats: int = param(1, "How often each picture is used per epoch.", min=1, max=10_000)
    recursive: bool = param(False, "Also take pictures from subfolders.", advanced=True)
    alpha_background: str = param("#ffffff", "Colour behind transparent parts of a picture: a name or #rrggbb.", advanced=True)
    keep_duplicates: bool = param(False, "Keep pictures whose files are the same, byte for byte.", advanced=True)
    strict: bool = param(False, "Stop when any picture has to be left out.", advanced=True)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.images.strip():  # Path("") is the current folder
            raise ValueError("images is empty. Give the folder that holds the pictures")
        try:
            ImageColor.getrgb(self.alpha_background)
        except ValueError:
            raise ValueError(f"alpha_background must be a colour such as white or #ffffff, got {self.alpha_background!r}") from None


@dataclass(frozen=True)
class TrainingImage:
    """One picture and its caption. `name` is its path inside the folder, with forward slashes; `size_hw` is that of the upright original.

    The file is read again when its pixels are needed. RuntimeError: it is not the file any more that was scanned.
    """

    name: str
    path: Path
    sha256: str
    size_hw: tuple[int, int]
    caption: str
    has_alpha: bool
    alpha_background: str = "#ffffff"

    def read(self) -> Image.Image:
        """RGB, upright, transparent parts over alpha_background. A JPEG of more than 100 megapixels comes at a fraction of `size_hw`."""
        self._require_unchanged()
        return read_rgb(self.path, alpha_background=self.alpha_background)

    def read_alpha(self) -> Image.Image | None:
        """Mode "L" (255: opaque), upright; None where the file has no transparency."""
        self._require_unchanged()
        return read_alpha(self.path)

    def _require_unchanged(self) -> None:
        """Caches name what they hold by `sha256`: pixels of a file that was edited meanwhile would be kept under the wrong name."""
        try:
            unchanged = picture_sha256(self.path) == self.sha256
        except UnusablePicture as error:
            raise RuntimeError(f"{self.path}: {error}; when the folder was scanned it could be read. Put it back, or start again without it") from error
        if not unchanged:
            raise RuntimeError(f"{self.path}: the file has changed since the folder was scanned. Start again")


@dataclass(frozen=True)
class Finding:
    """Something about one picture that the user should know."""

    name: str
    reason: str


@dataclass(frozen=True)
class DatasetReport:
    """What became of every picture of the folder; buckets are (height, width) with their number of pictures."""

    num_kept: int
    left_out: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    buckets: dict[tuple[int, int], int] = field(default_factory=dict)

    def text(self) -> str:
        lines = [f"{counted(self.num_kept, 'picture')} kept, {len(self.left_out)} left out"]
        lines += [f"  {height} x {width} (height x width): {count}" for (height, width), count in sorted(self.buckets.items())]
        lines += _section("Left out", self.left_out) + _section("Notes", self.notes)
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "buckets": {f"{height}x{width}": count for (height, width), count in self.buckets.items()}}


def _section(title: str, findings: list[Finding]) -> list[str]:
    return [f"{title}:", *(f"  {finding.name}: {finding.reason}" for finding in findings)] if findings else []


@dataclass(frozen=True)
class Dataset:
    """The pictures that can be used, and what became of the others."""

    images: list[TrainingImage]
    num_repeats: int
    trigger_word: str
    report: DatasetReport
    folder_name: str
    strict: bool = False


def scan_folder(
    config: DatasetConfig, *, check_interrupted: Callable[[], None] = lambda: None, on_progress: Callable[[int, int, str], None] = lambda *_: None
) -> Dataset:
    """Look at every picture of the folder, in the order of their names; nothing is written.

    Left out and named in the report, never replaced by another: empty, damaged, animated or huge files, files of other picture
    formats, copies of an earlier picture, and pictures for which there is no caption, no fallback caption and no trigger word.
    With `strict` that is an error. Hidden files and folders are passed over.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: there is no such folder, or no picture in it that can be used.
    """
    folder = Path(config.images).expanduser()
    paths = _picture_paths(folder, recursive=config.recursive)
    images: list[TrainingImage] = []
    left_out: list[Finding] = []
    notes: list[Finding] = []
    name_by_hash: dict[str, str] = {}
    for count, path in enumerate(paths, start=1):
        check_interrupted()
        name = path.relative_to(folder).as_posix()
        on_progress(count, len(paths), name)
        try:
            image, own_notes = _look_at(path, name, config, {} if config.keep_duplicates else name_by_hash)
        except UnusablePicture as error:
            left_out.append(Finding(name, str(error)))
            continue
        name_by_hash[image.sha256] = name
        images.append(image)
        notes += [Finding(name, note) for note in own_notes]
    require_usable(len(images), left_out, folder=str(folder), strict=config.strict)
    report = DatasetReport(len(images), left_out, notes)
    return Dataset(images, config.num_repeats, _one_line(config.trigger_word), report, folder.resolve().name, config.strict)


def require_usable(num_kept: int, left_out: list[Finding], *, folder: str, strict: bool) -> None:
    """Raise ValueError when nothing is left to train on, or when `strict` and something was left out."""
    if num_kept and not (strict and left_out):
        return
    shown = "; ".join(f"{finding.name}: {finding.reason}" for finding in left_out[:10])
    more = f"; and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    if num_kept:
        raise ValueError(f"{folder}: strict is on and {counted(len(left_out), 'picture')} cannot be used: {shown}{more}")
    raise ValueError(f"{folder}: no usable picture among {len(left_out)}: {shown}{more}")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def with_trigger_word(caption: str, trigger_word: str) -> str:
    """The trigger word in front, once: a caption that has it anywhere as a whole word stays as it is."""
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def _picture_paths(folder: Path, *, recursive: bool) -> list[Path]:
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such folder. Give the folder that holds the pictures")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file. Give the folder that holds the pictures")
    files = [path for path in (folder.rglob("*") if recursive else folder.iterdir()) if _is_visible_file(path.relative_to(folder), folder)]
    pictures = [path for path in files if path.suffix.lower() in EXTENSIONS + OTHER_PICTURE_EXTENSIONS]
    if not pictures:
        content = f"and none in its {counted(len(files), 'file')}" if files else "it is empty"
        has_subfolders = not recursive and any(path.is_dir() for path in folder.iterdir())
        hint = " It has subfolders: turn on recursive to use them." if has_subfolders else ""
        raise ValueError(f"{folder}: no pictures, {content}. Pictures are {', '.join(EXTENSIONS)}.{hint}")
    return sorted(pictures, key=lambda path: _natural_order(path.relative_to(folder).as_posix()))


def _is_visible_file(relative_path: Path, folder: Path) -> bool:
    """A link to a file that is gone counts: it is named in the report."""
    path = folder / relative_path
    return not any(part.startswith(".") for part in relative_path.parts) and (path.is_file() or (path.is_symlink() and not path.exists()))


def _natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """2.png before 10.png, whatever the letters' case."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _look_at(path: Path, name: str, config: DatasetConfig, name_by_hash: dict[str, str]) -> tuple[TrainingImage, list[str]]:
    """The picture and what is to be noted about it. Raises UnusablePicture."""
    if path.suffix.lower() not in EXTENSIONS:
        raise UnusablePicture(f"{path.suffix} files are not read. Convert it to one of {', '.join(EXTENSIONS)}")
    sha256 = picture_sha256(path)
    if sha256 in name_by_hash:
        raise UnusablePicture(f"it is the same file as {name_by_hash[sha256]}")
    facts = inspect_picture(path)
    caption, notes = _caption_of(path, config)
    return TrainingImage(name, path, sha256, facts.size_hw, caption, facts.has_alpha, config.alpha_background), notes


def _caption_of(path: Path, config: DatasetConfig) -> tuple[str, list[str]]:
    """The caption file's text, else the fallback caption, else the trigger word alone; and what is to be noted about it."""
    trigger_word = _one_line(config.trigger_word)
    caption, notes = _read_caption(path)
    if not caption:
        caption = _one_line(config.fallback_caption)
        if not (caption or trigger_word):
            raise UnusablePicture("it has no caption (.txt or .caption). Write one, or set fallback_caption or trigger_word")
        notes = [f"no caption file, or an empty one; {'the fallback caption' if caption else 'the trigger word alone'} is used"]
    return with_trigger_word(caption, trigger_word), notes


def _read_caption(path: Path) -> tuple[str, list[str]]:
    """The text of the first caption file that has any, on one line; UTF-8, or what Windows programs write instead."""
    for extension in CAPTION_EXTENSIONS:
        caption_file = path.with_suffix(extension)
        if not caption_file.is_file():
            continue
        text, encoding = _decoded(caption_file.read_bytes())
        if text.strip():
            return _one_line(text), [] if encoding == "UTF-8" else [f"{caption_file.name} is not UTF-8; it was read as {encoding}"]
    return "", []


def _decoded(text: bytes) -> tuple[str, str]:
    """The text and the name of its encoding."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return text.decode("utf-16", errors="replace"), "UTF-16"
    try:
        return text.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        return text.decode("cp1252", errors="replace"), "Windows-1252"


def _one_line(text: str) -> str:
    return " ".join(text.split())
