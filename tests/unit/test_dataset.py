"""A folder of pictures and captions: what is taken, what is left out and why, and what a caption becomes."""

import re
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from trainers.dataset import DatasetConfig, scan_folder, with_trigger_word
from trainers.picture_files import UnusablePicture, inspect_picture


def picture(path: Path, size_wh=(96, 64), colour=(10, 20, 30), caption: str | None = "a caption", **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, colour).save(path, **settings)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def scan(folder: Path, **settings):
    return scan_folder(DatasetConfig(images=str(folder), **settings))


def reasons(dataset) -> dict[str, str]:
    return {finding.name: finding.reason for finding in dataset.report.left_out}


def test_all_formats_in_any_case_are_taken_in_natural_order(tmp_path):
    names = ["2.png", "10.PNG", "3.jpg", "4.JPEG", "5.webp", "6.bmp"] + (["7.avif"] if features.check("avif") else [])
    for i, name in enumerate(names):
        picture(tmp_path / name, colour=(i, 0, 0))
    (tmp_path / "notes.md").write_text("not a picture")
    picture(tmp_path / "._2.png"), picture(tmp_path / ".hidden.png")
    expected = ["2.png", "3.jpg", "4.JPEG", "5.webp", "6.bmp", *(["7.avif"] if features.check("avif") else []), "10.PNG"]
    assert [image.name for image in scan(tmp_path).images] == expected


def test_subfolders_are_taken_only_when_asked(tmp_path):
    picture(tmp_path / "a.png"), picture(tmp_path / "sub" / "b.png", colour=(1, 1, 1))
    assert [image.name for image in scan(tmp_path).images] == ["a.png"]
    assert [image.name for image in scan(tmp_path, recursive=True).images] == ["a.png", "sub/b.png"]


def test_exif_orientation_is_applied_to_size_and_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to display
    image = Image.new("RGB", (96, 64), "black")
    image.paste("white", (0, 0, 96, 32))  # the upper half as stored is the right half as displayed
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    (found,) = scan(tmp_path, trigger_word="x").images
    assert found.size_hw == (96, 64) and found.read().size == (64, 96)
    assert found.read().getpixel((60, 50)) == (255, 255, 255) and found.read().getpixel((4, 50)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_flattened_on_the_chosen_colour_and_kept_as_a_mask(tmp_path, mode):
    rgba = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 32, 64))
    rgba.convert(mode).save(tmp_path / "a.png")
    (found,) = scan(tmp_path, trigger_word="x", alpha_background="#00ff00").images
    assert found.has_alpha
    assert found.read().getpixel((5, 5)) == (0, 255, 0) and found.read().getpixel((50, 5)) == (0, 0, 0)
    assert found.read_alpha().getpixel((5, 5)) == 0 and found.read_alpha().getpixel((50, 5)) == 255


def test_an_opaque_picture_has_no_alpha(tmp_path):
    picture(tmp_path / "a.png")
    (found,) = scan(tmp_path).images
    assert not found.has_alpha and found.read_alpha() is None


def test_animated_files_are_refused_by_name(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    for name in ("a.webp", "b.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    picture(tmp_path / "c.png")
    dataset = scan(tmp_path, trigger_word="x")
    assert set(reasons(dataset)) == {"a.webp", "b.png"}
    assert reasons(dataset)["a.webp"].startswith("it is animated (2 frames)")


def test_captions_come_from_txt_then_caption_then_the_fallback(tmp_path):
    picture(tmp_path / "a.png", caption="from txt").with_suffix(".caption").write_text("from caption")
    picture(tmp_path / "b.png", caption=None, colour=(1, 0, 0)).with_suffix(".caption").write_text("from caption")
    picture(tmp_path / "c.png", caption=None, colour=(2, 0, 0))
    picture(tmp_path / "d.png", caption="  \n", colour=(3, 0, 0))
    dataset = scan(tmp_path, fallback_caption="a thing")
    assert [image.caption for image in dataset.images] == ["from txt", "from caption", "a thing", "a thing"]
    assert [note.name for note in dataset.report.notes] == ["c.png", "d.png"]


def test_the_trigger_word_alone_is_the_caption_of_last_resort(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    dataset = scan(tmp_path, trigger_word="zwx")
    assert dataset.images[0].caption == "zwx"
    assert dataset.report.notes[0].reason == "no caption file, or an empty one; the trigger word alone is used"


def test_a_picture_without_any_caption_is_left_out(tmp_path):
    picture(tmp_path / "a.png", caption=None), picture(tmp_path / "b.png", colour=(1, 0, 0))
    assert reasons(scan(tmp_path)) == {"a.png": "it has no caption (.txt or .caption). Write one, or set fallback_caption or trigger_word"}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a toy", "zwx, a toy"),
        ("zwx, a toy", "zwx, a toy"),
        ("a ZWX toy", "a ZWX toy"),
        ("a zwxy toy", "zwx, a zwxy toy"),
        ("", "zwx"),
    ],
)
def test_the_trigger_word_is_put_in_front_once(caption, expected):
    assert with_trigger_word(caption, "zwx") == expected


def test_captions_are_read_as_utf8_with_or_without_a_mark_and_line_breaks_become_spaces(tmp_path):
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes("\ufeffun café,\r\n à côté\n".encode())
    assert scan(tmp_path).images[0].caption == "un café, à côté"


def test_a_caption_in_cp1252_is_read_and_noted(tmp_path):
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes("un café “bleu”".encode("cp1252"))
    dataset = scan(tmp_path)
    assert dataset.images[0].caption == "un café “bleu”"
    assert dataset.report.notes[0].reason == "a.txt is not UTF-8; it was read as Windows-1252"


def test_a_caption_of_ten_thousand_words_is_kept_whole(tmp_path):
    picture(tmp_path / "a.png", caption="word " * 10_000)
    assert len(scan(tmp_path).images[0].caption.split()) == 10_000


def test_copies_are_left_out_or_kept_by_choice(tmp_path):
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    assert reasons(scan(tmp_path)) == {"b.png": "it is the same file as a.png"}
    assert len(scan(tmp_path, keep_duplicates=True).images) == 2


def broken_folder(folder: Path) -> Path:
    picture(folder / "good.png")
    (folder / "text.png").write_text("this is text")
    (folder / "empty.jpg").write_bytes(b"")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (400, 400, 3), dtype=np.uint8)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-20_000])
    Image.fromarray(rng.integers(0, 255, (100, 100, 3), dtype=np.uint8)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-9_000])
    return folder


def test_broken_files_are_left_out_and_named_with_the_reason(tmp_path):
    found = reasons(scan(broken_folder(tmp_path), trigger_word="x"))
    assert found["text.png"] == "it is not a picture that Pillow can read"
    assert found["empty.jpg"] == "the file is empty (0 bytes)"
    assert found["cut.jpg"].startswith("it is damaged (image file is truncated")
    assert found["cut.png"].startswith("it is damaged (")


def test_strict_mode_makes_them_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"strict is on and 4 pictures cannot be used: cut\.jpg: it is damaged"):
        scan(broken_folder(tmp_path), trigger_word="x", strict=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: None, FileNotFoundError, "there is no such folder. Give the folder that holds the pictures"),
        (lambda folder: folder.write_text("x"), NotADirectoryError, "is a file. Give the folder that holds the pictures"),
        (lambda folder: folder.mkdir(), ValueError, "no pictures, it is empty. Pictures are .png, .jpg, .jpeg, .webp, .bmp, .avif."),
        (lambda folder: (folder.mkdir(), (folder / "a.md").write_text("x")), ValueError, "no pictures, its 1 files are none."),
        (lambda folder: picture(folder / "sub" / "a.png"), ValueError, "It has subfolders: turn on recursive to use them."),
        (lambda folder: (folder.mkdir(), (folder / "a.png").write_text("x")), ValueError, "none of its 1 pictures can be used: a.png: it is not a picture"),
    ],
)
def test_a_folder_that_gives_nothing_is_an_error_that_says_what_to_do(tmp_path, make, error, message):
    folder = tmp_path / "pictures"
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=re.escape(message)):
        scan(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_colour_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="alpha_background must be a colour such as white or #ffffff, got 'nocolour'"):
        DatasetConfig(images="x", alpha_background="nocolour")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_picture_of_400_megapixels_is_left_out_by_its_header_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(20_000, 20_000))
    with pytest.raises(UnusablePicture, match="20000 x 20000 pixels are too many to decode safely; at most 100 megapixels. Scale it down first"):
        inspect_picture(tmp_path / "a.png")


def test_a_jpeg_of_20000_pixels_is_read_in_bounded_memory(tmp_path):
    """160 megapixels, 480 MB as RGB: the true size is kept, the pixels come at half of it."""
    path = tmp_path / "a.jpg"
    Image.new("L", (20_000, 8_000), 200).save(path)
    code = f"""
import resource
from pathlib import Path
from trainers.picture_files import inspect_picture, read_rgb
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
facts = inspect_picture(Path({str(path)!r}))
size = read_rgb(Path({str(path)!r}), alpha_background="white").size
print(facts.size_hw, size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    size_hw, size, megabytes = re.fullmatch(r"(\(.*?\)) (\(.*?\)) (\d+)\s*", result.stdout).groups()
    assert (size_hw, size) == ("(8000, 20000)", "(10000, 4000)")
    assert int(megabytes) < 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_a_scan_can_be_cancelled_between_two_pictures(tmp_path):
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    seen = []

    def check():
        if seen:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_folder(DatasetConfig(images=str(tmp_path)), check_interrupted=check, on_progress=lambda count, total, name: seen.append((count, total, name)))
    assert seen == [(1, 2, "a.png")]
