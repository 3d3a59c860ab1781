"""Findings on captions: their length, their trigger word, and whether they differ."""

from collections.abc import Iterator, Sequence

from ...dataset.caption_marks import has_alternatives
from ...dataset.caption_variants import CaptionConfig, flatten_caption, vary_caption
from ...dataset.image import TrainingImage
from ...dataset.report import CAPTION_NODE, Remark
from ...dataset.trigger_word import add_trigger_word
from ...wording import pluralize
from .check_finding import CheckFinding

MAX_CHUNKS = 3


def judge_lengths(images: Sequence[TrainingImage], captions: CaptionConfig, *, seed: int) -> Iterator[CheckFinding]:
    """Report captions that are too long, by the longest variant of each."""
    from ...captions.clip_tokenizer import TOKENS_PER_CHUNK, count_chunks, token_ids

    variants = {image.name: vary_caption(image.caption, captions, seed=seed, key=image.sha256) for image in images}
    num_tokens = {name: max(map(len, token_ids(list(texts)))) for name, texts in variants.items()}
    limit = MAX_CHUNKS * TOKENS_PER_CHUNK
    overlong = [
        Remark(name, f"{count} tokens, {count_chunks(count)} chunks")
        for name, count in num_tokens.items()
        if count > limit
    ]
    if overlong:
        advice = "Other programs cut such prompts off, and their last words have little effect. Shorten them"
        yield CheckFinding(
            "warning",
            "overlong_caption",
            f"{pluralize(len(overlong), 'caption')} of more than {limit} tokens. {advice}",
            overlong,
        )
    long = [
        Remark(name, f"{count} tokens, {count_chunks(count)} chunks")
        for name, count in num_tokens.items()
        if TOKENS_PER_CHUNK < count <= limit
    ]
    if long:
        message = (
            f"{pluralize(len(long), 'caption')} of more than {TOKENS_PER_CHUNK} tokens, learned in chunks; "
            "the first chunk counts most"
        )
        yield CheckFinding("note", "long_caption", message, long)


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
