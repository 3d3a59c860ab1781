"""The sections of the check, in the order in which they run: what tells most comes first, and
ComfyUI's servers, whose start takes longest, come last.
"""

from typing import Protocol

from ..bench import Bench
from ..report import Report
from . import agreement, comfyui, interruption, memory, models, optimizers, speed


class Section(Protocol):
    """A module of this folder. Of the whole time the section has the share SHARE_SECONDS of 500;
    with less than NEEDED_SECONDS left it is not begun.
    """

    @property
    def NAME(self) -> str: ...

    @property
    def TITLE(self) -> str: ...

    @property
    def SHARE_SECONDS(self) -> float: ...

    @property
    def NEEDED_SECONDS(self) -> float: ...

    @staticmethod
    def run(bench: Bench, report: Report) -> None: ...


SECTIONS: tuple[Section, ...] = (models, agreement, memory, speed, optimizers, interruption, comfyui)
