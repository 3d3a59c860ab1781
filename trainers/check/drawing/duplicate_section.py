"""Groups of near-duplicates, side by side."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ...wording import pluralize
from ..report import FlightReport
from .card import CARD, FAINT, INNER_WIDTH, PADDING, draw_card, draw_outline, draw_title, fit, load_font

MAX_GROUPS = 6
_TWIN_SIZE = 112


def draw_duplicates(report: FlightReport) -> Image.Image:
    """Draw the groups side by side, as many per row as fit."""
    groups = [_draw_group(report, names) for names in report.duplicate_groups[:MAX_GROUPS]]
    rows: list[list[Image.Image]] = [[]]
    for group in groups:
        if rows[-1] and sum(one.width + 28 for one in rows[-1]) + group.width > INNER_WIDTH - 2 * PADDING:
            rows.append([])
        rows[-1].append(group)
    card, pen = draw_card(INNER_WIDTH, 66 + len(rows) * (groups[0].height + 12))
    hidden = len(report.duplicate_groups) - len(groups)
    draw_title(
        pen,
        "Near-duplicates",
        pluralize(len(report.duplicate_groups), "group") + (f", the first {len(groups)} shown" if hidden else ""),
    )
    for index, row in enumerate(rows):
        left = PADDING
        for group in row:
            card.paste(group, (left, 60 + index * (group.height + 12)))
            left += group.width + 28
    return card


def _draw_group(report: FlightReport, names: Sequence[str]) -> Image.Image:
    shown = names[:4]
    group = Image.new("RGB", (len(shown) * (_TWIN_SIZE + 8), _TWIN_SIZE + 26), CARD)
    pen = ImageDraw.Draw(group)
    for index, name in enumerate(shown):
        image = report.thumbnails[name].copy()
        image.thumbnail((_TWIN_SIZE, _TWIN_SIZE), Image.Resampling.LANCZOS)
        draw_outline(image)
        left = index * (_TWIN_SIZE + 8)
        group.paste(image, (left, _TWIN_SIZE - image.height))
        text = f"and {len(names) - 3} more" if index == 3 and len(names) > 4 else name
        pen.text(
            (left, _TWIN_SIZE + 7), fit(text, load_font(13, text), _TWIN_SIZE), fill=FAINT, font=load_font(13, text)
        )
    return group
