"""Sizes, colours, cards and fitting text for all sections."""

from PIL import Image, ImageDraw, ImageFont

from ...files.fonts import fit as fit
from ...files.fonts import load_font as load_font
from ...files.fonts import replace_missing

WIDTH, MARGIN, GAP, PADDING = 1280, 28, 20, 22
INNER_WIDTH = WIDTH - 2 * MARGIN
PAPER = "#f2f4f7"
CARD = "#ffffff"
EDGE = "#e4e7ec"
INK = "#101828"
FAINT = "#667085"
BAR = "#2563eb"
TRACK = "#e4e7ec"
GOOD, FAIR, BAD = "#17b26a", "#f79009", "#d92d20"


def draw_card(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    card = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(card)
    pen.rounded_rectangle((0, 0, width - 1, height - 1), radius=12, fill=CARD, outline=EDGE)
    return card, pen


def draw_outline(image: Image.Image) -> None:
    """Draw an outline: a white image would blend into the card."""
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=EDGE)


def draw_title(pen: ImageDraw.ImageDraw, title: str, explanation: str) -> None:
    pen.text((PADDING, 32), title, fill=INK, font=load_font(21), anchor="ls")
    pen.text(
        (PADDING + pen.textlength(title, load_font(21)) + 14, 32),
        explanation,
        fill=FAINT,
        font=load_font(15),
        anchor="ls",
    )


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = replace_missing(font, f"{lines[-1]} {word}".strip())
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fit(line, font, width) for line in lines]
