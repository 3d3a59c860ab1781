"""The settings of a dataset: where its images are, and what their captions and masks become."""

from dataclasses import dataclass

from PIL import ImageColor

from ..config import check_ranges, param


@dataclass(frozen=True)
class DatasetConfig:
    """Where the pictures are and what their captions become."""

    images: str = param(
        help="Folder of pictures (png, jpg, jpeg, webp, bmp, avif), each with its caption in a .txt or .caption "
        "file of the same name."
    )
    trigger_word: str = param(
        "", "Word that will call what is learned; put before every caption that does not have it yet."
    )
    fallback_caption: str = param("", "Caption of pictures that have no caption file.")
    num_repeats: int = param(1, "How often each picture is used per epoch.", min=1, max=10_000)
    recursive: bool = param(False, "Also take pictures from subfolders.", advanced=True)
    alpha_background: str = param(
        "#ffffff", "Colour behind transparent parts of a picture: a name or #rrggbb.", advanced=True
    )
    keep_duplicates: bool = param(False, "Keep pictures whose files are the same, byte for byte.", advanced=True)
    strict: bool = param(False, "Stop when any picture has to be left out.", advanced=True)
    mask_source: str = param(
        "files",
        "Where masks come from, white where it is to be learned. files: NAME-masklabel.png beside the picture, or "
        "NAME in a folder mask; "
        "alpha: the picture's transparency; off: no masks.",
        choices=("files", "alpha", "off"),
        advanced=True,
    )
    loss_weight: float = param(
        1.0,
        "What these pictures count in the loss, 0 to 10. Usually 1; 0.5 to 1 for regularization.",
        min=0.0,
        max=10.0,
        advanced=True,
    )
    is_regularization: bool = param(
        False,
        "These pictures show what is not to change: the class, such as dogs, without what is learned. As many of "
        "them are used as of the others.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.images.strip():  # Path("") is the current folder
            raise ValueError("images is empty. Give the folder that holds the pictures")
        try:
            ImageColor.getrgb(self.alpha_background)
        except ValueError:
            raise ValueError(
                f"alpha_background must be a colour such as white or #ffffff, got {self.alpha_background!r}"
            ) from None
        if self.is_regularization and self.trigger_word.strip():
            raise ValueError(
                f"regularization pictures must not have a trigger word, got {self.trigger_word!r}: they show the "
                "class without what is learned. "
                "Empty trigger_word; fallback_caption may name the class, such as: a dog"
            )
