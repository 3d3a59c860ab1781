"""The findings as wrapped lines, each with a dot in the colour of its level."""

from collections.abc import Iterator, Sequence

from PIL import Image

from ..check_finding import CheckFinding, Level
from .card import BAD, FAINT, FAIR, INK, INNER_WIDTH, PADDING, draw_card, draw_title, fit, load_font, wrap

MAX_FINDINGS = 24
LEVEL_COLOURS: dict[Level, str] = {"error": BAD, "warning": FAIR, "note": "#98a2b3"}


def draw_findings(findings: Sequence[CheckFinding]) -> Image.Image:
    lines = [line for finding in findings[:MAX_FINDINGS] for line in _wrap_finding(finding)]
    card, pen = draw_card(INNER_WIDTH, 66 + sum(height for _, _, height in lines) + 10)
    draw_title(pen, "Findings", "")
    top = 60
    for colour, text, height in lines:
        if colour:
            pen.ellipse((PADDING, top + 4, PADDING + 12, top + 16), fill=colour)
        pen.text(
            (PADDING + 26, top),
            text,
            fill=INK if colour or height == 24 else FAINT,
            font=load_font(17 if colour or height == 24 else 14, text),
        )
        top += height
    return card


def _wrap_finding(finding: CheckFinding) -> Iterator[tuple[str, str, int]]:
    """Yield (colour of the dot, text, height): the wrapped message, then up to three images with
    their reasons.
    """
    width = INNER_WIDTH - 2 * PADDING - 26
    for index, line in enumerate(wrap(finding.message, load_font(17, finding.message), width)):
        yield LEVEL_COLOURS[finding.level] if index == 0 else "", line, 24
    for line in (
        finding.image_lines(3 if all(image.reason for image in finding.images) else 8) if finding.images else ()
    ):
        yield "", fit(line, load_font(14, line), width), 20
    yield "", "", 10
