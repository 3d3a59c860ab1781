"""Edits captions by hand: single captions, many at once, and facts about each. Keeps no state."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..dataset.caption_variants import flatten_caption, split_caption_lines
from ..dataset.dataset import Dataset
from ..dataset.image import TrainingImage
from ..dataset.trigger_word import add_trigger_word
from .clip_tokenizer import TOKENS_PER_CHUNK, token_ids

Operation = Literal["add in front", "add at the end", "remove", "replace"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


@dataclass(frozen=True)
class CaptionEdit:
    """incoming: the caption at the time of the edit; None if it was not recorded."""

    caption: str
    incoming: str | None = None


@dataclass(frozen=True)
class EditedCaptions:
    """One caption per image, in order. outdated: images whose incoming caption has changed since
    the edit. unknown: keys of edits that match no image.
    """

    captions: list[str]
    edited: list[str] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CaptionFacts:
    """num_tokens: CLIP tokens, without the marks at both ends of a chunk. num_chunks: 1 for an
    empty caption. has_trigger_word: true if every line has it.
    """

    num_tokens: int
    num_chunks: int
    has_trigger_word: bool


def parse_edits(text: str) -> dict[str, CaptionEdit]:
    """Parse edits, by the image's sha256 or name. The text is {"KEY": "caption"}, or {"KEY":
    {"caption": "...", "incoming": "..."}}, or empty.

    Raises:
        ValueError: the text has another form; the message says where.
    """
    if not text.strip():
        return {}
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'edits is not JSON (line {error.lineno}, column {error.colno}: {error.msg}). Write {{"IMAGE": "caption"}}'
        ) from None
    if not isinstance(entries, dict):
        raise ValueError(f'edits must be an object such as {{"IMAGE": "caption"}}, got {type(entries).__name__}')
    return {key: _parse_edit(key, entry) for key, entry in entries.items()}


def _parse_edit(key: str, entry: object) -> CaptionEdit:
    if isinstance(entry, str):
        return CaptionEdit(entry)
    if isinstance(entry, dict):
        caption, incoming = entry.get("caption"), entry.get("incoming")
        if isinstance(caption, str) and (incoming is None or isinstance(incoming, str)):
            return CaptionEdit(caption, incoming)
    raise ValueError(
        f'edits: {key} must be a caption, or {{"caption": "...", "incoming": "..."}}, got '
        f"{json.dumps(entry, ensure_ascii=False)[:80]}"
    )


def apply_edits(images: Sequence[TrainingImage], edits: Mapping[str, CaptionEdit]) -> EditedCaptions:
    """Apply the edits. An edit under an image's name takes precedence over one under its sha256."""
    result = EditedCaptions([])
    used: set[str] = set()
    for image in images:
        keys = [key for key in (image.name, image.sha256) if key in edits]
        used.update(keys)
        edit = edits[keys[0]] if keys else CaptionEdit(image.caption)
        result.captions.append(edit.caption)
        if edit.caption != image.caption:
            result.edited.append(image.name)
            if edit.incoming not in (None, image.caption):
                result.outdated.append(image.name)
    result.unknown.extend(key for key in edits if key not in used)
    return result


def compute_review_key(dataset: Dataset) -> str:
    """Return a key that changes with any image, name, trigger word or incoming caption."""
    content = [(image.sha256, image.name, dataset.get_trigger_word(image), image.caption) for image in dataset.images]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def inspect_caption(caption: str, trigger_word: str) -> CaptionFacts:
    """Count the caption's tokens and chunks, and look for the trigger word."""
    num_tokens = len(token_ids([flatten_caption(caption)])[0])
    has_trigger_word = all(
        add_trigger_word(line, trigger_word) == line for line in split_caption_lines(caption) or [""]
    )
    return CaptionFacts(num_tokens, max(1, -(-num_tokens // TOKENS_PER_CHUNK)), has_trigger_word)


def change_captions(
    captions: Sequence[str],
    operation: Operation,
    text: str,
    replacement: str = "",
    *,
    match_case: bool = False,
    whole_words: bool = True,
) -> list[str]:
    """Return the captions with `text` added, removed or replaced.

    Text is added as a part between commas, unless the caption already has that part. Removing also
    removes the commas and spaces left behind. match_case and whole_words decide what matches
    `text`.

    Raises:
        ValueError: the operation is unknown, or the text is empty.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation}")
    if not text.strip():
        raise ValueError(f"there is no text to {operation.split()[0]}")
    if operation in ("add in front", "add at the end"):
        return [_add_part(caption, text.strip(), in_front=operation == "add in front") for caption in captions]
    pattern = _compile_pattern(text.strip(), match_case=match_case, whole_words=whole_words)
    new_text = replacement.strip() if operation == "replace" else ""
    return [_substitute(caption, pattern, new_text) for caption in captions]


def _add_part(caption: str, part: str, *, in_front: bool) -> str:
    caption = caption.strip()
    if not caption:
        return part
    if part.casefold() in (other.strip().casefold() for other in caption.split(",")):
        return caption
    if in_front:
        return f"{part}, {caption}"
    return f"{caption} {part}" if caption.endswith((".", "!", "?")) else f"{caption.rstrip(',')}, {part}"


def _compile_pattern(text: str, *, match_case: bool, whole_words: bool) -> re.Pattern[str]:
    """Compile a pattern for the text. It requires a word boundary only next to a letter or digit,
    as "(blurry)" has no boundary at its ends.
    """
    before = r"(?<!\w)" if whole_words and re.match(r"\w", text) else ""
    after = r"(?!\w)" if whole_words and re.search(r"\w$", text) else ""
    return re.compile(before + re.escape(text) + after, 0 if match_case else re.IGNORECASE)


def _substitute(caption: str, pattern: re.Pattern[str], new_text: str) -> str:
    changed = pattern.sub(lambda _: new_text, caption)
    if changed == caption or new_text:
        return changed
    return "\n".join(_close_gaps(line) for line in changed.split("\n"))


def _close_gaps(line: str) -> str:
    line = re.sub(r"[ \t]+", " ", line)
    line = re.sub(r" ?,(?: ?,)+", ",", line)
    return re.sub(r" +([,.;:!?])", r"\1", line).strip(" ,")
