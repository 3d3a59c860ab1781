"""kohya's N_name folders."""

from pathlib import Path

import pytest

from tests.unit.dataset.folders import scan, write_photo
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops


def make_kohya_folder(root: Path) -> Path:
    write_photo(root / "10_zwx dog" / "a.png", colour=(1, 0, 0), caption=None)
    write_photo(root / "10_zwx dog" / "b.png", colour=(2, 0, 0), caption="a dog on grass")
    write_photo(root / "2_big_cat" / "a.png", colour=(3, 0, 0), caption=None)
    return root


def test_kohyas_folders_become_one_dataset_with_repeats_and_names_as_captions(tmp_path):
    dataset = scan(make_kohya_folder(tmp_path), num_repeats=3)
    assert [(image.name, image.num_repeats, image.caption) for image in dataset.images] == [
        ("2_big_cat/a.png", 2, "big_cat"),
        ("10_zwx dog/a.png", 10, "zwx dog"),
        ("10_zwx dog/b.png", 10, "a dog on grass"),
    ]
    assert dataset.num_training_samples == 3 * 22
    notes = {note.name: note.reason for note in dataset.report.notes}
    assert notes["10_zwx dog"] == "kohya's folder: 2 x 10 repeats, 'zwx dog' for images without a caption"
    assert notes["2_big_cat/a.png"] == "no caption file, or an empty one; the folder's 'big_cat' is used"
    assert dataset.report.summary == [f"{tmp_path.name}: 3 images, 6 to 30 repeats each"]
    items = plan_crops(dataset, BucketConfig(resolution=64), seed=0).items
    assert len(items) == 66 and sum(item.image.name == "10_zwx dog/b.png" for item in items) == 30


def test_in_kohyas_folders_a_fallback_caption_comes_before_the_folders_name(tmp_path):
    captions = [
        image.caption
        for image in scan(make_kohya_folder(tmp_path), fallback_caption="a pet", trigger_word="zwx").images
    ]
    assert captions == ["zwx, a pet", "zwx, a pet", "zwx, a dog on grass"]


def test_other_folders_next_to_kohyas_are_ignored_and_named(tmp_path):
    write_photo(make_kohya_folder(tmp_path) / "others" / "c.png", colour=(4, 0, 0))
    write_photo(tmp_path / "0_old" / "d.png", colour=(5, 0, 0))
    dataset = scan(tmp_path)
    assert len(dataset.images) == 3
    notes = {note.name: note.reason for note in dataset.report.notes}
    assert notes["others"] == "ignored: its name is not N_name like those of the folders next to it (kohya's folders)"
    assert notes["0_old"] == "kohya's folder of 0 repeats: its images are ignored"


def test_kohyas_names_mean_nothing_next_to_images_or_with_recursive(tmp_path):
    write_photo(make_kohya_folder(tmp_path / "with") / "own.png")
    assert [image.name for image in scan(tmp_path / "with").images] == ["own.png"]
    dataset = scan(make_kohya_folder(tmp_path / "without"), recursive=True, trigger_word="zwx")
    assert {image.num_repeats for image in dataset.images} == {1}
    assert "recursive is on, so the number in such folder names is not used as repeats" in dataset.report.text()


def test_an_absurd_number_of_repeats_is_an_error(tmp_path):
    write_photo(tmp_path / "20240101_trip" / "a.png")
    with pytest.raises(
        ValueError,
        match=r"20240101_trip: a kohya folder name starts with the repeats of its images, at most 10,000. Rename it",
    ):
        scan(tmp_path)
