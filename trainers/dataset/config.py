"""The settings of a dataset: where its images are and how captions and masks are used."""

from dataclasses import dataclass

from PIL import ImageColor

from ..config import check_ranges, param


@dataclass(frozen=True)
class DatasetConfig:
    """Where the images are and how captions and masks are used."""

    images: str = param(
        help="Folder of images (png, jpg, jpeg, webp, bmp, avif), each with its caption in a .txt or "
        ".caption file of the same name."
    )
    trigger_word: str = param(
        "",
        "Word that calls up what the LoRA learns: usually one rare word, such as zwx. Added in front of "
        "every caption that does not contain it as a whole word.",
    )
    fallback_caption: str = param(
        "", "Caption for images without a caption file (or with an empty one) and without a line in metadata.jsonl."
    )
    num_repeats: int = param(
        1,
        "Uses of each image per epoch. Usually 1; more makes epochs longer and adds to the goal's "
        "number of samples. With random_crop, every repeat gets a different crop.",
        min=1,
        max=10_000,
    )
    recursive: bool = param(False, "Also use the images in subfolders.")
    alpha_background: str = param(
        "#ffffff", "Colour behind the transparent parts of an image: a name such as white, or #rrggbb."
    )
    keep_duplicates: bool = param(False, "Keep images whose files are identical byte for byte.")
    strict: bool = param(False, "Stop with an error instead of leaving images out.")
    mask_source: str = param(
        "files",
        "Where masks come from; white areas are learned. files: NAME-masklabel.png next to the image, or "
        "NAME in a folder mask or masks; alpha: the image's transparency; off: no masks.",
        choices=("files", "alpha", "off"),
    )
    loss_weight: float = param(
        1.0,
        "Weight of these images in the loss. Usually 1; 0.5 to 1 for regularization images.",
        min=0.0,
        max=10.0,
    )
    is_regularization: bool = param(
        False,
        "Regularization images: the class without your subject, such as other dogs. Each epoch uses as "
        "many regularization samples as training samples.",
    )
    is_validation: bool = param(
        False,
        "Validation images: never trained on, only used to measure what is learned. Usually 3 to 20 of the same "
        "subject, joined with the images to train on.",
    )
    control_images: str = param(
        "",
        "For edit models: folder of control images, each with the name of its image; several of one image end in "
        "_0, _1 and so on. The caption says what the model makes of them.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.images.strip():  # Path("") is the current folder
            raise ValueError("images is empty. Give the folder that holds the images")
        try:
            ImageColor.getrgb(self.alpha_background)
        except ValueError:
            raise ValueError(
                f"alpha_background must be a colour such as white or #ffffff, got {self.alpha_background!r}"
            ) from None
        if self.is_regularization and self.is_validation:
            raise ValueError(
                "is_regularization and is_validation are both on: regularization images are trained on, validation "
                "images never are. Turn one of them off"
            )
        if self.is_regularization and self.trigger_word.strip():
            raise ValueError(
                f"regularization images must not have a trigger word, got {self.trigger_word!r}: they show the "
                "class without your subject. Leave trigger_word empty; fallback_caption can name the class, "
                "such as: a dog"
            )
