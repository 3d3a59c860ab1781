"""Names with accents and other scripts in the images that we draw."""

import pytest
from PIL import Image, ImageDraw, ImageFont

from trainers.files import fonts
from trainers.files.fonts import load_font, replace_missing


def test_plain_english_keeps_the_font_that_it_had():
    assert load_font(17, "my pictures 1-2").getname() == ImageFont.load_default(17).getname()


def test_what_no_font_draws_is_named_by_its_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fonts, "INSTALLED_FONTS", ())
    fonts._load_fonts.cache_clear()
    try:
        assert replace_missing(load_font(17, "猫 cat"), "猫 cat") == "<U+732B> cat"
    finally:
        fonts._load_fonts.cache_clear()


@pytest.mark.parametrize("text", ["é", "Ж", "ł"])
def test_an_accent_is_drawn_by_a_font_of_the_installation(text: str):
    font = load_font(17, text)
    if replace_missing(font, text) != text:
        pytest.skip(f"no font with {text} is installed")
    drawn = Image.new("L", (40, 40))
    ImageDraw.Draw(drawn).text((5, 5), text, fill=255, font=font)
    box = Image.new("L", (40, 40))
    ImageDraw.Draw(box).text((5, 5), "\uffff", fill=255, font=font)
    assert drawn.tobytes() != box.tobytes() and drawn.getbbox()
