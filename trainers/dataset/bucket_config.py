"""The settings that decide the sizes, crops and changes of the images that are trained."""

from dataclasses import dataclass, replace

from ..config import check_ranges, param


@dataclass(frozen=True)
class BucketConfig:
    """The sizes images are trained at, how they are cropped to them, and how copies are changed."""

    resolution: int = param(
        1024,
        "Images are trained at an area of about resolution x resolution pixels. Usually 1024 for "
        "SDXL; a multiple of 64.",
        min=64,
        max=4096,
    )
    resize_mode: str = param(
        "bucket",
        "bucket keeps the shape of each image as far as possible; center_crop and random_crop cut "
        "squares, random_crop at a different place in every repeat.",
        choices=("bucket", "center_crop", "random_crop"),
    )
    random_flip: bool = param(
        False, "Mirror images left to right at random. Not for faces, text or anything else that looks wrong mirrored."
    )
    bucket_no_upscale: bool = param(
        True, "Never enlarge an image: small images get smaller buckets, and images that are too small are left out."
    )
    bucket_reso_steps: int = param(
        64, "Bucket sides are multiples of this many pixels. Usually 64 or 32; a multiple of 8.", min=8, max=256
    )
    min_bucket_reso: int = param(
        256, "Shortest bucket side in pixels; half of resolution if that is less.", min=8, max=4096
    )
    max_bucket_reso: int = param(2048, "Longest bucket side in pixels.", min=64, max=8192)
    extra_resolutions: str = param(
        "",
        "More resolutions in pixels at which every image is trained, such as: 768, 512. Multiples of "
        "64; each adds one more sample of every image to an epoch. Empty: none.",
    )
    crop_to_subject: str = param(
        "off",
        "Where images with a mask are cropped. center: around the white part of the mask; zoom: also cut down to it "
        "and subject_margin, but never to fewer pixels than resolution needs if the image has them; off: as "
        "resize_mode says. With random_crop, anywhere that shows all of it. Masks weigh the loss too, unless "
        "unmasked_weight is 1.",
        choices=("off", "center", "zoom"),
    )
    subject_margin: float = param(
        0.25,
        "With crop_to_subject zoom: what is kept on each side of the subject, as a share of its width and height. "
        "Usually 0.1 to 0.5.",
        min=0.0,
        max=10.0,
    )
    color_aug: float = param(
        0.0,
        "Train changed copies of every image too: brightness, contrast and saturation by at most this share, hue by "
        "at most 36 degrees times it. Usually 0.05 to 0.15; not for styles. 0: off.",
        min=0.0,
        max=1.0,
    )
    rotation_aug: float = param(
        0.0,
        "Train turned copies of every image too, by at most this many degrees. They are enlarged as far as it takes "
        "to leave no empty corner. Usually 2 to 8; 0: off.",
        min=0.0,
        max=45.0,
    )
    num_augmented_variants: int = param(
        4,
        "Changed copies of each image for color_aug and rotation_aug. Epochs take turns with the image itself and its "
        "copies; each is encoded and cached once. Usually 3 to 10.",
        min=1,
        max=100,
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
        """The resolution, then the extra resolutions."""
        return (self.resolution, *(int(part) for part in self.extra_resolutions.split(",") if part.strip()))

    @property
    def has_variants(self) -> bool:
        """Whether changed copies of images are trained."""
        return bool(self.color_aug or self.rotation_aug)

    def with_resolution(self, resolution: int) -> "BucketConfig":
        """Return the same settings for this resolution alone."""
        return replace(self, resolution=resolution, extra_resolutions="")

    def _require_extra_resolutions(self) -> None:
        try:
            resolutions = self.resolutions
        except ValueError:
            raise ValueError(
                "extra_resolutions must be numbers separated by commas, such as 768, 512; got "
                f"{self.extra_resolutions!r}"
            ) from None
        for extra in resolutions[1:]:
            if resolutions.count(extra) > 1:
                raise ValueError(
                    f"extra_resolutions must differ from each other and from resolution {self.resolution}, got "
                    f"{self.extra_resolutions!r}"
                )
            try:
                self.with_resolution(extra)
            except ValueError as error:
                raise ValueError(f"extra_resolutions has {extra}: {error}") from None

    @property
    def shortest_side(self) -> int:
        """The shortest bucket side allowed, a multiple of bucket_reso_steps."""
        step = self.bucket_reso_steps
        return max(step, -(-min(self.min_bucket_reso, self.resolution // 2) // step) * step)

    @property
    def longest_side(self) -> int:
        """The longest bucket side allowed, a multiple of bucket_reso_steps."""
        longest = min(self.max_bucket_reso, self.resolution**2 // self.shortest_side)
        return longest - longest % self.bucket_reso_steps
