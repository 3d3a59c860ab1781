"""The images that can be used, and what became of the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..wording import pluralize
from .image import TrainingImage
from .report import DatasetReport
from .trigger_word import add_trigger_word_to_each_line


@dataclass(frozen=True)
class Dataset:
    """The images that can be used, and what became of the others. Each is used num_repeats times
    its own num_repeats per epoch.
    """

    images: list[TrainingImage]
    num_repeats: int
    trigger_word: str
    report: DatasetReport
    folder_name: str
    strict: bool = False

    @property
    def num_training_samples(self) -> int:
        """Images times their repeats: samples per epoch at one resolution, regularization not
        counted.
        """
        return sum(image.num_repeats for image in self.images if not image.is_regularization) * self.num_repeats

    def get_trigger_word(self, image: TrainingImage) -> str:
        """Regularization images have none: they show the class without what is learned."""
        if image.is_regularization:
            return ""
        return self.trigger_word if image.trigger_word is None else image.trigger_word

    def with_captions(self, captions: Sequence[str]) -> "Dataset":
        """The dataset with one caption per image, in order; the trigger word is put in front
        where it is missing. "" stays "".

        Raises:
            ValueError: there are not as many captions as images.
        """
        if len(captions) != len(self.images):
            raise ValueError(
                f"{self.folder_name}: {pluralize(len(self.images), 'image')}, but "
                f"{pluralize(len(captions), 'caption')}. Give one caption per image, in "
                "the same order; images that the report leaves out have none"
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
