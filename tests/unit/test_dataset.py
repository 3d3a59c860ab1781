"""A folder of pictures and captions: what is taken, how it is read, and what a caption becomes. What is wrong with files: test_bad_pictures.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from trainers.dataset import DatasetConfig, scan_folder, with_trigger_word


def picture(path: Path, size_wh=(96, 64), colour=(10, 20, 30), caption: str | None = "a caption", **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, colour).save(path, **settings)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def scan(folder: Path, **settings):
    return scan_folder(DatasetConfig(images=str(folder), **settings))


def white_left(size_wh=(96, 64), mode="RGB") -> Image.Image:
    """White where x < 32, black elsewhere."""
    image = Image.new(mode, size_wh)
    image.paste("white", (0, 0, 32, size_wh[1]))
    return image


def reasons(dataset) -> dict[str, str]:
    return {finding.name: finding.reason for finding in dataset.report.left_out}


def test_all_formats_in_any_case_are_taken_in_natural_order(tmp_path):
    names = ["2.png", "10.PNG", "3.jpg", "4.JPEG", "5.webp", "6.bmp"] + (["7.avif"] if features.check("avif") else [])
    for i, name in enumerate(names):
        picture(tmp_path / name, colour=(i, 0, 0))
    (tmp_path / "notes.md").write_text("not a picture")
    picture(tmp_path / "._2.png")
    picture(tmp_path / ".hidden.png")
    expected = ["2.png", "3.jpg", "4.JPEG", "5.webp", "6.bmp", *(["7.avif"] if features.check("avif") else []), "10.PNG"]
    assert [image.name for image in scan(tmp_path).images] == expected


def test_subfolders_are_taken_only_when_asked(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "b.png", colour=(1, 1, 1))
    assert [image.name for image in scan(tmp_path).images] == ["a.png"]
    assert [image.name for image in scan(tmp_path, recursive=True).images] == ["a.png", "sub/b.png"]


def test_hidden_folders_and_unfinished_files_are_passed_over(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / ".thumbnails" / "b.png")
    (tmp_path / ".c.png.x7.tmp").write_bytes(b"")
    dataset = scan(tmp_path, recursive=True)
    assert [image.name for image in dataset.images] == ["a.png"] and dataset.report.left_out == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_exif_orientation_is_applied_to_size_and_pixels(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = white_left()
    stored.save(tmp_path / f"a.{extension}", exif=exif, quality=100)
    (found,) = scan(tmp_path, trigger_word="x").images
    upright = ImageOps.exif_transpose(Image.open(tmp_path / f"a.{extension}")).convert("RGB")
    assert found.size_hw == upright.size[::-1] == ((96, 64) if orientation >= 5 else (64, 96))
    assert np.array_equal(np.asarray(found.read()), np.asarray(upright))


def test_a_grey_picture_of_sixteen_bits_is_scaled_and_not_cut_off(tmp_path):
    levels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(levels).save(tmp_path / "a.png")
    (found,) = scan(tmp_path, trigger_word="x").images
    assert np.array_equal(np.asarray(found.read())[:, :, 0], levels // 256)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    white_left().convert(mode).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    (found,) = scan(tmp_path, trigger_word="x").images
    pixels = found.read()
    assert pixels.mode == "RGB" and pixels.getpixel((5, 5)) == (255, 255, 255) and pixels.getpixel((80, 5)) == (0, 0, 0)


def test_a_photo_with_a_second_picture_inside_is_no_animation(tmp_path):
    """MPO: cameras and phones put a preview or a depth map behind the photo."""
    white_left().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (32, 32), "red")])
    (found,) = scan(tmp_path, trigger_word="x").images
    assert found.size_hw == (64, 96) and found.read().size == (96, 64)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_flattened_on_the_chosen_colour_and_kept_as_a_mask(tmp_path, mode):
    rgba = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 32, 64))
    rgba.convert(mode).save(tmp_path / "a.png")
    (found,) = scan(tmp_path, trigger_word="x", alpha_background="#00ff00").images
    assert found.has_alpha
    assert found.read().getpixel((5, 5)) == (0, 255, 0) and found.read().getpixel((50, 5)) == (0, 0, 0)
    alpha = found.read_alpha()
    assert alpha is not None and alpha.getpixel((5, 5)) == 0 and alpha.getpixel((50, 5)) == 255


def test_what_is_half_transparent_is_mixed_with_the_colour_and_the_mask_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (96, 64), (0, 0, 0, 51)).save(tmp_path / "a.png", exif=exif)
    (found,) = scan(tmp_path, trigger_word="x", alpha_background="white").images
    assert found.read().getpixel((5, 5)) == (204, 204, 204)
    alpha = found.read_alpha()
    assert alpha is not None and alpha.size == (64, 96) and alpha.getpixel((5, 5)) == 51


def test_an_opaque_picture_has_no_alpha(tmp_path):
    picture(tmp_path / "a.png")
    (found,) = scan(tmp_path).images
    assert not found.has_alpha and found.read_alpha() is None


def test_captions_come_from_txt_then_caption_then_the_fallback(tmp_path):
    picture(tmp_path / "a.png", caption="from txt").with_suffix(".caption").write_text("from caption")
    picture(tmp_path / "b.png", caption=None, colour=(1, 0, 0)).with_suffix(".caption").write_text("from caption")
    picture(tmp_path / "c.png", caption=None, colour=(2, 0, 0))
    picture(tmp_path / "d.png", caption="  \n", colour=(3, 0, 0))
    picture(tmp_path / "e.png", caption="  \n", colour=(4, 0, 0)).with_suffix(".caption").write_text("from caption")
    dataset = scan(tmp_path, fallback_caption="a thing")
    assert [image.caption for image in dataset.images] == ["from txt", "from caption", "a thing", "a thing", "from caption"]
    assert [note.name for note in dataset.report.notes] == ["c.png", "d.png"]


def test_the_trigger_word_alone_is_the_caption_of_last_resort(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    dataset = scan(tmp_path, trigger_word="zwx")
    assert dataset.images[0].caption == "zwx"
    assert dataset.report.notes[0].reason == "no caption file, or an empty one; the trigger word alone is used"


def test_a_picture_without_any_caption_is_left_out(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", colour=(1, 0, 0))
    assert reasons(scan(tmp_path)) == {"a.png": "it has no caption (.txt or .caption). Write one, or set fallback_caption or trigger_word"}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a toy", "zwx, a toy"),
        ("zwx, a toy", "zwx, a toy"),
        ("a ZWX toy", "a ZWX toy"),
        ("a zwxy toy", "zwx, a zwxy toy"),
        ("a re-zwx'd toy", "a re-zwx'd toy"),
        ("", "zwx"),
    ],
)
def test_the_trigger_word_is_put_in_front_once(caption, expected):
    assert with_trigger_word(caption, "zwx") == expected


def test_captions_are_read_as_utf8_with_or_without_a_mark_and_line_breaks_become_spaces(tmp_path):
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes("\ufeffun café,\r\n à côté\n".encode())
    assert scan(tmp_path).images[0].caption == "un café, à côté"


def test_the_caption_file_may_be_in_capitals(tmp_path):
    picture(tmp_path / "A.PNG", caption=None)
    (tmp_path / "A.TXT").write_text("a caption")
    assert scan(tmp_path).images[0].caption == "a caption"


def test_copies_are_left_out_or_kept_by_choice(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    assert reasons(scan(tmp_path)) == {"b.png": "it is the same file as a.png"}
    assert len(scan(tmp_path, keep_duplicates=True).images) == 2


def test_a_copy_is_kept_when_the_first_has_no_caption(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png")
    dataset = scan(tmp_path)
    assert [image.name for image in dataset.images] == ["b.png"] and list(reasons(dataset)) == ["a.png"]


def test_the_report_reads_and_serialises(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", caption=None)
    report = scan(tmp_path, trigger_word="zwx").report
    note = "no caption file, or an empty one; the trigger word alone is used"
    assert report.text() == f"1 picture kept, 1 left out\nLeft out:\n  b.png: it is the same file as a.png\nNotes:\n  a.png: {note}\n"
    assert json.loads(json.dumps(report.to_dict())) == {
        "num_kept": 1,
        "left_out": [{"name": "b.png", "reason": "it is the same file as a.png"}],
        "notes": [{"name": "a.png", "reason": note}],
        "buckets": {},
    }


def test_a_colour_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="alpha_background must be a colour such as white or #ffffff, got 'nocolour'"):
        DatasetConfig(images="x", alpha_background="nocolour")


def test_a_scan_can_be_cancelled_between_two_pictures(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    seen = []

    def check():
        if seen:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_folder(DatasetConfig(images=str(tmp_path)), check_interrupted=check, on_progress=lambda count, total, name: seen.append((count, total, name)))
    assert seen == [(1, 2, "a.png")]
