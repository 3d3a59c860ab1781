"""Writes a folder of images as they are trained: cropped, with their captions."""

from collections.abc import Callable
from pathlib import Path

from ..files.atomic_write import atomic_write
from .crop import Crop
from .crop_pixels import read_crop
from .crop_plan import CropPlan, TrainingItem


def write_prepared_folder(
    plan: CropPlan, folder: Path, *, check_interrupted: Callable[[], None] = lambda: None
) -> None:
    """Write every image as it is trained, as a PNG file with its caption in a .txt file. Repeats
    are written only if their crops differ.

    Raises:
        FileExistsError, NotADirectoryError: the folder is not empty, or it is a file.
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
        # The number tells sub/a.png from a.jpg; the name is cut because file systems allow only 255
        # bytes.
        stem = f"{count:0{digits}}_{Path(item.image.name).stem[:50]}"
        with atomic_write(folder / f"{stem}.png") as temporary:
            read_crop(item).save(temporary, format="PNG")
        with atomic_write(folder / f"{stem}.txt") as temporary:
            temporary.write_text(item.image.caption + "\n", encoding="utf-8")
