"""Captions from text files and from metadata.jsonl."""

import json

import pytest

from tests.unit.dataset.folders import list_reasons, scan, write_photo
from trainers.dataset.image_folder import list_dataset_files
from trainers.dataset.report import Remark


def test_captions_are_read_as_utf8_with_or_without_a_bom_and_keep_their_lines(tmp_path):
    write_photo(tmp_path / "a.png").with_suffix(".txt").write_bytes("\ufeffun  café,\r\n\n à côté\n".encode())
    assert scan(tmp_path).images[0].caption == "un café,\nà côté"


def test_the_caption_file_extension_can_be_in_capitals(tmp_path):
    write_photo(tmp_path / "A.PNG", caption=None)
    (tmp_path / "A.TXT").write_text("a caption")
    assert scan(tmp_path).images[0].caption == "a caption"


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_metadata_jsonl_gives_captions_to_images_without_a_caption_file(tmp_path, key):
    write_photo(tmp_path / "a.png", caption=None)
    write_photo(tmp_path / "b.png", colour=(1, 0, 0), caption="from txt")
    write_photo(tmp_path / "sub" / "c.png", colour=(2, 0, 0), caption=None)
    lines = [{"file_name": name, key: f"metadata of {name}"} for name in ("a.png", "b.png", "sub/c.png", "gone.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    dataset = scan(tmp_path, recursive=True, trigger_word="zwx", fallback_caption="a thing")
    assert [image.caption for image in dataset.images] == [
        "zwx, metadata of a.png",
        "zwx, from txt",
        "zwx, metadata of sub/c.png",
    ]
    assert dataset.report.notes == [Remark("metadata.jsonl", "1 line of no image that is read: gone.png")]


def test_metadata_next_to_an_image_comes_before_that_of_the_whole_folder(tmp_path):
    write_photo(tmp_path / "a.png", colour=(1, 0, 0))
    write_photo(tmp_path / "sub" / "b.png", caption=None)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "sub/b.png", "text": "far"}')
    (tmp_path / "sub" / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "near"}')
    assert scan(tmp_path, recursive=True).images[1].caption == "near"


def test_useless_lines_of_metadata_are_reported(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    lines = [
        "no json",
        "",
        "[1]",
        '{"file_name": "a.png", "text": 5}',
        '{"text": "x"}',
        '{"file_name": "a.png", "text": "a toy"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    dataset = scan(tmp_path)
    assert dataset.images[0].caption == "a toy"
    assert dataset.report.notes == [
        Remark(
            "metadata.jsonl",
            "line 1, 3, 4, 5: not a JSON object with file_name and one of text, caption, prompt; ignored",
        )
    ]


@pytest.mark.parametrize(
    "name", ["sub\\\\a.png", "sub/a.jpg", "sub/a", r"C:\\\\photos\\\\a.png", "/home/me/photos/a.webp"]
)
def test_metadata_may_name_an_image_as_another_machine_does(tmp_path, name):
    write_photo(tmp_path / "sub" / "a.png", caption=None)
    place = tmp_path if name.startswith("sub") else tmp_path / "sub"
    (place / "metadata.jsonl").write_text(f'{{"file_name": "{name}", "text": "a toy"}}')
    dataset = scan(tmp_path, recursive=True)
    assert dataset.images[0].caption == "a toy" and dataset.report.notes == []


@pytest.mark.parametrize("name", ["metadata.csv", "captions.csv"])
@pytest.mark.parametrize(
    "table",
    [
        'file_name,text\na.png,"a cat, on grass"\nb.png,a dog\n',
        "\ufeffcaption;image\r\na cat, on grass;a.png\r\na dog;b.png\r\n",
        'a.png,"a cat, on grass"\nb.png,a dog\n',
        "a.png\ta cat, on grass\nb.png\ta dog\n",
    ],
    ids=["header", "semicolons", "no header", "tabs"],
)
def test_a_table_gives_captions(tmp_path, name, table):
    write_photo(tmp_path / "a.png", caption=None)
    write_photo(tmp_path / "b.png", colour=(1, 0, 0), caption=None)
    (tmp_path / name).write_text(table, encoding="utf-8", newline="")
    dataset = scan(tmp_path)
    assert [image.caption for image in dataset.images] == ["a cat, on grass", "a dog"]
    assert dataset.report.notes == []
    assert tmp_path / name in list_dataset_files(tmp_path, recursive=False).read


def test_lines_of_a_table_that_say_nothing_or_belong_to_no_image_are_named(tmp_path):
    write_photo(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("file_name,text\na.png\nb.png,a dog\n")
    assert scan(tmp_path).report.notes == [
        Remark("captions.csv", "line 2: not the columns file_name and text; ignored"),
        Remark("captions.csv", "1 line of no image that is read: b.png"),
    ]


def test_a_caption_file_may_be_named_like_the_whole_name_of_its_image(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    (tmp_path / "a.png.txt").write_text("a toy")
    dataset = scan(tmp_path)
    assert dataset.images[0].caption == "a toy" and dataset.report.notes == []
    assert tmp_path / "a.png.txt" in list_dataset_files(tmp_path, recursive=False).read


def test_caption_files_of_no_image_and_files_that_are_not_read_are_named(tmp_path):
    write_photo(tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("of a deleted image")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a-masklabel.txt").write_text("of a mask")
    notes = {note.name: note.reason for note in scan(tmp_path).report.notes}
    assert notes == {
        "b.txt": "it belongs to no image. Name a caption like its image, such as a.txt for a.png",
        "a.json": "such files are not read. Captions are .txt, .caption, metadata.jsonl, metadata.csv, captions.csv",
    }


def test_of_many_caption_files_without_an_image_ten_are_named_and_the_rest_counted(tmp_path):
    write_photo(tmp_path / "a.png")
    for number in range(30):
        (tmp_path / f"z{number:02}.txt").write_text("x")
    notes = scan(tmp_path).report.notes
    assert len(notes) == 11 and notes[-1].reason.startswith("it and 19 more files: it belongs to no image")


def test_a_caption_of_4_mb_is_an_error_for_its_image_and_is_not_read(tmp_path):
    write_photo(tmp_path / "a.png").with_suffix(".txt").write_text("word " * 800_000)
    write_photo(tmp_path / "b.png", colour=(1, 0, 0))
    assert list_reasons(scan(tmp_path)) == {
        "a.png": "its caption a.txt cannot be used: it has more than 256 KB, which is no caption. Shorten it"
    }


def test_deep_or_broken_json_is_a_useless_line(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    lines = ["[" * 100_000, r'{"file_name": "a.png", "text": "\ud800"}', '{"file_name": "a.png", "text": "a toy"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    dataset = scan(tmp_path)
    assert dataset.images[0].caption == "a toy"
    assert dataset.report.notes[0].reason.startswith("line 1, 2: not a JSON object")


def test_metadata_in_an_unknown_encoding_is_an_error(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "\xfd\xff\x81\x8d\x90\xfe"}')
    with pytest.raises(ValueError, match=r"metadata\.jsonl: it is neither UTF-8 nor .*\. Save it as UTF-8"):
        scan(tmp_path)
