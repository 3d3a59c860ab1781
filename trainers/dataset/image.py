"""One image of a dataset with its caption. Its pixels are read again when they are needed."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .image_files import MAX_PIXELS, UnusableImage, image_sha256, read_alpha, read_grey, read_rgb


@dataclass(frozen=True)
class TrainingImage:
    """One image and its caption. `name` is its path inside the folder, with forward slashes;
    `size_hw` is that of the upright original.

    `caption` is empty where there is none yet, and has several lines where its file has:
    caption_variants makes them one. `mask_sha256` is empty where there is no mask; the mask is the
    file `mask_path`, or without one the image's own alpha channel. `trigger_word` None: the
    dataset's. `subset` is what kohya calls so, the folder that it counts with in a dataset of
    several: the joined dataset's name, or kohya's N_name (both: "toys/10_dog"); empty: the
    dataset's own. Files are read again when their pixels are needed. RuntimeError: it is not the
    file any more that was scanned.
    """

    name: str
    path: Path
    sha256: str
    size_hw: tuple[int, int]
    caption: str
    has_alpha: bool
    alpha_background: str = "#ffffff"
    num_repeats: int = 1
    loss_weight: float = 1.0
    is_regularization: bool = False
    mask_path: Path | None = None
    mask_sha256: str = ""
    trigger_word: str | None = None
    subset: str = ""

    def read(self, *, max_pixels: int | None = None) -> Image.Image:
        """RGB, upright, transparent parts over alpha_background. A JPEG of more than `max_pixels`,
        usually 100 million, comes at a fraction of `size_hw`.
        """
        require_unchanged(self.path, self.sha256)
        return read_rgb(self.path, alpha_background=self.alpha_background, max_pixels=max_pixels)

    def read_thumbnail(self, size: int) -> Image.Image:
        """As `read`, with no side longer than `size`; of a large JPEG only as much is decoded as
        that needs.
        """
        image = self.read(max_pixels=(4 * size) ** 2)
        image.thumbnail((size, size), reducing_gap=2.0)
        return image

    def read_alpha(self) -> Image.Image | None:
        """Mode "L" (255: opaque), upright; None where the file has no transparency."""
        require_unchanged(self.path, self.sha256)
        return read_alpha(self.path)

    def read_mask(self) -> Image.Image | None:
        """Mode "L" (255: learned), upright, of `size_hw`; None where there is no mask. Beyond 100
        megapixels a mask file keeps its own size.
        """
        if not self.mask_sha256:
            return None
        if self.mask_path is None:
            return self.read_alpha()
        require_unchanged(self.mask_path, self.mask_sha256)
        mask = read_grey(self.mask_path)
        height, width = self.size_hw
        if mask.size == (width, height) or height * width > MAX_PIXELS:
            return mask
        return mask.resize((width, height), Image.Resampling.BILINEAR)


def require_unchanged(path: Path, sha256: str) -> None:
    """Caches name what they hold by its hash: pixels of a file that was edited meanwhile would be
    kept under the wrong name.
    """
    try:
        unchanged = image_sha256(path) == sha256
    except UnusableImage as error:
        raise RuntimeError(
            f"{path}: {error}; when the folder was scanned it could be read. Put it back, or start again without it"
        ) from error
    if not unchanged:
        raise RuntimeError(f"{path}: the file has changed since the folder was scanned. Start again")
