"""One image of a dataset with its caption. Pixels are read from the file when needed."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .image_files import MAX_PIXELS, UnusableImage, image_sha256, read_alpha, read_grey, read_rgb


@dataclass(frozen=True)
class TrainingImage:
    """One image and its caption. The read methods open the file again, and raise RuntimeError if it
    has changed since the scan.

    name: path inside the folder, with forward slashes.
    size_hw: size of the upright original.
    caption: empty if there is none yet; with the lines of the caption file (vary_caption joins
        them or chooses one).
    mask_path, mask_sha256: the mask. Without mask_path it is the image's own alpha channel; without
        mask_sha256 there is no mask.
    trigger_word: None for the dataset's.
    subset: kohya's term for the folder that the image is counted with: the joined dataset's name,
        or kohya's N_name, or both ("toys/10_dog"). Empty for the dataset's own.
    is_validation: never trained on, only used to measure what is learned.
    subject_box: left, top, right and bottom of the mask's white part, in pixels of the original;
        None if nothing is white.
    control_images: what an edit model sees beside the caption, in order; they have no caption.
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
    is_validation: bool = False
    control_images: tuple["TrainingImage", ...] = ()
    subject_box: tuple[int, int, int, int] | None = None

    @property
    def content(self) -> tuple[str, ...]:
        """The hashes of its file and of its control images: two images of one content are
        copies.
        """
        return self.sha256, *(control.sha256 for control in self.control_images)

    def read(self, *, max_pixels: int | None = None) -> Image.Image:
        """Return the image in RGB, upright, transparent parts over alpha_background. A JPEG of more
        than `max_pixels` (default 100 million) is decoded at a fraction of `size_hw`.
        """
        require_unchanged(self.path, self.sha256)
        return read_rgb(self.path, alpha_background=self.alpha_background, max_pixels=max_pixels)

    def read_thumbnail(self, size: int) -> Image.Image:
        """Return the image as `read` does, with no side longer than `size`. A large JPEG is decoded
        only as far as that needs.
        """
        image = self.read(max_pixels=(4 * size) ** 2)
        image.thumbnail((size, size), reducing_gap=2.0)
        return image

    def read_alpha(self) -> Image.Image | None:
        """Return the opacity, mode "L" (255: opaque), upright; None if the file has no
        transparency.
        """
        require_unchanged(self.path, self.sha256)
        return read_alpha(self.path)

    def read_mask(self) -> Image.Image | None:
        """Return the mask, mode "L" (255: learned), upright, resized to `size_hw`; None if there is
        no mask. Above 100 megapixels a mask file keeps its own size.
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
    """Raise RuntimeError if the file is gone or its hash differs from `sha256`.

    Caches file pixels under this hash, so an edited file's pixels would land under the wrong name.
    """
    try:
        unchanged = image_sha256(path) == sha256
    except UnusableImage as error:
        raise RuntimeError(
            f"{path}: {error}. It was readable when the folder was scanned. Put it back, or start again without it"
        ) from error
    if not unchanged:
        raise RuntimeError(f"{path}: the file has changed since the folder was scanned. Start again")
