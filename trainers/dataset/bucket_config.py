"""The settings that decide at what sizes images are trained."""

from dataclasses import dataclass, replace

from ..config import check_ranges, param


@dataclass(frozen=True)
class BucketConfig:
    """What sizes the pictures are trained at."""

    resolution: int = param(
        1024,
        "Pictures are trained at about resolution x resolution pixels; 1024 for SDXL. A multiple of 64.",
        min=64,
        max=4096,
    )
    resize_mode: str = param(
        "bucket",
        "bucket keeps each picture's shape as well as possible; center_crop and random_crop cut squares, "
        "random_crop elsewhere in every repeat.",
        choices=("bucket", "center_crop", "random_crop"),
    )
    random_flip: bool = param(
        False, "Mirror pictures at random, left and right. Not for faces, text or anything with sides."
    )
    bucket_no_upscale: bool = param(
        True, "Never enlarge a picture: small ones get smaller sizes, and too small ones are left out.", advanced=True
    )
    bucket_reso_steps: int = param(
        64, "Bucket sides are multiples of this. A multiple of 8.", min=8, max=256, advanced=True
    )
    min_bucket_reso: int = param(
        256, "Shortest bucket side, or half of resolution where that is less.", min=8, max=4096, advanced=True
    )
    max_bucket_reso: int = param(2048, "Longest bucket side.", min=64, max=8192, advanced=True)
    extra_resolutions: str = param(
        "",
        "Every picture is trained at these resolutions too, such as: 768, 512. Each adds as many samples.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, step in (("resolution", 64), ("bucket_reso_steps", 8)):
            value = getattr(self, name)
            if value % step:
                raise ValueError(
                    f"{name} must be a multiple of {step}, got {value}. The nearest are {value - value % step} and "
                    f"{value - value % step + step}"
                )
        if self.bucket_reso_steps > self.resolution:
            raise ValueError(
                f"bucket_reso_steps must not be above resolution {self.resolution}, got {self.bucket_reso_steps}"
            )
        if self.max_bucket_reso < self.resolution:
            raise ValueError(
                f"max_bucket_reso must not be below resolution {self.resolution}, got {self.max_bucket_reso}"
            )
        self._require_extra_resolutions()

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolution and the extra ones."""
        return (self.resolution, *(int(part) for part in self.extra_resolutions.split(",") if part.strip()))

    def at(self, resolution: int) -> "BucketConfig":
        """The same with one resolution only."""
        return replace(self, resolution=resolution, extra_resolutions="")

    def _require_extra_resolutions(self) -> None:
        try:
            resolutions = self.resolutions
        except ValueError:
            raise ValueError(
                "extra_resolutions must be numbers with commas between, such as 768, 512; got "
                f"{self.extra_resolutions!r}"
            ) from None
        for extra in resolutions[1:]:
            if resolutions.count(extra) > 1:
                raise ValueError(
                    f"extra_resolutions must differ from one another and from resolution {self.resolution}, got "
                    f"{self.extra_resolutions!r}"
                )
            try:
                self.at(extra)
            except ValueError as error:
                raise ValueError(f"extra_resolutions has {extra}: {error}") from None

    @property
    def shortest_side(self) -> int:
        """The shortest bucket side in force, a multiple of bucket_reso_steps."""
        step = self.bucket_reso_steps
        return max(step, -(-min(self.min_bucket_reso, self.resolution // 2) // step) * step)

    @property
    def longest_side(self) -> int:
        """The longest bucket side in force, a multiple of bucket_reso_steps."""
        longest = min(self.max_bucket_reso, self.resolution**2 // self.shortest_side)
        return longest - longest % self.bucket_reso_steps
