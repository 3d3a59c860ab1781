"""Datasets with captions from other sources."""

from dataclasses import replace

import pytest

from tests.unit.dataset.folders import scan, write_photo
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.report import Remark


def test_captions_from_elsewhere_get_the_trigger_word_and_empty_ones_stay_empty(tmp_path):
    for i in range(3):
        write_photo(tmp_path / f"{i}.png", colour=(i, 0, 0), caption=None)
    dataset = scan(tmp_path, trigger_word="zwx").with_captions(["a toy", "", "the ZWX\n two  lines "])
    assert [image.caption for image in dataset.images] == ["zwx, a toy", "", "the ZWX\nzwx, two lines"]
    assert dataset.report.notes == []
    with pytest.raises(ValueError, match=r"3 images, but 1 caption\. Give one caption per image, in the same order"):
        dataset.with_captions(["a toy"])


def test_a_note_about_a_missing_caption_goes_when_a_caption_comes_and_other_notes_stay(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    write_photo(tmp_path / "b.png", caption=None, colour=(1, 0, 0))
    dataset = scan(tmp_path)
    assert [note.name for note in dataset.with_captions(["a toy", ""]).report.notes] == ["b.png"]
    write_photo(tmp_path / "c.png", colour=(2, 0, 0)).with_suffix(".txt").write_bytes("café".encode("cp1252"))
    notes = scan(tmp_path).with_captions(["x", "y", "z"]).report.notes
    assert notes == [Remark("c.png", "c.txt is not UTF-8; it was read as Windows-1252")]


def test_rewording_a_note_does_not_change_whether_it_stays(tmp_path):
    write_photo(tmp_path / "a.png", caption=None)
    write_photo(tmp_path / "b.png", caption=None, colour=(1, 0, 0))
    dataset = scan(tmp_path)
    notes = [replace(note, reason="other words") for note in dataset.report.notes]
    reworded = replace(dataset, report=replace(dataset.report, notes=notes))
    before, after = (each.with_captions(["a toy", ""]) for each in (dataset, reworded))
    assert [note.name for note in after.report.notes] == ["b.png"]
    plans = [plan_crops(each, BucketConfig(resolution=64), seed=0) for each in (before, after)]
    assert plans[0].report == plans[1].report
