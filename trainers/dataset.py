"""A folder of pictures and captions, checked file by file. How the pictures are cropped stands in buckets.py."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor

from .config import check_ranges, param
from .picture_files import EXTENSIONS, UnusablePicture, inspect_picture, read_alpha, read_rgb

CAPTION_EXTENSIONS = (".txt", ".caption")


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
        try:
            ImageColor.getrgb(self.alpha_background)
        except ValueError:
            raise ValueError(f"alpha_background must be a colour such as white or #ffffff, got {self.alpha_background!r}") from None


@dataclass(frozen=True)
class TrainingImage:
    """One picture and its caption. `name` is its path inside the folder, with forward slashes."""

    name: str
    path: Path
    sha256: str
    size_hw: tuple[int, int]
    caption: str
    has_alpha: bool
    alpha_background: str = "#ffffff"

    def read(self) -> Image.Image:
        """RGB, upright, transparent parts over alpha_background."""
        return read_rgb(self.path, alpha_background=self.alpha_background)

    def read_alpha(self) -> Image.Image | None:
        return read_alpha(self.path)


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
        lines = [f"{self.num_kept} pictures kept, {len(self.left_out)} left out"]
        lines += [f"  {height} x {width} (height x width): {count}" for (height, width), count in sorted(self.buckets.items())]
        lines += _section("Left out", self.left_out) + _section("Notes", self.notes)
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "buckets": {f"{height}x{width}": count for (height, width), count in self.buckets.items()}}


def _section(title: str, findings: list[Finding]) -> list[str]:
    return [f"{title}:", *(f"  {finding.name}: {finding.reason}" for finding in findings)] if findings else []


@dataclass(frozen=True)
class Dataset:
    images: list[TrainingImage]
    num_repeats: int
    trigger_word: str
    report: DatasetReport
    folder_name: str
    strict: bool = False


def scan_folder(
    config: DatasetConfig, *, check_interrupted: Callable[[], None] = lambda: None, on_progress: Callable[[int, int, str], None] = lambda *_: None
) -> Dataset:
    """Look at every picture of the folder, in the order of their names.

    Left out and named in the report, never replaced by another: empty, damaged, animated or huge files, copies of an earlier
    picture, and pictures for which there is no caption, no fallback caption and no trigger word. With `strict` that is an error.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: there is no such folder, or no picture in it that can be used.
    """
    folder = Path(config.images).expanduser()
    paths = _picture_paths(folder, recursive=config.recursive)
    images: list[TrainingImage] = []
    left_out: list[Finding] = []
    notes: list[Finding] = []
    first_by_hash: dict[str, str] = {}
    for count, path in enumerate(paths, start=1):
        check_interrupted()
        name = path.relative_to(folder).as_posix()
        on_progress(count, len(paths), name)
        try:
            image = _look_at(path, name, config, notes)
            if not config.keep_duplicates and image.sha256 in first_by_hash:
                raise UnusablePicture(f"it is the same file as {first_by_hash[image.sha256]}")
        except UnusablePicture as error:
            left_out.append(Finding(name, str(error)))
            continue
        first_by_hash.setdefault(image.sha256, name)
        images.append(image)
    require_usable(len(images), left_out, folder=str(folder), strict=config.strict)
    report = DatasetReport(len(images), left_out, notes)
    return Dataset(images, config.num_repeats, config.trigger_word.strip(), report, folder.resolve().name, config.strict)


def require_usable(num_kept: int, left_out: list[Finding], *, folder: str, strict: bool) -> None:
    """Raise ValueError when nothing is left to train on, or when `strict` and something was left out."""
    if num_kept and not (strict and left_out):
        return
    shown = "; ".join(f"{finding.name}: {finding.reason}" for finding in left_out[:10])
    more = f"; and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    if num_kept:
        raise ValueError(f"{folder}: strict is on and {len(left_out)} pictures cannot be used: {shown}{more}")
    raise ValueError(f"{folder}: none of its {len(left_out)} pictures can be used: {shown}{more}")


def _picture_paths(folder: Path, *, recursive: bool) -> list[Path]:
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such folder. Give the folder that holds the pictures")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file. Give the folder that holds the pictures")
    files = [path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    pictures = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if not pictures:
        content = f"its {len(files)} files are none" if files else "it is empty"
        hint = "" if recursive or not any(path.is_dir() for path in folder.iterdir()) else " It has subfolders: turn on recursive to use them."
        raise ValueError(f"{folder}: no pictures, {content}. Pictures are {', '.join(EXTENSIONS)}.{hint}")
    return sorted(pictures, key=lambda path: _natural_order(path.relative_to(folder).as_posix()))


def _natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """2.png before 10.png, whatever the letters' case."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _look_at(path: Path, name: str, config: DatasetConfig, notes: list[Finding]) -> TrainingImage:
    facts = inspect_picture(path)
    caption = _caption_of(path, name, config, notes)
    return TrainingImage(name, path, facts.sha256, facts.size_hw, caption, facts.has_alpha, config.alpha_background)


def _caption_of(path: Path, name: str, config: DatasetConfig, notes: list[Finding]) -> str:
    """The caption file's text, else the fallback caption, else the trigger word alone."""
    caption = _read_caption(path, name, notes)
    if not caption:
        caption = " ".join(config.fallback_caption.split())
        source = "the fallback caption" if caption else "the trigger word alone"
        if not (caption or config.trigger_word.strip()):
            raise UnusablePicture("it has no caption (.txt or .caption). Write one, or set fallback_caption or trigger_word")
        notes.append(Finding(name, f"no caption file, or an empty one; {source} is used"))
    return with_trigger_word(caption, config.trigger_word.strip())


def _read_caption(path: Path, name: str, notes: list[Finding]) -> str:
    for extension in CAPTION_EXTENSIONS:
        caption_file = path.with_suffix(extension)
        if caption_file.is_file():
            data = caption_file.read_bytes()
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = data.decode("cp1252", errors="replace")
                notes.append(Finding(name, f"{caption_file.name} is not UTF-8; it was read as Windows-1252"))
            return " ".join(text.split())
    return ""


def with_trigger_word(caption: str, trigger_word: str) -> str:
    """The trigger word in front, once: a caption that has it anywhere as a whole word stays as it is."""
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word
