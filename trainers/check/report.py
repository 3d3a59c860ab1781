"""The report of the flight check, as text and as JSON: findings, crops and cost."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from ..dataset.bucket_sizes import Size
from ..dataset.crop import Crop
from ..dataset.image import TrainingImage
from ..training.schedule import Schedule
from ..wording import format_bytes, format_duration, pluralize
from .check_finding import LEVELS, CheckFinding, Level
from .cost import Cost


@dataclass(frozen=True)
class ImageUse:
    """One image at one size: how it is cropped, and its number of samples per epoch."""

    image: TrainingImage
    crop: Crop
    num_samples: int

    @property
    def lost_share(self) -> float:
        """The share of the image's area that is cut away."""
        (resized_height, resized_width), (height, width) = self.crop.resized_hw, self.crop.target_hw
        return 1 - height * width / (resized_height * resized_width)

    @property
    def enlargement(self) -> float:
        return max(
            resized / original for resized, original in zip(self.crop.resized_hw, self.crop.original_hw, strict=True)
        )


@dataclass(frozen=True)
class FlightReport:
    """`uses` has every image once per size, in order; `thumbnails` the readable ones by name."""

    name: str
    model: str
    stop_at: str
    uses: list[ImageUse]
    num_images: int
    num_regularization: int
    num_held_out: int
    num_left_out: int
    num_masks: int
    summary: list[str]
    cost: Cost
    findings: list[CheckFinding]
    duplicate_groups: list[list[str]]
    thumbnails: dict[str, Image.Image] = field(repr=False)

    def select_findings(self, level: Level) -> list[CheckFinding]:
        return [finding for finding in self.findings if finding.level == level]

    @property
    def buckets(self) -> dict[Size, list[ImageUse]]:
        """The uses by size, the largest size first."""
        groups: dict[Size, list[ImageUse]] = defaultdict(list)
        for use in sorted(
            self.uses, key=lambda use: (-use.crop.target_hw[0] * use.crop.target_hw[1], use.crop.target_hw)
        ):
            groups[use.crop.target_hw].append(use)
        return dict(groups)

    @property
    def is_refused(self) -> bool:
        return self.stop_at != "never" and any(
            LEVELS.index(finding.level) >= LEVELS.index(self.stop_at) for finding in self.findings
        )

    @property
    def verdict(self) -> str:
        """One line, such as "refused: 1 error, 2 warnings" or "ready: no findings"."""
        counts = [
            pluralize(len(self.select_findings(level)), level)
            for level in reversed(LEVELS)
            if self.select_findings(level)
        ]
        return f"{'refused' if self.is_refused else 'ready'}: {', '.join(counts) or 'no findings'}"

    def text(self) -> str:
        titles = {"error": "Errors", "warning": "Warnings", "note": "Notes"}
        lines = [f"Flight check of {self.name}: {self.verdict}", "", *self._format_facts(), *self.summary]
        if self.uses:
            lines += ["", "Buckets (width x height)", *self._format_buckets()]
        for level in reversed(LEVELS):
            if self.select_findings(level):
                lines += [
                    "",
                    titles[level],
                    *(line for finding in self.select_findings(level) for line in finding.lines()),
                ]
        return "\n".join(lines) + "\n"

    def _format_buckets(self) -> Iterator[str]:
        for (height, width), uses in self.buckets.items():
            samples = sum(use.num_samples for use in uses)
            yield (
                f"  {width:>5} x {height:<5} {pluralize(len(uses), 'image'):>12}, {pluralize(samples, 'sample')} "
                "per epoch"
            )

    def _format_facts(self) -> Iterator[str]:
        yield f"Model: {self.model}"
        yield self._format_image_counts()
        if self.uses:
            worst = max(self.uses, key=lambda use: use.lost_share)
            mean = sum(use.lost_share for use in self.uses) / len(self.uses)
            yield (
                f"Cropping: {mean:.1%} of an image's area is lost on average, at most {worst.lost_share:.1%} "
                f"({worst.image.name})"
            )
        yield from _format_cost(self.cost)

    def _format_image_counts(self) -> str:
        parts = [pluralize(self.num_images, "image")]
        parts += [f"{self.num_regularization} more for regularization"] if self.num_regularization else []
        parts += [f"{self.num_held_out} held out"] if self.num_held_out else []
        parts += [f"{self.num_masks} with masks"] if self.num_masks else []
        parts += [f"{self.num_left_out} left out"] if self.num_left_out else []
        return "Images: " + ", ".join(parts)

    def tiles(self) -> list[tuple[str, str, str]]:
        """Return the main numbers, each as (name, value, explanation)."""
        cost, left_out = self.cost, f"{self.num_left_out} left out" if self.num_left_out else "none left out"
        tiles = [
            (
                "Images",
                str(self.num_images),
                f"+ {self.num_regularization} regularization" if self.num_regularization else left_out,
            )
        ]
        if cost.schedule is None or cost.disk is None or cost.memory_bytes is None:
            return tiles
        schedule = cost.schedule
        return [
            *tiles,
            ("Steps", f"{schedule.total_steps:,}", f"{schedule.num_epochs:.1f} epochs of {schedule.num_samples}"),
            ("Each is seen", _format_times_seen(schedule).removeprefix("about "), "60 to 100 are usual"),
            ("GPU memory, about", format_bytes(cost.memory_bytes), f"{schedule.pixels_per_step / 1e6:.2g} MP per step"),
            (
                "Time for the steps",
                "unknown" if cost.seconds is None else format_duration(cost.seconds),
                "no run like it yet" if cost.seconds is None else "as an earlier run",
            ),
            ("Disk", format_bytes(cost.disk.total_bytes), f"LoRA {format_bytes(cost.disk.lora_bytes)}"),
        ]

    def require_clear(self) -> None:
        """Raise a ValueError with the whole report if the training is refused."""
        if self.is_refused:
            allowed = "error or never" if self.stop_at == "warning" else "never"
            raise ValueError(f"{self.text()}\nFix what is listed, or set stop_at to {allowed} to train anyway")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON for programs."""
        return {
            "name": self.name,
            "model": self.model,
            "refused": self.is_refused,
            "stop_at": self.stop_at,
            "num_pictures": self.num_images,
            "num_regularization": self.num_regularization,
            "num_held_out": self.num_held_out,
            "num_left_out": self.num_left_out,
            "num_masks": self.num_masks,
            "summary": self.summary,
            "buckets": {f"{width}x{height}": len(uses) for (height, width), uses in self.buckets.items()},
            "pictures": [_convert_use(use, self.cost.schedule) for use in self.uses],
            "cost": _convert_cost(self.cost),
            "duplicate_groups": self.duplicate_groups,
            "findings": [_convert_finding(finding) for finding in self.findings],
        }


def _convert_finding(finding: CheckFinding) -> dict[str, Any]:
    values = asdict(finding)
    values["pictures"] = values.pop("images")  # programs read this key
    return values


def _convert_use(use: ImageUse, schedule: Schedule | None) -> dict[str, Any]:
    return {
        "name": use.image.name,
        "original_hw": list(use.crop.original_hw),
        "target_hw": list(use.crop.target_hw),
        "lost_share": round(use.lost_share, 4),
        "enlargement": round(use.enlargement, 3),
        "samples_per_epoch": use.num_samples,
        "times_seen": round(schedule.times_seen(use.image.name), 1) if schedule else None,
        "caption": use.image.caption,
    }


def _convert_cost(cost: Cost) -> dict[str, Any]:
    values = {**asdict(cost), "seconds": cost.seconds}
    if cost.schedule is not None:  # these counts are already with the images
        values["schedule"] = {
            name: value
            for name, value in values["schedule"].items()
            if name not in ("samples_by_image", "regularization")
        }
    return values


def _format_cost(cost: Cost) -> Iterator[str]:
    if cost.schedule is None or cost.disk is None:
        return
    schedule, disk = cost.schedule, cost.disk
    epochs = f"{schedule.num_epochs:.1f} epochs of {pluralize(schedule.num_samples, 'sample')}"
    yield f"Steps: {schedule.total_steps}, {epochs}; each image is seen {_format_times_seen(schedule)}"
    yield f"Pixels: {schedule.pixels_per_step / 1e6:.2g} million per step on average"
    yield f"Memory: {cost.memory_text}"
    if cost.earlier_run is None or cost.seconds is None:
        yield "Time: unknown, because no earlier run in the output folder has these settings"
    else:
        yield f"Time: about {format_duration(cost.seconds)} for the steps ({cost.earlier_run.text()})"
    checkpoints = (
        f" and as much for each of {pluralize(disk.num_checkpoints, 'checkpoint')}" if disk.num_checkpoints else ""
    )
    extra = f", {pluralize(disk.num_extra_loras, 'more LoRA')} (best, average)" if disk.num_extra_loras else ""
    yield (
        f"Disk: {format_bytes(disk.latents_bytes + disk.captions_bytes)} for latents and captions, "
        f"{format_bytes(disk.lora_bytes)} for the LoRA{checkpoints}{extra}, {format_bytes(disk.states_bytes)} to go on "
        "after a stop"
    )


def _format_times_seen(schedule: Schedule) -> str:
    low, high = schedule.times_seen_range
    return f"about {high:.0f} times" if round(low) == round(high) else f"{low:.0f} to {high:.0f} times"
