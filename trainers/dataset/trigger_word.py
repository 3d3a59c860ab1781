"""Adds the trigger word in front of captions."""

import re

from .caption_variants import split_caption_lines


def make_word_pattern(word: str) -> re.Pattern[str]:
    """Return what finds it as a whole word, in capital letters too."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def add_trigger_word(caption: str, trigger_word: str) -> str:
    """Add the trigger word in front, unless the caption contains it anywhere as a whole word."""
    if not trigger_word or make_word_pattern(trigger_word).search(caption):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def add_trigger_word_to_each_line(caption: str, trigger_word: str) -> str:
    """Add the trigger word in front of each line that lacks it; "" stays ""."""
    return "\n".join(add_trigger_word(line, trigger_word) for line in split_caption_lines(caption))
