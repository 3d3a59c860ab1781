"""One finding of the flight check, with its level."""

from dataclasses import dataclass, field
from typing import Literal

from ..dataset.report import Remark

Level = Literal["note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("note", "warning", "error")
MAX_SHOWN = 8  # images under one finding


@dataclass(frozen=True)
class CheckFinding:
    """`kind` is for programs. `message` says what was found and what to do, `images` in which
    images and why.
    """

    level: Level
    kind: str
    message: str
    images: list[Remark] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [f"  {self.message}", *(f"    {line}" for line in self.image_lines(MAX_SHOWN))]

    def image_lines(self, max_shown: int) -> list[str]:
        """Return one line per image if all have reasons, else all names on one line."""
        shown, num_hidden = self.images[:max_shown], len(self.images) - max_shown
        more = [f"and {num_hidden} more"] if num_hidden > 0 else []
        if all(image.reason for image in shown):
            return [*(f"{image.name}: {image.reason}" for image in shown), *more]
        return [" ".join([", ".join(image.name for image in shown), *more])]
