"""Bad images and captions are left out and named, or are an error that says what to do. Nothing is
written.
"""

import io
import os
import random
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.image_files import UnusableImage, inspect_image, read_alpha, read_rgb
from trainers.dataset.image_folder import list_dataset_files
from trainers.dataset.scan import scan_folder

ROOT = Path(__file__).parents[3]
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")


def scan(folder: Path, **settings) -> Dataset:
    return scan_folder(DatasetConfig(images=str(folder), **{"trigger_word": "zwx", **settings}))


def list_reasons(folder: Path, **settings) -> dict[str, str]:
    """Scan the folder with one good image added; return why the other files are left out."""
    Image.new("RGB", (64, 64), "blue").save(folder / "good.png")
    dataset = scan(folder, **settings)
    assert [image.name for image in dataset.images] == ["good.png"]
    return {finding.name: finding.reason for finding in dataset.report.left_out}


def encode(image: Image.Image, format: str, **settings) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **settings)
    return stream.getvalue()


def make_noise(width: int = 200, height: int = 160) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: None, FileNotFoundError, "there is no such folder. Give the folder that holds the images"),
        (lambda folder: folder.write_text("x"), NotADirectoryError, "is a file. Give the folder that holds the images"),
        (
            lambda folder: folder.mkdir(),
            ValueError,
            "no images, it is empty. Images are .png, .jpg, .jpeg, .webp, .bmp, .avif.",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "a.md").write_text("x")),
            ValueError,
            "no images, it has 1 file of other kinds. Images are",
        ),
        (
            lambda folder: (folder / "sub").mkdir(parents=True),
            ValueError,
            "It has subfolders; turn on recursive to use them.",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "a.png").write_text("x")),
            ValueError,
            "no usable image among 1: a.png: it is not a readable image",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "a.jpg").touch()),
            ValueError,
            "no usable image among 1: a.jpg: the file is empty (0 bytes)",
        ),
    ],
    ids=["missing folder", "a file", "empty folder", "no images", "subfolders", "text", "zero bytes"],
)
def test_a_folder_without_usable_images_is_an_error_that_says_what_to_do(tmp_path, make, error, message):
    folder = tmp_path / "pictures"
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=re.escape(message)) as raised:
        scan(folder)
    assert str(folder) in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_setting_does_not_mean_the_current_folder():
    with pytest.raises(ValueError, match=r"images is empty\. Give the folder that holds the images"):
        DatasetConfig(images=" ")


def test_an_error_gives_each_reason_once_names_five_files_and_counts_the_rest(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(
        ValueError,
        match=r"no usable image among 13: 0\.png, 1\.png, 2\.png, 3\.png, 4\.png and 7 more: the file is empty "
        r"\(0 bytes\); text\.png: it is not a readable image",
    ):
        scan(tmp_path)


def test_strict_mode_makes_every_left_out_image_an_error(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("text")
    message = (
        r"strict is on and 2 images cannot be used: empty\.jpg: the file is empty \(0 bytes\); text\.png: it "
        r"is not a readable image"
    )
    with pytest.raises(ValueError, match=message):
        scan(tmp_path, strict=True)


def test_files_that_are_not_images_are_named(tmp_path):
    (tmp_path / "text.png").write_text("this is text")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "drawing.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    found = list_reasons(tmp_path)
    assert found["text.png"].startswith("it is not a readable image (PNG, JPEG, WEBP, BMP")
    assert found["drawing.png"] == found["text.png"]  # and Ghostscript was not started
    assert found["empty.jpg"] == "the file is empty (0 bytes)"


def test_images_in_other_formats_are_named_not_ignored(tmp_path):
    make_noise().save(tmp_path / "a.gif")
    make_noise().save(tmp_path / "b.TIFF")
    assert list_reasons(tmp_path) == {
        "a.gif": ".gif files are not read. Convert it to one of .png, .jpg, .jpeg, .webp, .bmp, .avif",
        "b.TIFF": ".TIFF files are not read. Convert it to one of .png, .jpg, .jpeg, .webp, .bmp, .avif",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_to_a_missing_file_is_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    assert list_reasons(tmp_path) == {"a.png": "it cannot be read (No such file or directory)"}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.jpg", {}),
        ("b.jpg", {"progressive": True}),
        ("c.png", {}),
        ("d.webp", {}),
        ("e.bmp", {}),
        pytest.param("f.avif", {}, marks=needs_avif),
    ],
)
def test_a_truncated_file_is_found_by_the_scan(tmp_path, name, settings, share):
    make_noise().save(tmp_path / name, **settings)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    assert re.match(r"it is damaged \(.+\)|it is not a readable image", list_reasons(tmp_path)[name])


def test_damage_at_the_end_of_a_large_jpeg_is_found_even_at_reduced_size(tmp_path):
    content = encode(make_noise(2400, 1800), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content[:-2000])
    assert list_reasons(tmp_path)["a.jpg"].startswith("it is damaged (image file is truncated")


@pytest.mark.parametrize("extension", ["webp", "png", pytest.param("avif", marks=needs_avif)])
def test_animated_files_are_refused_by_name(tmp_path, extension):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:])
    assert list_reasons(tmp_path) == {
        f"a.{extension}": "it is animated (3 frames); save the frame that you want as a separate image"
    }


def make_png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def test_a_png_of_400_megapixels_is_left_out_by_its_header_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(make_png_header(20_000, 20_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list_reasons(tmp_path)
    assert found == {
        "a.png": "20000 x 20000 pixels are too many to decode safely; at most 100 megapixels. Scale it down"
    }


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory with the resource module")
def test_a_jpeg_of_160_megapixels_is_read_in_bounded_memory(tmp_path):
    """It would take 640 MB in Pillow: the true size is reported, the pixels are half that size."""
    Image.new("L", (20_000, 8_000), 200).save(tmp_path / "a.jpg")
    code = f"""
import resource
from pathlib import Path
from trainers.dataset.image_files import inspect_image, read_rgb
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
facts = inspect_image(Path({str(tmp_path / "a.jpg")!r}))
size = read_rgb(Path({str(tmp_path / "a.jpg")!r}), alpha_background="white").size
print(facts.size_hw, size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    size_hw, size, growth = re.fullmatch(r"(\(.*?\)) (\(.*?\)) (\d+)\s*", output).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert (size_hw, size) == ("(8000, 20000)", "(10000, 4000)")
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    assert int(growth) * unit_bytes < 320_000_000


def test_a_jpeg_above_the_limit_is_decoded_small_enough(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.dataset.image_files.MAX_PIXELS", 1000)
    make_noise(240, 160).save(tmp_path / "a.jpg")
    assert inspect_image(tmp_path / "a.jpg").size_hw == (160, 240)
    assert read_rgb(tmp_path / "a.jpg", alpha_background="white").size == (30, 20)


def test_a_huge_progressive_jpeg_is_left_out_because_its_decoder_needs_full_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.dataset.image_files.MAX_PIXELS", 10_000)
    make_noise().save(tmp_path / "a.jpg", progressive=True)
    assert list_reasons(tmp_path) == {
        "a.jpg": "200 x 160 pixels are too many for a progressive JPEG. Save it as a baseline JPEG, or scale it down"
    }


def test_pillows_own_limit_is_restored_after_many_threads_have_read(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    make_noise().save(tmp_path / "a.png")
    threads = [
        threading.Thread(target=lambda: [inspect_image(tmp_path / "a.png") for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS


def test_an_image_with_broken_exif_data_is_still_turned_upright(tmp_path):
    """The width is a text. Pillow 13 reads such data but cannot write them, as
    ImageOps.exif_transpose would.
    """
    entries = [(0x0100, 2, 4, b"abc\0"), (0x0112, 3, 1, b"\0\x06\0\0")]
    exif = (
        b"Exif\0\0MM\0*\0\0\0\x08"
        + struct.pack(">H", len(entries))
        + b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
        + bytes(4)
    )
    make_noise().save(tmp_path / "a.jpg", exif=exif)
    (found,) = scan(tmp_path).images
    assert found.size_hw == (200, 160) and found.read().size == (160, 200)


FUZZED = ["a.png", "b.jpg", "c.jpg", "d.webp", "e.bmp", pytest.param("f.avif", marks=needs_avif)]


@pytest.mark.parametrize("name", FUZZED)
def test_any_damaged_file_is_read_or_refused_by_the_scan(tmp_path, name):
    """300 files with wrong bytes: UnusableImage is the only error, and every file that passes the
    inspection can be read.
    """
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    image = make_noise(60, 40)
    if name in ("a.png", "d.webp", "f.avif"):
        image.putalpha(100)
    image.save(tmp_path / name, progressive=name == "c.jpg", exif=b"" if name == "e.bmp" else exif)
    content, rng = (tmp_path / name).read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 2, 8])):
            damaged[rng.randrange(min(len(damaged), rng.choice([200, len(damaged)])))] = rng.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                facts = inspect_image(tmp_path / name)
            except UnusableImage:
                continue
            assert read_rgb(tmp_path / name, alpha_background="white").size == facts.size_hw[::-1]
            assert (read_alpha(tmp_path / name) is not None) == facts.has_alpha


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("cp1252", "a.txt is not UTF-8; it was read as Windows-1252"),
        ("utf-16", "a.txt is not UTF-8; it was read as UTF-16"),
    ],
)
def test_a_caption_that_is_not_utf8_is_read_and_reported(tmp_path, encoding, note):
    make_noise().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("un café “bleu”".encode(encoding))
    dataset = scan(tmp_path, trigger_word="")
    assert dataset.images[0].caption == "un café “bleu”"
    assert [(finding.name, finding.reason) for finding in dataset.report.notes] == [("a.png", note)]


def test_a_caption_of_ten_thousand_words_is_kept_whole(tmp_path):
    make_noise().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" ".join(f"word{i}" for i in range(10_000)))
    assert scan(tmp_path).images[0].caption.split()[1:] == [f"word{i}" for i in range(10_000)]


@pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything"
)
def test_a_file_without_read_permission_is_named(tmp_path):
    make_noise().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert list_reasons(tmp_path) == {"a.png": "it cannot be read (Permission denied)"}


@pytest.mark.parametrize("kind", ["profile", "text", "packed text", "packed unicode"])
def test_a_png_with_a_large_profile_or_text_is_read(tmp_path, kind):
    large = random.Random(0).randbytes(3_000_000)
    texts = PngInfo()
    if kind == "text":
        texts.add_text("workflow", large.hex())
    if kind == "packed text":
        texts.add_text("workflow", large.hex(), zip=True)
    if kind == "packed unicode":
        texts.add_itxt("workflow", large.hex(), zip=True)
    image = make_noise()
    image.save(tmp_path / "a.png", icc_profile=large if kind == "profile" else None, pnginfo=texts)
    (found,) = scan(tmp_path).images
    assert found.size_hw == (160, 200)
    assert np.array_equal(np.asarray(found.read()), np.asarray(image))


def test_a_text_that_unpacks_to_a_gigabyte_is_not_unpacked(tmp_path):
    packed = zlib.compress(bytes(50_000_000))
    chunk = b"zTXt" + b"a\0\0" + packed
    content = encode(make_noise(), "PNG")
    content = (
        content[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
    )
    (tmp_path / "a.png").write_bytes(content)
    assert scan(tmp_path).images[0].size_hw == (160, 200)


def test_a_progressive_jpeg_of_thousands_of_scans_is_left_out_before_it_is_decoded(tmp_path):
    content = encode(make_noise(), "JPEG", progressive=True)
    last_scan = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(content[:-2] + 2000 * last_scan + content[-2:])
    assert list_reasons(tmp_path) == {
        "a.jpg": "it is a progressive JPEG of more than 100 scans, which take minutes to decode. Save it again"
    }


def test_a_file_of_more_than_a_gigabyte_is_left_out_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.dataset.image_files.MAX_FILE_BYTES", 2**20)
    (tmp_path / "a.png").write_bytes(bytes(2**20 + 1))
    assert list_reasons(tmp_path) == {"a.png": "the file has 0.0 GB; at most 0.0 GB"}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these systems have no such names")
def test_a_name_that_is_not_utf8_is_left_out_by_name(tmp_path):
    content = encode(make_noise(), "PNG")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as stream:
        stream.write(content)
    found = list_reasons(tmp_path)
    assert found == {"caf\\udce9.png": "its name is not UTF-8. Rename it"}
    assert "caf" in scan(tmp_path).report.text().encode().decode()
    assert len(list_dataset_files(tmp_path, recursive=False).read) == 1
