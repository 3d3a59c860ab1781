"""The buckets, each as a rectangle of its shape that shows some of its images."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ...dataset.bucket_sizes import Size
from ...wording import format_size, pluralize
from ..report import FlightReport, ImageUse
from .card import BAR, CARD, FAINT, INK, INNER_WIDTH, PADDING, TRACK, draw_card, draw_title, load_font
from .trained_box import find_trained_box

MAX_BUCKETS = 18
_RECTANGLE, _CELL_WIDTH = 150, 196
_CELL_HEIGHT = _RECTANGLE + 82


def draw_buckets(report: FlightReport) -> Image.Image:
    buckets = report.buckets
    shown = sorted(buckets, key=lambda size: -_count_samples(buckets[size]))[:MAX_BUCKETS]
    shown = [size for size in buckets if size in shown]
    per_row = (INNER_WIDTH - 2 * PADDING) // _CELL_WIDTH
    num_rows = -(-len(shown) // per_row)
    hidden = len(buckets) - len(shown)
    card, pen = draw_card(INNER_WIDTH, 56 + num_rows * (_CELL_HEIGHT + 10) + (34 if hidden else 4))
    draw_title(pen, "Buckets", f"images are trained at {pluralize(len(buckets), 'size')}, in true proportion")
    longest = max(max(size) for size in shown)
    most = max(map(_count_samples, buckets.values()))
    for index, size in enumerate(shown):
        row, column = divmod(index, per_row)
        cell = _draw_bucket(report, size, buckets[size], scale=_RECTANGLE / longest, most=most)
        card.paste(cell, (PADDING + column * _CELL_WIDTH, 60 + row * (_CELL_HEIGHT + 10)))
    if hidden:
        pen.text(
            (PADDING, card.height - 32),
            f"and {pluralize(hidden, 'more bucket')} with fewer images",
            fill=FAINT,
            font=load_font(15),
        )
    return card


def _count_samples(uses: Sequence[ImageUse]) -> int:
    return sum(use.num_samples for use in uses)


def _draw_bucket(report: FlightReport, size: Size, uses: Sequence[ImageUse], *, scale: float, most: int) -> Image.Image:
    """Draw some images of a bucket in its shape, its size, and a bar for its number of samples."""
    cell = Image.new("RGB", (_CELL_WIDTH, _CELL_HEIGHT), CARD)
    pen = ImageDraw.Draw(cell)
    height, width = (max(8, round(side * scale)) for side in size)
    left, top = (_CELL_WIDTH - 16 - width) // 2, _RECTANGLE - height
    cell.paste(_draw_mosaic(report, uses, width, height), (left, top))
    pen.rectangle((left, top, left + width - 1, top + height - 1), outline=INK)
    middle, samples = (_CELL_WIDTH - 16) / 2, _count_samples(uses)
    pen.text((middle, _RECTANGLE + 22), format_size(size), fill=INK, font=load_font(17), anchor="mm")
    pen.rounded_rectangle((0, _RECTANGLE + 38, _CELL_WIDTH - 16, _RECTANGLE + 45), radius=3, fill=TRACK)
    pen.rounded_rectangle(
        (0, _RECTANGLE + 38, max(7, (_CELL_WIDTH - 16) * samples / most), _RECTANGLE + 45), radius=3, fill=BAR
    )
    text = pluralize(len(uses), "image") + (f", {samples} samples" if samples != len(uses) else "")
    pen.text((middle, _RECTANGLE + 62), text, fill=FAINT, font=load_font(14), anchor="mm")
    return cell


def _draw_mosaic(report: FlightReport, uses: Sequence[ImageUse], width: int, height: int) -> Image.Image:
    """Draw one, four or nine images as they are trained. Each tile has the shape of the bucket."""
    side = 3 if len(uses) >= 9 else 2 if len(uses) >= 4 else 1
    mosaic = Image.new("RGB", (width, height), TRACK)
    for index, use in enumerate(uses[: side * side]):
        row, column = divmod(index, side)
        left, top = column * width // side, row * height // side
        right, bottom = (column + 1) * width // side, (row + 1) * height // side
        thumbnail = report.thumbnails[use.image.name]
        tile = thumbnail.resize(
            (max(1, right - left), max(1, bottom - top)), Image.Resampling.LANCZOS, find_trained_box(use, thumbnail)
        )
        mosaic.paste(tile, (left, top))
    return mosaic
