"""How one image file is read: orientation, mode, transparency and size. Bad files are in
test_bad_images.py.
"""

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.unit.dataset.folders import scan, write_photo


def make_white_left(size_wh=(96, 64), mode="RGB") -> Image.Image:
    """Return an image that is white for x < 32 and black elsewhere."""
    image = Image.new(mode, size_wh)
    image.paste("white", (0, 0, 32, size_wh[1]))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_exif_orientation_is_applied_to_size_and_pixels(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = make_white_left()
    stored.save(tmp_path / f"a.{extension}", exif=exif, quality=100)
    (found,) = scan(tmp_path, trigger_word="x").images
    upright = ImageOps.exif_transpose(Image.open(tmp_path / f"a.{extension}")).convert("RGB")
    assert found.size_hw == upright.size[::-1] == ((96, 64) if orientation >= 5 else (64, 96))
    assert np.array_equal(np.asarray(found.read()), np.asarray(upright))


def test_a_16_bit_grey_image_is_scaled_not_clipped(tmp_path):
    levels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(levels).save(tmp_path / "a.png")
    (found,) = scan(tmp_path, trigger_word="x").images
    assert np.array_equal(np.asarray(found.read())[:, :, 0], levels // 256)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    make_white_left().convert(mode).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    (found,) = scan(tmp_path, trigger_word="x").images
    pixels = found.read()
    assert pixels.mode == "RGB" and pixels.getpixel((5, 5)) == (255, 255, 255) and pixels.getpixel((80, 5)) == (0, 0, 0)


def test_a_photo_that_contains_a_second_image_is_not_an_animation(tmp_path):
    """MPO: cameras and phones add a preview or a depth map to the photo."""
    make_white_left().save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (32, 32), "red")]
    )
    (found,) = scan(tmp_path, trigger_word="x").images
    assert found.size_hw == (64, 96) and found.read().size == (96, 64)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_flattened_onto_the_chosen_colour_and_kept_as_a_mask(tmp_path, mode):
    rgba = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 32, 64))
    rgba.convert(mode).save(tmp_path / "a.png")
    (found,) = scan(tmp_path, trigger_word="x", alpha_background="#00ff00").images
    assert found.has_alpha
    assert found.read().getpixel((5, 5)) == (0, 255, 0) and found.read().getpixel((50, 5)) == (0, 0, 0)
    alpha = found.read_alpha()
    assert alpha is not None and alpha.getpixel((5, 5)) == 0 and alpha.getpixel((50, 5)) == 255


def test_half_transparent_pixels_mix_with_the_colour_and_the_mask_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (96, 64), (0, 0, 0, 51)).save(tmp_path / "a.png", exif=exif)
    (found,) = scan(tmp_path, trigger_word="x", alpha_background="white").images
    assert found.read().getpixel((5, 5)) == (204, 204, 204)
    alpha = found.read_alpha()
    assert alpha is not None and alpha.size == (64, 96) and alpha.getpixel((5, 5)) == 51


def test_an_opaque_image_has_no_alpha(tmp_path):
    write_photo(tmp_path / "a.png")
    (found,) = scan(tmp_path).images
    assert not found.has_alpha and found.read_alpha() is None


def test_a_thumbnail_of_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    large = Image.fromarray(pixels).resize((1600, 1200), Image.Resampling.BICUBIC)
    large.save(write_photo(tmp_path / "a.jpg"), quality=95)
    (image,) = scan(tmp_path).images
    assert image.read(max_pixels=(4 * 64) ** 2).size == (200, 150)
    thumbnail, expected = image.read_thumbnail(64), image.read().resize((64, 48), Image.Resampling.BICUBIC)
    assert thumbnail.size == (64, 48)
    assert np.abs(np.asarray(thumbnail, dtype=float) - np.asarray(expected)).mean() < 3
