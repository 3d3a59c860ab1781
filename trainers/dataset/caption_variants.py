"""Makes variants of a caption for training: shuffled tags, dropped tags, one of several wordings.
Which step uses which variant is decided elsewhere.
"""

import random
import re
from dataclasses import dataclass
from itertools import takewhile

from ..config import check_ranges, param

_WILDCARD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True)
class CaptionConfig:
    """How captions are varied from sample to sample."""

    shuffle_captions: bool = param(False, "Shuffle the tags of each caption. For tags, not for sentences.")
    keep_tokens: int = param(
        0,
        "Number of leading tags that keep their place and are never dropped. Usually 0 to 3; 1 keeps "
        "a trigger word in front.",
        min=0,
        max=100,
    )
    caption_separator: str = param(",", "Text that separates the tags of a caption.")
    tag_dropout: float = param(0.0, "Probability of dropping each tag. Usually 0 or 0.1.", min=0.0, max=1.0)
    num_caption_variants: int = param(
        8,
        "Number of variants of each caption that are encoded before training; each sample draws one. Usually 4 to 32.",
        min=1,
        max=1000,
    )
    use_wildcards: bool = param(
        False,
        "Choose at random between alternatives in braces, separated by vertical bars, and between the "
        "lines of a caption. Write a plain brace as two braces.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.caption_separator.strip():
            raise ValueError(
                f"caption_separator must contain a character other than a space, got {self.caption_separator!r}. "
                "Usually ,"
            )

    @property
    def is_random(self) -> bool:
        return self.shuffle_captions or self.tag_dropout > 0 or self.use_wildcards


def vary_caption(caption: str, config: CaptionConfig, *, seed: int, key: str) -> tuple[str, ...]:
    """Return the caption's variants, each on one line: one if no random option is on, else
    num_caption_variants, some of which may be equal.

    With use_wildcards every line of the caption is used at least once: there are as many variants
    as lines, if that is more. A trigger word in front is the first part of the caption, and is
    shuffled and dropped like any other unless keep_tokens is 1 or more. The variants depend only on
    the arguments; `key`, such as the image's hash, tells equal captions apart. Each option draws
    from its own random stream, so turning one on does not change the others.
    """
    if not config.is_random:
        return (flatten_caption(caption),)
    lines = split_caption_lines(caption) if config.use_wildcards else [flatten_caption(caption)]
    if not lines:
        return ("",)
    order = random.Random(f"{seed}/caption lines/{key}").sample(lines, len(lines))
    return tuple(
        _vary_line(order[variant % len(order)], config, f"{seed}/{{}}/{key}/{variant}")
        for variant in range(max(config.num_caption_variants, len(lines)))
    )


def split_caption_lines(caption: str) -> list[str]:
    """Return the lines that are not empty, without superfluous spaces."""
    return [line for line in (" ".join(line.split()) for line in caption.splitlines()) if line]


def flatten_caption(caption: str) -> str:
    """Join all lines into one. First tags that all lines share, such as the trigger word, are kept
    once.
    """
    lines = split_caption_lines(caption)
    if len(lines) < 2:
        return " ".join(lines)
    leads = [line.split(",")[:-1] for line in lines]  # a tag ends with a comma
    num_shared = sum(1 for _ in takewhile(lambda tags: len(set(tags)) == 1, zip(*leads, strict=False)))
    length = sum(len(tag) + 1 for tag in leads[0][:num_shared])
    return " ".join([lines[0], *(line[length:].strip() for line in lines[1:])])


def _vary_line(line: str, config: CaptionConfig, stream: str) -> str:
    """Vary one line. `stream` names the random stream; its {} becomes the operation's name."""
    if config.use_wildcards:
        line = _choose_wildcards(line, random.Random(stream.format("wildcards")))
    if not (config.shuffle_captions or config.tag_dropout):
        return line
    parts = [part.strip() for part in line.split(config.caption_separator) if part.strip()]
    kept, others = parts[: config.keep_tokens], parts[config.keep_tokens :]
    if config.shuffle_captions:
        random.Random(stream.format("shuffle")).shuffle(others)
    dropout = random.Random(stream.format("dropout"))
    others = [part for part in others if dropout.random() >= config.tag_dropout]
    return f"{config.caption_separator.strip()} ".join(kept + others)


def _choose_wildcards(text: str, rng: random.Random) -> str:
    """Replace {a|b} by one choice, as sd-scripts' enable_wildcard does: not nested, {{ and }} for
    braces.
    """

    def choose(match: re.Match[str]) -> str:
        if match.group(1) is None:
            return match.group()[0]
        return rng.choice(match.group(1).split("|")).strip()

    return " ".join(_WILDCARD.sub(choose, text).split())
