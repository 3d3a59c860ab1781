"""A scanned dataset: the usable images, and a report on the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..wording import pluralize
from .image import TrainingImage
from .report import DatasetReport
from .trigger_word import add_trigger_word_to_each_line


@dataclass(frozen=True)
class Dataset:
    """The usable images, and a report on the rest. An epoch uses each image
    image.num_repeats * num_repeats times.
    """

    images: list[TrainingImage]
    num_repeats: int
    trigger_word: str
    report: DatasetReport
    folder_name: str
    strict: bool = False

    @property
    def num_training_samples(self) -> int:
        """Samples per epoch at one resolution: images times repeats, without regularization and
        validation images.
        """
        images = [image for image in self.images if not (image.is_regularization or image.is_validation)]
        return sum(image.num_repeats for image in images) * self.num_repeats

    def get_trigger_word(self, image: TrainingImage) -> str:
        """Return the image's trigger word: its own, else the dataset's, and "" for a regularization
        image, which shows the class without the subject.
        """
        if image.is_regularization:
            return ""
        return self.trigger_word if image.trigger_word is None else image.trigger_word

    def with_captions(self, captions: Sequence[str]) -> "Dataset":
        """Return the dataset with these captions, one per image and in the same order. Captions
        that lack the trigger word get it in front; "" stays "".

        Raises:
            ValueError: the number of captions differs from the number of images.
        """
        if len(captions) != len(self.images):
            raise ValueError(
                f"{self.folder_name}: {pluralize(len(self.images), 'image')}, but "
                f"{pluralize(len(captions), 'caption')}. Give one caption per image, in "
                "the same order, and none for images that the report lists as left out"
            )
        images = [
            replace(image, caption=add_trigger_word_to_each_line(text, self.get_trigger_word(image)))
            for image, text in zip(self.images, captions, strict=True)
        ]
        changed = {new.name for old, new in zip(self.images, images, strict=True) if old.caption != new.caption}
        notes = [
            note for note in self.report.notes if not (note.name in changed and note.kind.is_about_missing_caption)
        ]
        return replace(self, images=images, report=replace(self.report, notes=notes))
