"""Finds marks in captions that other programs replace or obey, and that are trained as they are
here.
"""

import re

_MARKS = re.compile(
    r"\[(?:trigger|name|filewords|class|concept)\]"  # AI Toolkit and A1111
    r"|<(?:lora|lyco|hypernet):[^<>]{1,200}>"  # A1111's prompts
    r"|\|\|\|"  # sd-scripts' keep_tokens_separator
    r"|\([^():]{1,200}:\d(?:\.\d{1,3})?\)",  # the weight of words in prompts
    re.IGNORECASE,
)
_ALTERNATIVES = re.compile(r"(?<!\{)\{[^{}|]{0,500}\|[^{}]{0,500}\}(?!\})")


def find_foreign_marks(caption: str) -> list[str]:
    """Return the marks, each once. Alternatives in braces are not among them."""
    return list(dict.fromkeys(match.group() for match in _MARKS.finditer(caption)))


def has_alternatives(caption: str) -> bool:
    """Return whether the caption has {a|b}, of which use_wildcards chooses one."""
    return _ALTERNATIVES.search(caption) is not None
