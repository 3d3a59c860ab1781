"""Removes openings such as "The image shows" from Florence-2's captions."""

import re

_IMAGE = r"(?:image|picture|photo|photograph)"
_OPENINGS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?:the|this) {_IMAGE} "
        r"(?:shows|depicts|displays|features|captures|portrays|presents|contains|illustrates|showcases|is showing) "
        r"(?:us )?",
        rf"(?:the|this) {_IMAGE} is (?=(?:a|an|the) )",
        rf"in (?:the|this) {_IMAGE},? ?(?:there (?:is|are)|(?:we|i|you) can see|it shows|we see) ",
        rf"in (?:the|this) {_IMAGE},? ",
        rf"(?:this is|it is|it's) an? {_IMAGE} (?:of|showing|that shows) ",
        # "a photo of" and "a drawing of" name the medium and are kept
        r"an? (?:image|picture) (?:of|showing|that shows) ",
    )
]


def clean_caption(text: str) -> str:
    """Remove the caption's opening but keep its capital letter: "The image shows a cat." becomes
    "A cat.".
    """
    text = " ".join(text.split())
    shortened = text
    for opening in _OPENINGS:
        shortened = opening.sub("", shortened, count=1) if opening.match(shortened) else shortened
    shortened = shortened.lstrip(" ,:;.")
    return shortened[:1].upper() + shortened[1:] if text[:1].isupper() else shortened
