"""Findings on captions: their trigger word, their alternatives, and whether they differ."""

from collections.abc import Iterator, Sequence

from ..dataset.caption_marks import has_alternatives
from ..dataset.caption_variants import CaptionConfig, flatten_caption, vary_caption
from ..dataset.image import TrainingImage
from ..dataset.report import CAPTION_NODE, Remark
from ..dataset.trigger_word import add_trigger_word
from ..wording import pluralize
from .check_finding import CheckFinding


def list_variants(
    images: Sequence[TrainingImage], captions: CaptionConfig, *, seed: int
) -> Iterator[tuple[TrainingImage, tuple[str, ...]]]:
    """Yield each image with all texts that its caption can become."""
    for image in images:
        yield image, tuple(vary_caption(image.caption, captions, seed=seed, key=image.sha256))


def judge_alternatives(images: Sequence[TrainingImage], captions: CaptionConfig) -> Iterator[CheckFinding]:
    found = [Remark(image.name, "") for image in images if has_alternatives(image.caption)]
    if found and not captions.use_wildcards:
        message = (
            f"{pluralize(len(found), 'caption')} with {{a|b}}, trained as it is. Turn on use_wildcards to choose one "
            "of them"
        )
        yield CheckFinding("warning", "unused_alternatives", message, found)


def judge_sameness(images: Sequence[TrainingImage]) -> Iterator[CheckFinding]:
    captions = {image.caption for image in images if image.caption}
    if len(images) > 1 and len(captions) == 1:
        yield CheckFinding("note", "same_caption", f"all captions are the same: {flatten_caption(captions.pop())}")


def judge_trigger_words(pairs: Sequence[tuple[TrainingImage, str]]) -> Iterator[CheckFinding]:
    """Judge the trigger words of images that have captions."""
    if pairs and not any(trigger_word for _, trigger_word in pairs):
        yield CheckFinding(
            "note",
            "no_trigger_word",
            "no trigger_word is set. That suits a style, but a person or an object needs one",
        )
    alone = [Remark(image.name, "") for image, trigger_word in pairs if image.caption == trigger_word]
    if alone:
        meaning = "it will mean everything these images show. Write captions, or connect " + CAPTION_NODE
        yield CheckFinding(
            "warning",
            "trigger_word_alone",
            f"{pluralize(len(alone), 'caption')} with only the trigger word: {meaning}",
            alone,
        )
    without = [
        Remark(image.name, f"no {word} in: {image.caption}")
        for image, word in pairs
        if add_trigger_word(image.caption, word) != image.caption
    ]
    if without:
        yield CheckFinding(
            "warning",
            "trigger_word_missing",
            f"{pluralize(len(without), 'caption')} without the trigger word. Add it",
            without,
        )
