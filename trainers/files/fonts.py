"""Fonts for the images that we draw: Pillow's own, and for what it lacks one that is installed."""

from functools import cache

from PIL import Image, ImageDraw, ImageFont

# By the names that Linux, Windows and macOS give them; those for Latin, Greek and Cyrillic first.
INSTALLED_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "segoeui.ttf", "arial.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "msyh.ttc", "YuGothM.ttc"),
    *("meiryo.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf"),
    *("NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansThai-Regular.ttf", "Nirmala.ttf"),
)


def load_font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Pillow's font if it draws the whole text, else the font that draws most of it."""
    fonts = _load_fonts(size)
    return min(fonts, key=lambda font: len(_find_missing(font, text)))


def replace_missing(font: ImageFont.FreeTypeFont, text: str) -> str:
    """The text with the code of each character that the font does not draw, such as <U+732B>."""
    missing = _find_missing(font, text)
    return "".join(f"<U+{ord(character):04X}>" if character in missing else character for character in text)


def fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut the text off with "..." if it is too long; name what the font cannot draw."""
    text = replace_missing(font, text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _find_missing(font: ImageFont.FreeTypeFont, text: str) -> set[str]:
    return {character for character in set(text) if not character.isspace() and not _draws(font, character)}


@cache
def _draws(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """A font draws the same box for all that it lacks."""
    return character.isascii() or _draw(font, character) != _draw(font, "\uffff")


def _draw(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    side = round(2 * font.size)
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text((side // 4, side // 4), character, fill=255, font=font)
    return image.tobytes()


@cache
def _load_fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    fonts = [own]
    for name in INSTALLED_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue  # not installed
    return tuple(fonts)
