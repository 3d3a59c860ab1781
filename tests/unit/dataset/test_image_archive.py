"""Good and hostile archives: what is unpacked, what is refused and named, and that nothing is ever
written outside the folder.
"""

import io
import os
import random
import re
import shutil
import stat
import struct
import sys
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.limits import TIME_LIMIT
from trainers.dataset import image_archive as module
from trainers.dataset.config import DatasetConfig
from trainers.dataset.image_archive import ArchiveLimits, unpack_images
from trainers.dataset.scan import scan_folder
from trainers.training.events import Interrupted


def make_png(colour: str = "red", size: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(stream, format="PNG")
    return stream.getvalue()


PNG = make_png()


def make_archive(folder: Path, entries: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder / "pictures.zip"
    with zipfile.ZipFile(path, "w", method) as zip_file:
        for name, content in entries.items():
            zip_file.writestr(name, content)
    return path


def unpack(tmp_path: Path, names: list[str]) -> list[str]:
    """List the files that an archive with these names unpacks to."""
    return list_files(unpack_images(make_archive(tmp_path, dict.fromkeys(names, PNG)), tmp_path / "out"))


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def require_refusal(archive: Path, message: str, **limits: int) -> None:
    """Require an error that names the archive, and that leaves nothing in the folder."""
    out = archive.parent / "out"
    with pytest.raises(ValueError, match=message) as raised:
        unpack_images(archive, out, limits=ArchiveLimits(**limits))
    assert str(raised.value).startswith(f"{archive}: ")
    assert not out.exists() or list(out.iterdir()) == []


def test_images_and_captions_become_a_folder_that_can_be_trained_on(tmp_path):
    entries = {"a.png": PNG, "a.txt": b"a red square", "b.PNG": make_png("blue"), "b.caption": b"a blue square"}
    progress = []
    folder = unpack_images(
        make_archive(tmp_path, entries), tmp_path / "out", on_progress=lambda *report: progress.append(report)
    )
    dataset = scan_folder(DatasetConfig(images=str(folder)))
    assert [(image.name, image.caption) for image in dataset.images] == [
        ("a.png", "a red square"),
        ("b.PNG", "a blue square"),
    ]
    assert progress == [(1, 4, "a.png"), (2, 4, "a.txt"), (3, 4, "b.PNG"), (4, 4, "b.caption")]
    assert list((tmp_path / "out").iterdir()) == [folder]


def test_only_images_and_captions_are_unpacked(tmp_path):
    images = ["a.png", "b.gif", "c.HEIC", "d.webp"]
    captions = ["a.TXT", "b.txt", "d.caption", "metadata.jsonl"]
    others = [
        "run.py",
        "a.png.exe",
        "model.safetensors",
        "e.zip",
        "Thumbs.db",
        "a",
        "__MACOSX/._a.png",
        "__MACOSX/x.png",
        ".hidden.png",
    ]
    assert unpack(tmp_path, images + captions + others + [".git/x.png", "empty/"]) == sorted(images + captions)


def test_captions_of_no_image_are_named_as_those_of_a_folder_are(tmp_path):
    content = {"a.png": PNG, "a.txt": b"a square", "b.txt": b"lost", "b.png.txt": b"lost"}
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, text in content.items():
        (plain / name).write_bytes(text)
    entries = {f"top/{name}": text for name, text in content.items()} | {"readme.txt": b"", "more/c.txt": b""}
    archived = unpack_images(make_archive(tmp_path, entries), tmp_path / "out")
    notes, expected = (scan_folder(DatasetConfig(images=str(folder))).report.notes for folder in (archived, plain))
    assert notes == expected and [note.name for note in notes] == ["b.png.txt", "b.txt"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "sub/b.png"], ["a.png", "sub/b.png"]),
        (["top/a.png", "top/sub/b.png"], ["a.png", "sub/b.png"]),
        (["top/mid/a.png", "top/mid/b.png"], ["a.png", "b.png"]),
        (["one/a.png", "two/a.png"], ["one/a.png", "two/a.png"]),
        (["top/a.png", "top/a.txt", "readme.txt", "__MACOSX/top/._a.png"], ["a.png", "a.txt"]),
        (["./a.png", "sub//b.png"], ["a.png", "sub/b.png"]),
        (["top\\a.png", "top\\sub\\b.png"], ["a.png", "sub/b.png"]),
        (["a/x.png", "ab/x.png"], ["a/x.png", "ab/x.png"]),
    ],
    ids=[
        "two levels",
        "top folder",
        "two top folders",
        "side by side",
        "read-me beside",
        "dots",
        "backslashes",
        "same beginning",
    ],
)
def test_subfolders_are_kept_except_parents_that_contain_everything(tmp_path, names, expected):
    assert unpack(tmp_path, names) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10_dog/a.png", "10_dog/mask/a.png"], ["10_dog/a.png", "10_dog/mask/a.png"]),
        (["dogs/reg/1_dog/a.png", "dogs/reg/1_dog/b.png"], ["reg/1_dog/a.png", "reg/1_dog/b.png"]),
        (["reg/a.png", "reg/b.png"], ["a.png", "b.png"]),
        (["photos/10_dog/a.png", "photos/10_dog/a.txt", "readme.txt"], ["10_dog/a.png", "10_dog/a.txt"]),
        (["10_dog/sub/a.png"], ["a.png"]),
        (["10_dog/one/a.png", "10_dog/two/a.png"], ["one/a.png", "two/a.png"]),
    ],
    ids=["at the top", "regularization", "without numbers", "below another", "above another", "above others"],
)
def test_a_kohya_folder_that_contains_everything_is_kept_if_it_has_images(tmp_path, names, expected):
    assert unpack(tmp_path, names) == expected


def test_a_zip_of_one_kohya_folder_keeps_its_repeats_and_its_name_as_caption(tmp_path):
    dataset = scan_folder(
        DatasetConfig(images=str(unpack_images(make_archive(tmp_path, {"10_dog/a.png": PNG}), tmp_path / "out")))
    )
    assert [(image.name, image.num_repeats, image.caption) for image in dataset.images] == [("10_dog/a.png", 10, "dog")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["what?.png", "what?.txt"], ["what_.png", "what_.txt"]),
        (['a<b>:"|*c.png'], ["a_b_____c.png"]),
        (["con.png", "con.txt", "NUL /a.png", "x/lpt1.a.png"], ["NUL_/a.png", "_con.png", "_con.txt", "x/_lpt1.a.png"]),
        (["trailing./a.png", "space /b.png"], ["space_/b.png", "trailing_/a.png"]),
        (["a\x01b.png"], ["a_b.png"]),
        (["réné.png", "写真.png"], ["réné.png", "写真.png"]),
    ],
)
def test_names_that_some_system_forbids_are_changed_and_captions_stay_with_their_images(tmp_path, names, expected):
    assert unpack(tmp_path, names) == expected


def test_an_archive_with_the_same_bytes_is_not_unpacked_again(tmp_path):
    archive = make_archive(tmp_path, {"a.png": PNG})
    folder = unpack_images(archive, tmp_path / "out")
    (folder / "a.txt").write_text("written later")
    copy = tmp_path / "other name.zip"
    shutil.copy(archive, copy)
    assert unpack_images(copy, tmp_path / "out", on_progress=lambda *_: pytest.fail("unpacked again")) == folder
    assert (folder / "a.txt").read_text() == "written later"


def test_a_different_archive_gets_its_own_folder(tmp_path):
    first = unpack_images(make_archive(tmp_path, {"a.png": PNG}), tmp_path / "out")
    assert unpack_images(make_archive(tmp_path, {"a.png": make_png("blue")}), tmp_path / "out") != first


def test_an_interrupt_leaves_nothing_and_the_next_call_unpacks_everything(tmp_path):
    archive = make_archive(tmp_path, {f"{i}.png": PNG for i in range(5)})
    seen = []

    def interrupt() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        unpack_images(archive, tmp_path / "out", check_interrupted=interrupt)
    assert list((tmp_path / "out").iterdir()) == []
    assert len(list_files(unpack_images(archive, tmp_path / "out"))) == 5


def test_two_calls_that_unpack_the_same_archive_at_once_both_get_it(tmp_path):
    archive = make_archive(tmp_path, {f"{i}.png": PNG for i in range(5)})
    both_started = threading.Barrier(2)
    folders = []

    def unpack() -> None:
        folders.append(
            unpack_images(
                archive,
                tmp_path / "out",
                on_progress=lambda count, *_: both_started.wait(TIME_LIMIT) if count == 5 else None,
            )
        )

    threads = [threading.Thread(target=unpack) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2 and folders[0] == folders[1]
    assert len(list_files(folders[0])) == 5 and list((tmp_path / "out").iterdir()) == [folders[0]]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "a/../../evil.png",
        "a/..",
        "..",
        "a/../b.png",
        "/evil.png",
        "//server/share/evil.png",
        "C:/evil.png",
        "c:evil.png",
        "..\\evil.png",
        "a\\..\\..\\evil.png",
        "\\evil.png",
        "\\\\server\\share\\evil.png",
        "C:\\evil.png",
        "__MACOSX/../../evil.png",
        "../evil.txt",
    ],
)
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    name = name if name.endswith(("png", "txt")) else f"{name}/x.png"
    require_refusal(
        make_archive(tmp_path, {"good.png": PNG, name: PNG}), rf"{re.escape(repr(name))} leads out of the folder"
    )


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_link_or_device_is_refused(tmp_path, kind):
    info = zipfile.ZipInfo("evil.png")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as zip_file:
        zip_file.writestr("good.png", PNG)
        zip_file.writestr(info, "/etc/passwd")
    require_refusal(tmp_path / "pictures.zip", r"'evil\.png' is a link or a device")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "A.png"], r"'a\.png' and 'A\.png' are the same name"),
        (["x/sub/a.png", "x/SUB/a.png"], "are the same name"),
        (["é.png", "e\u0301.png"], "are the same name"),
        (["ß.png", "ss.png"], "are the same name"),
        (["a?.png", "a*.png"], r"'a_\.png' and 'a_\.png' are the same name"),
        (["./a.png", "a.png"], "are the same name"),
        (["x.png", "X.PNG/a.png"], r"'X\.PNG' is a file and a folder"),
    ],
)
def test_two_files_with_one_name_are_refused(tmp_path, names, message):
    require_refusal(make_archive(tmp_path, dict.fromkeys(names, PNG)), message)


def test_the_same_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as zip_file, pytest.warns(UserWarning, match="Duplicate name"):
        zip_file.writestr("a.png", PNG)
        zip_file.writestr("a.png", make_png("blue"))
    require_refusal(tmp_path / "pictures.zip", "are the same name")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 241 + ".png", r"is a name of 245 bytes; at most 240"),
        ("写" * 100 + ".png", "is a name of 304 bytes"),
        ("a/" * 500 + "b.png", "is a path of 1,005 bytes"),
    ],
)
def test_names_too_long_for_a_file_system_are_refused(tmp_path, name, message):
    require_refusal(make_archive(tmp_path, {"top.png": PNG, name: PNG}), message)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_files": 2}, "it has 3 images and captions; at most 2"),
        ({"max_file_bytes": 1000}, r"'b\.bmp' has 2\.0 MB; at most 0\.0 MB"),
        ({"max_total_bytes": 2 * 2**20}, r"its 3 files have 2\.0 MB unpacked; at most 2\.0 MB"),
    ],
)
def test_an_archive_over_a_limit_is_refused(tmp_path, limits, message):
    require_refusal(
        make_archive(tmp_path, {"a.png": PNG, "a.txt": b"text", "b.bmp": bytes(2 * 2**20)}), message, **limits
    )


def test_ignored_files_do_not_count(tmp_path):
    entries = {"a.png": PNG, "model.bin": bytes(2**20), **{f"{i}.log": b"x" for i in range(100)}}
    folder = unpack_images(
        make_archive(tmp_path, entries), tmp_path / "out", limits=ArchiveLimits(max_files=1, max_total_bytes=len(PNG))
    )
    assert list_files(folder) == ["a.png"]


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10))
    with pytest.raises(OSError, match=r"unpacking needs 0\.0 MB, but only 0\.0 MB are free\. Free some space"):
        unpack_images(make_archive(tmp_path, {"a.png": PNG}), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def change_headers(archive: Path, *, local: dict[int, bytes], central: dict[int, bytes]) -> Path:
    """Overwrite bytes at these offsets in the headers of the archive's first file."""
    content = bytearray(archive.read_bytes())
    for start, changes in ((content.index(b"PK\3\4"), local), (content.index(b"PK\1\2"), central)):
        for offset, value in changes.items():
            content[start + offset : start + offset + len(value)] = value
    archive.write_bytes(content)
    return archive


def change_sizes(archive: Path, *, size: int | None = None, crc: int | None = None) -> Path:
    """Change the size or checksum that the archive states for its first file."""
    changes = {} if size is None else {22: struct.pack("<L", size)}
    changes |= {} if crc is None else {14: struct.pack("<L", crc)}
    return change_headers(archive, local=changes, central={offset + 2: value for offset, value in changes.items()})


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_bomb_that_lies_about_its_size_is_refused_and_never_writes_more_than_it_says(tmp_path, method, monkeypatch):
    written = []
    monkeypatch.setattr(module.os, "fsync", lambda number: written.append(os.fstat(number).st_size))
    archive = make_archive(tmp_path, {"bomb.bmp": bytes(30 * 2**20)}, method=method)
    require_refusal(change_sizes(archive, size=1000), "the archive is damaged or incomplete", max_file_bytes=10_000)
    assert all(size <= 1000 for size in written)


def test_a_file_longer_than_its_header_says_is_not_truncated(tmp_path, monkeypatch):
    """Even if zipfile did not stop at the declared size, our own count does."""
    archive = make_archive(tmp_path, {"a.bmp": bytes(5 * 2**20)})
    change_sizes(archive, size=1000)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: io.BytesIO(bytes(5 * 2**20)))
    require_refusal(archive, r"'a\.bmp' has 1,048,576 bytes or more; its header says 1,000")


def test_a_file_shorter_than_its_header_says_is_refused(tmp_path):
    require_refusal(
        change_sizes(make_archive(tmp_path, {"a.png": PNG}), size=len(PNG) + 50, crc=zlib.crc32(PNG)),
        "damaged or incomplete",
    )


def test_a_wrong_checksum_is_refused(tmp_path):
    require_refusal(
        change_sizes(make_archive(tmp_path, {"a.png": PNG}), crc=0),
        r"the archive is damaged or incomplete \(Bad CRC-32 for file 'a\.png'\)",
    )


def test_an_encrypted_archive_is_refused(tmp_path):
    archive = change_headers(make_archive(tmp_path, {"a.png": PNG}), local={6: b"\1\0"}, central={8: b"\1\0"})
    require_refusal(archive, r"'a\.png' is encrypted\. Make the archive without a password")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_methods_without_a_memory_bound_are_refused(tmp_path, method):
    require_refusal(
        make_archive(tmp_path, {"a.png": PNG}, method=method),
        rf"'a\.png' is compressed with method {method}\. Make the archive with the usual method",
    )


def test_an_unknown_method_is_refused(tmp_path):
    archive = change_headers(make_archive(tmp_path, {"a.png": PNG}), local={8: b"\x09\0"}, central={10: b"\x09\0"})
    require_refusal(archive, "compressed with method 9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or incomplete"),
        (b"not a zip at all" * 100, r"damaged or incomplete \(File is not a zip file\)"),
        (b"Rar!\x1a\x07\x00", "it is a RAR archive, not a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "it is a 7-Zip archive"),
        (b"\x1f\x8b\x08", "it is a gzip file"),
        (
            b"<!DOCTYPE html><html>log in</html>",
            "it is a web page, not a zip archive. Give a .zip archive, or the address that downloads",
        ),
    ],
)
def test_a_file_that_is_not_a_zip_is_refused_and_its_kind_named(tmp_path, content, message):
    archive = tmp_path / "pictures.zip"
    archive.write_bytes(content)
    require_refusal(archive, message)


def test_an_archive_without_its_end_is_refused(tmp_path):
    archive = make_archive(tmp_path, {f"{i}.png": PNG for i in range(5)})
    archive.write_bytes(archive.read_bytes()[:-100])
    require_refusal(archive, r"damaged or incomplete .* Make it or download it again")


def test_an_endless_list_of_entries_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_DIRECTORY_BYTES", 70_000)
    require_refusal(
        make_archive(tmp_path, {f"{i}.log": b"" for i in range(2000)}),
        r"its list of entries has \d+,\d+ bytes; at most 70,000",
    )


def test_an_archive_without_images_is_refused(tmp_path):
    require_refusal(
        make_archive(tmp_path, {"a.txt": b"x", "b.pdf": b"x", "metadata.jsonl": b"{}"}),
        r"it has no images\. Images are \.png, \.jpg",
    )


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pictures\.zip: there is no such file"):
        unpack_images(tmp_path / "pictures.zip", tmp_path / "out")


name_pieces = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "\\",
        "a",
        "A",
        "é",
        "C:",
        ":",
        "\0",
        " ",
        "con",
        "~",
        "%2e%2e",
        "．．",
        "／",
        "\u202e",
        "\x7f",
        "\n",
        "__MACOSX",
    ]
)
evil_names = st.lists(name_pieces | st.characters(codec="utf-8"), max_size=8).map("".join)


@given(
    names=st.lists(
        st.tuples(evil_names, st.sampled_from([".png", ".txt", "/a.png", "\\a.jpg", ".png/", ""])),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_name_at_all_can_write_outside_the_folder(names):
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        archive, out = root / "pictures.zip", root / "deep" / "out"
        with zipfile.ZipFile(archive, "w") as zip_file:
            for stem, ending in names:
                zip_file.writestr(make_entry(stem + ending), PNG)
        try:
            folder = unpack_images(archive, out)
        except ValueError as error:
            assert str(error).startswith(f"{archive}: ")
            folder = None
        everything = {path for path in root.rglob("*") if path not in (archive, out, out.parent)}
        inside = set() if folder is None else {folder, *folder.rglob("*")}
        assert everything == inside
        assert all(not path.is_symlink() and path.resolve().is_relative_to(root.resolve()) for path in inside)


def make_entry(name: str) -> zipfile.ZipInfo:
    """Return an entry of exactly this name; ZipInfo's constructor corrects some names."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    return info


@pytest.mark.parametrize("is_zip64", [False, True])
def test_any_damage_to_an_archive_is_an_error_that_names_it(tmp_path, monkeypatch, is_zip64):
    monkeypatch.setattr(module.os, "fsync", lambda _: None)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50 if is_zip64 else zipfile.ZIP64_LIMIT)
    whole = make_archive(tmp_path, {f"x/{i}.png": PNG for i in range(3)}).read_bytes()
    archive, chance = tmp_path / "damaged.zip", random.Random(0)
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.choice((0, 1, 255, chance.randrange(256)))
        archive.write_bytes(content[: chance.choice((len(content), len(content), chance.randrange(len(content))))])
        try:
            folder = unpack_images(archive, tmp_path / "out")
        except ValueError as error:
            assert str(error).startswith(f"{archive}: ")
        else:
            shutil.rmtree(folder)
        assert list((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else []) == []


@pytest.mark.skipif(sys.platform == "win32", reason="permission bits")
def test_files_are_neither_executable_nor_private(tmp_path):
    info = zipfile.ZipInfo("a.png")
    info.external_attr = (stat.S_IFREG | 0o4777) << 16
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as zip_file:
        zip_file.writestr(info, PNG)
    folder = unpack_images(tmp_path / "pictures.zip", tmp_path / "out")
    assert stat.S_IMODE((folder / "a.png").stat().st_mode) & 0o7111 == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
