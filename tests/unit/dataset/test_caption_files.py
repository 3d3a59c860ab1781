"""Captions from text files and from metadata.jsonl."""

import json

import pytest

from tests.unit.dataset.folders import scan, write_photo
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
    assert dataset.report.notes == []


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
