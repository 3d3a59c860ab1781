"""Scanning a folder: which images are used, which captions they get, and the report."""

import json

import pytest
from PIL import features

from tests.unit.dataset.folders import list_reasons, scan, write_photo
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.report import NO_CAPTION, Remark, RemarkKind
from trainers.dataset.scan import scan_folder


def test_all_formats_are_read_in_natural_order_whatever_their_case(tmp_path):
    names = ["2.png", "10.PNG", "3.jpg", "4.JPEG", "5.webp", "6.bmp"] + (["7.avif"] if features.check("avif") else [])
    for i, name in enumerate(names):
        write_photo(tmp_path / name, colour=(i, 0, 0))
    (tmp_path / "notes.md").write_text("not an image")
    write_photo(tmp_path / "._2.png")
    write_photo(tmp_path / ".hidden.png")
    expected = [
        "2.png",
        "3.jpg",
        "4.JPEG",
        "5.webp",
        "6.bmp",
        *(["7.avif"] if features.check("avif") else []),
        "10.PNG",
    ]
    assert [image.name for image in scan(tmp_path).images] == expected


def test_subfolders_are_read_only_on_request(tmp_path):
    write_photo(tmp_path / "a.png")
    write_photo(tmp_path / "sub" / "b.png", colour=(1, 1, 1))
    assert [image.name for image in scan(tmp_path).images] == ["a.png"]
    assert [image.name for image in scan(tmp_path, recursive=True).images] == ["a.png", "sub/b.png"]


def test_hidden_folders_and_unfinished_files_are_ignored(tmp_path):
    write_photo(tmp_path / "a.png")
    write_photo(tmp_path / ".thumbnails" / "b.png")
    (tmp_path / ".c.png.x7.tmp").write_bytes(b"")
    dataset = scan(tmp_path, recursive=True)
    assert [image.name for image in dataset.images] == ["a.png"] and dataset.report.left_out == []


def test_captions_come_from_txt_then_caption_then_the_fallback(tmp_path):
    write_photo(tmp_path / "a.png", caption="from txt").with_suffix(".caption").write_text("from caption")
    write_photo(tmp_path / "b.png", caption=None, colour=(1, 0, 0)).with_suffix(".caption").write_text("from caption")
    write_photo(tmp_path / "c.png", caption=None, colour=(2, 0, 0))
    write_photo(tmp_path / "d.png", caption="  \n", colour=(3, 0, 0))
    write_photo(tmp_path / "e.png", caption="  \n", colour=(4, 0, 0)).with_suffix(".caption").write_text("from caption")
    dataset = scan(tmp_path, fallback_caption="a thing")
    assert [image.caption for image in dataset.images] == [
        "from txt",
        "from caption",
        "a thing",
        "a thing",
        "from caption",
    ]
    assert [note.name for note in dataset.report.notes] == ["c.png", "d.png"]


def test_the_trigger_word_alone_is_the_caption_of_last_resort(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    dataset = scan(tmp_path, trigger_word="zwx")
    assert dataset.images[0].caption == "zwx"
    assert dataset.report.notes[0].reason == "no caption file, or an empty one; the trigger word alone is used"


def test_an_image_without_a_caption_stays_for_a_captioner_and_is_reported(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    write_photo(tmp_path / "b.png", colour=(1, 0, 0))
    dataset = scan(tmp_path)
    assert [image.caption for image in dataset.images] == ["", "a caption"] and list_reasons(dataset) == {}
    assert dataset.report.notes == [Remark("a.png", NO_CAPTION, RemarkKind.NO_CAPTION)]


def test_an_image_without_a_caption_is_left_out_of_training(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    write_photo(tmp_path / "b.png", size_wh=(64, 64))
    plan = plan_crops(scan(tmp_path), BucketConfig(resolution=64), seed=0)
    assert [item.image.name for item in plan.items] == ["b.png"] and plan.report.num_kept == 1
    why = "no caption. Write one, set trigger_word, or connect Florence-2 Caption (LoRA Trainer)"
    assert plan.report.left_out == [Remark("a.png", why, RemarkKind.NO_CAPTION)] and plan.report.notes == []
    with pytest.raises(ValueError, match=r"strict is on and 1 image cannot be used: a\.png: no caption"):
        plan_crops(scan(tmp_path, strict=True), BucketConfig(resolution=64), seed=0)


def test_images_without_a_caption_are_told_once(tmp_path):
    for i in range(12):
        write_photo(tmp_path / f"{i}.png", colour=(i, 0, 0), caption=None)
    why = "no caption. Write one, set trigger_word, or connect Florence-2 Caption (LoRA Trainer)"
    line = f"0.png, 1.png, 2.png, 3.png, 4.png and 7 more: {why}"
    dataset = scan(tmp_path)
    assert dataset.report.text() == f"12 images kept, 0 left out\nNotes:\n  {line}\n"
    with pytest.raises(ValueError) as raised:
        plan_crops(dataset, BucketConfig(resolution=64), seed=0)
    assert str(raised.value) == f"{tmp_path.name}: no usable image among 12: {line}"


@pytest.mark.parametrize("mark", ["[trigger]", "<lora:style:0.8>", "|||", "(red:1.3)"])
def test_marks_of_other_programs_are_named(tmp_path, mark):
    write_photo(tmp_path / "a.png", caption=f"a toy {mark} on grass")
    write_photo(tmp_path / "b.png", colour=(1, 0, 0), caption="a toy (red) [blue], 1:2")
    reason = f"its caption has {mark}, which other programs replace. Here it is trained as it is: replace or remove it"
    assert scan(tmp_path).report.notes == [Remark("a.png", reason)]


def test_copies_are_left_out_unless_the_user_keeps_them(tmp_path):
    write_photo(tmp_path / "a.png")
    write_photo(tmp_path / "b.png")
    assert list_reasons(scan(tmp_path)) == {"b.png": "it is the same file as a.png"}
    assert len(scan(tmp_path, keep_duplicates=True).images) == 2


def test_the_copy_with_a_caption_is_kept(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    write_photo(tmp_path / "b.png")
    dataset = scan(tmp_path)
    assert [image.name for image in dataset.images] == ["b.png"] and list_reasons(dataset) == {
        "a.png": "it is the same file as b.png"
    }
    assert dataset.report.notes == []


def test_the_report_becomes_text_and_json(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    write_photo(tmp_path / "b.png", caption=None)
    report = scan(tmp_path, trigger_word="zwx").report
    note = "no caption file, or an empty one; the trigger word alone is used"
    assert (
        report.text()
        == f"1 image kept, 1 left out\nLeft out:\n  b.png: it is the same file as a.png\nNotes:\n  a.png: {note}\n"
    )
    assert json.loads(json.dumps(report.to_dict())) == {
        "num_kept": 1,
        "left_out": [{"name": "b.png", "reason": "it is the same file as a.png", "kind": "same_file"}],
        "notes": [{"name": "a.png", "reason": note, "kind": "stand_in_caption"}],
        "buckets": {},
        "summary": [],
    }


def test_an_invalid_colour_is_an_error():
    with pytest.raises(ValueError, match="alpha_background must be a colour such as white or #ffffff, got 'nocolour'"):
        DatasetConfig(images="x", alpha_background="nocolour")


def test_regularization_images_with_a_trigger_word_are_an_error():
    with pytest.raises(ValueError, match="regularization images must not have a trigger word, got 'zwx'"):
        DatasetConfig(images="x", is_regularization=True, trigger_word="zwx")


def test_a_scan_can_be_cancelled_between_two_images(tmp_path):
    write_photo(tmp_path / "a.png")
    write_photo(tmp_path / "b.png")
    seen = []

    def check():
        if seen:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_folder(
            DatasetConfig(images=str(tmp_path)),
            check_interrupted=check,
            on_progress=lambda count, total, name: seen.append((count, total, name)),
        )
    assert seen == [(1, 2, "a.png")]
