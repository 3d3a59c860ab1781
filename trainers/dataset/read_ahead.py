"""Reads the crops of the next images on threads while the one before is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from PIL import Image

from .crop_pixels import read_crop
from .crop_plan import TrainingItem

_NUM_THREADS = 2  # a decoded photo can take 100 MB
_NUM_AHEAD = 4


def read_crops_ahead(
    items: Iterable[TrainingItem], is_wanted: Callable[[TrainingItem], bool]
) -> Iterator[tuple[TrainingItem, Image.Image | None]]:
    """Yield the items in their order, with the crop of those that are wanted.

    Raises:
        RuntimeError: the file of an image has changed since the folder was scanned. Raised at its
            turn.
    """
    waiting: deque[tuple[TrainingItem, Future[Image.Image] | None]] = deque()
    pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="read crops")
    try:
        for item in items:
            waiting.append((item, pool.submit(read_crop, item) if is_wanted(item) else None))
            if len(waiting) > _NUM_AHEAD:
                yield _take(waiting)
        while waiting:
            yield _take(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _take(
    waiting: deque[tuple[TrainingItem, Future[Image.Image] | None]],
) -> tuple[TrainingItem, Image.Image | None]:
    item, crop = waiting.popleft()
    return item, crop.result() if crop else None
