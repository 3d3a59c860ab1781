"""The settings of the flight check. Apart from it, so that a node's inputs need nothing else of the
check.
"""

from dataclasses import dataclass

from ..config import check_ranges, param


@dataclass(frozen=True)
class FlightCheckConfig:
    """When the check refuses a training, and what it looks for."""

    stop_at: str = param(
        "error",
        "Stop the run at findings of this level: error, warning (and errors), or never.",
        choices=("error", "warning", "never"),
    )
    find_near_duplicates: bool = param(
        True,
        "Look for images that are resized, recompressed or slightly cropped copies of others. Needs "
        "the package ImageHash.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
