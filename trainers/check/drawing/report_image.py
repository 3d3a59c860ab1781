"""The flight check as an image: numbers, buckets, cropping, near-duplicates and findings."""

from PIL import Image, ImageDraw

from ..report import FlightReport
from .bucket_section import draw_buckets
from .card import (
    BAD,
    FAINT,
    FAIR,
    GAP,
    GOOD,
    INK,
    INNER_WIDTH,
    MARGIN,
    PADDING,
    PAPER,
    WIDTH,
    draw_card,
    fit,
    load_font,
)
from .cropping_section import draw_cropping
from .duplicate_section import draw_duplicates
from .finding_section import draw_findings


def draw_flight_check(report: FlightReport) -> Image.Image:
    """Draw the report: RGB, 1280 pixels wide, as high as necessary."""
    sections = [_draw_header(report), _draw_numbers(report)]
    if report.uses:
        sections += [draw_buckets(report), draw_cropping(report)]
    if report.duplicate_groups:
        sections.append(draw_duplicates(report))
    if report.findings:
        sections.append(draw_findings(report.findings))
    image = Image.new("RGB", (WIDTH, sum(section.height + GAP for section in sections) + 2 * MARGIN - GAP), PAPER)
    top = MARGIN
    for section in sections:
        image.paste(section, (MARGIN, top))
        top += section.height + GAP
    return image


def _draw_header(report: FlightReport) -> Image.Image:
    section = Image.new("RGB", (INNER_WIDTH, 52), PAPER)
    pen = ImageDraw.Draw(section)
    verdict, font = report.verdict, load_font(20)
    title = f"Flight check: {report.name}, {report.model}"
    title_font = load_font(32, title)
    badge_width = round(pen.textlength(verdict, font)) + 36
    pen.text(
        (0, 26),
        fit(title, title_font, INNER_WIDTH - badge_width - GAP),
        fill=INK,
        font=title_font,
        anchor="lm",
    )
    colour = (
        BAD
        if report.is_refused
        else FAIR
        if report.select_findings("error") or report.select_findings("warning")
        else GOOD
    )
    pen.rounded_rectangle((INNER_WIDTH - badge_width, 6, INNER_WIDTH - 1, 46), radius=20, fill=colour)
    pen.text((INNER_WIDTH - badge_width / 2, 26), verdict, fill="#ffffff", font=font, anchor="mm")
    return section


def _draw_numbers(report: FlightReport) -> Image.Image:
    """Draw a tile for each number, with its explanation below it."""
    tiles = report.tiles()
    width = (INNER_WIDTH - GAP * (len(tiles) - 1)) // len(tiles)
    section = Image.new("RGB", (INNER_WIDTH, 118), PAPER)
    for index, (title, value, detail) in enumerate(tiles):
        tile, pen = draw_card(width, 118)
        pen.text((PADDING, 18), title, fill=FAINT, font=load_font(15))
        pen.text((PADDING, 42), fit(value, load_font(28), width - 2 * PADDING), fill=INK, font=load_font(28))
        pen.text((PADDING, 84), fit(detail, load_font(14), width - PADDING - 8), fill=FAINT, font=load_font(14))
        section.paste(tile, (index * (width + GAP), 0))
    return section
