"""What one look at each image shows: a thumbnail, a fingerprint, and how much its mask leaves to
learn.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from PIL import Image

from ..dataset.image import TrainingImage
from ..dataset.near_duplicates import Fingerprint, fingerprint

THUMBNAIL_SIZE = 256
NUM_THREADS = 4  # decode in parallel, but each image of 100 megapixels takes 400 MB


@dataclass(frozen=True)
class ImageLook:
    thumbnail: Image.Image
    fingerprint: Fingerprint | None
    mask_share: float | None  # of the image, that is learned; None: no mask


def look_at_images(
    images: Sequence[TrainingImage],
    *,
    take_fingerprints: bool,
    check_interrupted: Callable[[], None],
    on_progress: Callable[[int, int, str], None],
) -> dict[str, ImageLook]:
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        looks = {}
        for image, look in zip(
            images, pool.map(partial(_inspect_image, take_fingerprints=take_fingerprints), images), strict=True
        ):
            check_interrupted()
            looks[image.name] = look
            on_progress(len(looks), len(images), image.name)
        return looks
    finally:
        pool.shutdown(cancel_futures=True)


def _inspect_image(image: TrainingImage, *, take_fingerprints: bool) -> ImageLook:
    thumbnail = image.read_thumbnail(THUMBNAIL_SIZE)
    mask = image.read_mask()
    mask_share = (
        None
        if mask is None
        else sum(value * count for value, count in enumerate(mask.histogram())) / (255 * mask.width * mask.height)
    )
    return ImageLook(thumbnail, fingerprint(thumbnail) if take_fingerprints else None, mask_share)
