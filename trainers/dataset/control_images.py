"""The control images of a dataset, which an edit model sees beside the caption: which of them
belong to which image, by their names, and how they are checked.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..wording import name_examples, pluralize
from .image import TrainingImage
from .image_files import EXTENSIONS, UnusableImage, image_sha256, inspect_image
from .image_folder import FoundImage, list_images
from .report import Remark

FAMILIES_WITH = "Qwen-Image-Edit, FLUX.1 Kontext or FLUX.2"


@dataclass(frozen=True)
class FoundControls:
    """The control images of a folder. by_image: by the names of their images, in their order.
    notes: remarks on the others.
    """

    by_image: Mapping[str, list[FoundImage]] = field(default_factory=dict)
    notes: list[Remark] = field(default_factory=list)


def find_control_images(folder: Path, images: Collection[str], *, recursive: bool) -> FoundControls:
    """Find the control images of images with these names, in a folder. Opens no file.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: there is no such folder, or it has no
            images.
    """
    try:
        content = list_images(folder, recursive=recursive)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise type(error)(f"control_images: {error}") from None
    found = {control.name: control for control in content.images}
    by_image = {name: [found[control] for control in controls] for name, controls in match_names(images, found).items()}
    used = {control.name for controls in by_image.values() for control in controls}
    notes = [
        Remark(f"{folder.name}/{name}", "a control image of no image: it is not used")
        for name in found
        if name not in used
    ]
    return FoundControls(by_image, notes)


def read_control_images(found: Iterable[FoundImage], *, alpha_background: str) -> tuple[TrainingImage, ...]:
    """Check the control images of one image. Raises UnusableImage if one cannot be used."""
    return tuple(_read(control, alpha_background) for control in found)


def _read(found: FoundImage, alpha_background: str) -> TrainingImage:
    try:
        if found.path.suffix.lower() not in EXTENSIONS:
            raise UnusableImage(f"{found.path.suffix} files are not read. Convert it to one of {', '.join(EXTENSIONS)}")
        sha256, facts = image_sha256(found.path), inspect_image(found.path)
    except UnusableImage as error:
        raise UnusableImage(f"its control image {found.name} cannot be used: {error}") from error
    return TrainingImage(found.name, found.path, sha256, facts.size_hw, "", facts.has_alpha, alpha_background)


def require_control_images(images: Iterable[TrainingImage], folder: str) -> None:
    """Check that each image has a control image. Regularization images need none.

    Raises:
        ValueError: some have none; it names them.
    """
    without = [image.name for image in images if not (image.control_images or image.is_regularization)]
    if without:
        raise ValueError(
            f"{folder}: no control image for {pluralize(len(without), 'image')}: {name_examples(without, 5)}. Give "
            "each control image the name of its image; several of one image end in _0, _1 and so on"
        )


def refuse_control_images(images: Iterable[TrainingImage], model: str) -> None:
    """Raise ValueError if an image has control images, for a model that does not look at them."""
    count = sum(bool(image.control_images) for image in images)
    if count:
        raise ValueError(
            f"{pluralize(count, 'image')} with control images, but {model} does not look at control images. Choose "
            f"{FAMILIES_WITH}, or leave control_images empty"
        )


def match_names(images: Collection[str], controls: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the control images of each image: those named like it, or like it with _
    and a number, in the order of the numbers. Their folders count only where they must.
    """
    by_key = {_key(name): name for name in images}
    by_stem = {_stem(name): name for name in images}
    if len(by_stem) < len(images):  # the same name in several folders
        by_stem = {}
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in images}
    for control in controls:
        name, number = _find_partner(control, by_key, by_stem)
        if name:
            found[name].append((number, control))
    return {
        name: [control for _, control in sorted(partners, key=lambda pair: pair[0])] for name, partners in found.items()
    }


def _find_partner(control: str, by_key: Mapping[str, str], by_stem: Mapping[str, str]) -> tuple[str, int]:
    """Return the name of the image that a control image belongs to ("" for none), and its position
    among the control images of that image.
    """
    candidates = ((by_key, _key(control)), (by_stem, _stem(control)))
    for names, base in candidates:
        if base in names:
            return names[base], 0
    for names, base in candidates:
        start, _, digits = base.rpartition("_")
        if digits.isdecimal() and start in names:
            return names[start], int(digits) + 1
    return "", 0


def _key(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _stem(name: str) -> str:
    return PurePosixPath(name).stem
