"""What cropping cuts away: a histogram, and the images that lose most."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..report import FlightReport, ImageUse
from .card import (
    BAD,
    FAINT,
    FAIR,
    GAP,
    GOOD,
    INK,
    INNER_WIDTH,
    PADDING,
    PAPER,
    draw_card,
    draw_outline,
    draw_title,
    fit,
    load_font,
)
from .trained_box import find_trained_box

MAX_WORST = 8
LOSS_BINS = (0.01, 0.05, 0.10, 0.15, 0.20, 0.25, 0.35, 1.0)  # upper ends, of the area
_HISTOGRAM_WIDTH, _CROPPING_HEIGHT, _WORST_SIZE = 430, 458, 140


def draw_cropping(report: FlightReport) -> Image.Image:
    section = Image.new("RGB", (INNER_WIDTH, _CROPPING_HEIGHT), PAPER)
    section.paste(_draw_loss_histogram(report.uses), (0, 0))
    section.paste(_draw_worst_cropped(report), (_HISTOGRAM_WIDTH + GAP, 0))
    return section


def _draw_loss_histogram(uses: Sequence[ImageUse]) -> Image.Image:
    card, pen = draw_card(_HISTOGRAM_WIDTH, _CROPPING_HEIGHT)
    draw_title(pen, "Loss by cropping", "images, by share of area")
    starts = (0.0, *LOSS_BINS[:-1])
    counts = [sum(start <= use.lost_share < end for use in uses) for start, end in zip(starts, LOSS_BINS, strict=True)]
    base, top, left = _CROPPING_HEIGHT - 66, 96, PADDING
    step = (_HISTOGRAM_WIDTH - 2 * PADDING) / len(LOSS_BINS)
    pen.line((left, base, _HISTOGRAM_WIDTH - PADDING, base), fill=FAINT)
    for index, (count, end) in enumerate(zip(counts, LOSS_BINS, strict=True)):
        x, height = left + index * step, (base - top) * count / max(counts)
        if count:
            pen.rectangle((x + 4, base - max(3, height), x + step - 4, base - 1), fill=_choose_colour(starts[index]))
            pen.text((x + step / 2, base - max(3, height) - 6), str(count), fill=INK, font=load_font(15), anchor="mb")
        label = f"< {end:.0%}" if index == 0 else f"{starts[index]:.0%}" + ("+" if end == LOSS_BINS[-1] else "")
        pen.text((x + step / 2, base + 10), label, fill=FAINT, font=load_font(13), anchor="mt")
    mean = sum(use.lost_share for use in uses) / len(uses)
    pen.text((PADDING, _CROPPING_HEIGHT - 34), f"{mean:.1%} on average", fill=FAINT, font=load_font(14))
    return card


def _choose_colour(share: float) -> str:
    return BAD if share >= 0.25 else FAIR if share >= 0.10 else GOOD


def _draw_worst_cropped(report: FlightReport) -> Image.Image:
    width = INNER_WIDTH - _HISTOGRAM_WIDTH - GAP
    card, pen = draw_card(width, _CROPPING_HEIGHT)
    draw_title(pen, "Cropped most", "what is trained is bright and framed")
    worst = sorted(report.uses, key=lambda use: -use.lost_share)[:MAX_WORST]
    step = (width - 2 * PADDING) // 4
    for index, use in enumerate(worst):
        row, column = divmod(index, 4)
        left, top = PADDING + column * step, 64 + row * 196
        image = _frame(report.thumbnails[use.image.name], use)
        card.paste(image, (left, top + _WORST_SIZE - image.height))
        font = load_font(13, use.image.name)
        pen.text((left, top + _WORST_SIZE + 8), fit(use.image.name, font, step - 14), fill=FAINT, font=font)
        pen.text(
            (left, top + _WORST_SIZE + 25),
            f"{use.lost_share:.0%} cut away",
            fill=_choose_colour(use.lost_share),
            font=load_font(14),
        )
    return card


def _frame(thumbnail: Image.Image, use: ImageUse) -> Image.Image:
    """Draw the whole image, dimmed where it is cut away."""
    image = thumbnail.copy()
    image.thumbnail((_WORST_SIZE, _WORST_SIZE), Image.Resampling.LANCZOS)
    box = [round(edge) for edge in find_trained_box(use, image)]
    dimmed = Image.blend(image, Image.new("RGB", image.size, "#ffffff"), 0.65)
    dimmed.paste(image.crop((box[0], box[1], box[2], box[3])), (box[0], box[1]))
    draw_outline(dimmed)
    ImageDraw.Draw(dimmed).rectangle(
        (box[0], box[1], box[2] - 1, box[3] - 1), outline=_choose_colour(use.lost_share), width=2
    )
    return dimmed
