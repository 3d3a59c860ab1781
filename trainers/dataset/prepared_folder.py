"""A folder of images as they are trained, cropped and with their captions."""

from collections.abc import Callable
from pathlib import Path

from ..files.atomic_write import atomic_write
from .crop import Crop
from .crop_pixels import read_crop
from .crop_plan import CropPlan, TrainingItem


def write_prepared_folder(
    plan: CropPlan, folder: Path, *, check_interrupted: Callable[[], None] = lambda: None
) -> None:
    """Write every image as it is trained, as PNG with its caption beside it; repeats only where
    their crops differ.

    Raises:
        FileExistsError, NotADirectoryError: the folder has files already, or is one.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file. Give a new folder for the prepared images")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Give a new folder for the prepared images")
    distinct: dict[tuple[str, Crop], TrainingItem] = {}
    for item in plan.items:
        distinct.setdefault((item.image.name, item.crop), item)
    digits = len(str(len(distinct)))
    for count, item in enumerate(distinct.values(), start=1):
        check_interrupted()
        # The number keeps sub/a.png and a.jpg apart; the name is cut where a file system's 255
        # bytes might not hold it.
        stem = f"{count:0{digits}}_{Path(item.image.name).stem[:50]}"
        with atomic_write(folder / f"{stem}.png") as temporary:
            read_crop(item).save(temporary, format="PNG")
        with atomic_write(folder / f"{stem}.txt") as temporary:
            temporary.write_text(item.image.caption + "\n", encoding="utf-8")
