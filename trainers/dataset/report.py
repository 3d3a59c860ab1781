"""The report on a dataset: which images are used, which are left out, and remarks."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from ..wording import make_printable, name_first, pluralize

CAPTION_NODE = "Florence-2 Caption (LoRA Trainer)"
NO_CAPTION = f"no caption. Write one, set trigger_word, or connect {CAPTION_NODE}"
MAX_NAMED = 5  # of the files with one remark


class RemarkKind(str, Enum):
    """The subject of a remark. Code decides by this, never by the wording of the reason."""

    OTHER = "other"
    UNUSABLE = "unusable"
    OTHER_FORMAT = "other_format"  # an image in a format that we do not read
    OUTSIDE_KOHYAS_FOLDERS = "outside_kohyas_folders"  # an image next to folders named N_name
    SAME_FILE = "same_file"  # another image with the same bytes is used
    TOO_SMALL = "too_small"
    NO_CAPTION = "no_caption"
    STAND_IN_CAPTION = "stand_in_caption"  # such as the trigger word alone
    NO_SUBJECT = "no_subject"  # that the image could be cropped to

    @property
    def is_about_missing_caption(self) -> bool:
        return self in (RemarkKind.NO_CAPTION, RemarkKind.STAND_IN_CAPTION)


@dataclass(frozen=True)
class Remark:
    """Something the user should know about one image, or about a file or folder next to it."""

    name: str
    reason: str
    kind: RemarkKind = RemarkKind.OTHER

    def __post_init__(self) -> None:
        # Reports are written as UTF-8, and file names need not be.
        object.__setattr__(self, "name", make_printable(self.name))
        object.__setattr__(self, "reason", make_printable(self.reason))


@dataclass(frozen=True)
class DatasetReport:
    """The fate of every image of the folder. buckets: number of images by (height, width)."""

    num_kept: int
    left_out: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    buckets: dict[tuple[int, int], int] = field(default_factory=dict)
    # one line for each folder with repeats, weights, masks or regularization images
    summary: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{pluralize(self.num_kept, 'image')} kept, {len(self.left_out)} left out"]
        lines += [f"  {line}" for line in self.summary]
        lines += [
            f"  {height} x {width} (height x width): {count}" for (height, width), count in sorted(self.buckets.items())
        ]
        lines += _format_section("Left out", self.left_out) + _format_section("Notes", self.notes)
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "buckets": {f"{height}x{width}": count for (height, width), count in self.buckets.items()},
        }


def _format_section(title: str, remarks: list[Remark]) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in format_remarks(remarks))] if remarks else []


def format_remarks(remarks: Iterable[Remark]) -> list[str]:
    """Return a line for each reason, with the first names that it is true of."""
    names_by_reason: dict[str, list[str]] = {}
    for remark in remarks:
        names_by_reason.setdefault(remark.reason, []).append(remark.name)
    return [f"{name_first(names, MAX_NAMED)}: {reason}" for reason, names in names_by_reason.items()]


def require_usable(num_kept: int, left_out: list[Remark], *, folder: str, strict: bool) -> None:
    """Raise ValueError if nothing is left to train on, or if `strict` and anything was left out."""
    if num_kept and not (strict and left_out):
        return
    shown = name_first(format_remarks(left_out), 10, separator="; ", before_rest="; ")
    if num_kept:
        raise ValueError(f"{folder}: strict is on and {pluralize(len(left_out), 'image')} cannot be used: {shown}")
    raise ValueError(f"{folder}: no usable image among {len(left_out)}: {shown}")
