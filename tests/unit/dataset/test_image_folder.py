"""kohya's N_name folders."""

from pathlib import Path

import pytest

from tests.unit.dataset.folders import scan, write_photo
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.image_folder import list_dataset_files
from trainers.dataset.report import Remark, RemarkKind
from trainers.training.events import Interrupted


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
    assert notes["others"] == (
        "1 image not read: of kohya's folders, only the images directly in a folder named N_name are"
    )
    assert notes["0_old"] == "kohya's folder of 0 repeats: its images are ignored"


def test_with_recursive_kohyas_names_mean_nothing(tmp_path):
    dataset = scan(make_kohya_folder(tmp_path), recursive=True, trigger_word="zwx")
    assert {image.num_repeats for image in dataset.images} == {1}
    assert "recursive is on, so the number in such folder names is not used as repeats" in dataset.report.text()


def test_a_stray_image_next_to_kohyas_folders_is_left_out_by_name_and_the_folders_are_read(tmp_path):
    write_photo(make_kohya_folder(tmp_path) / "preview.png", colour=(9, 9, 9))
    dataset = scan(tmp_path)
    assert [image.name for image in dataset.images] == ["2_big_cat/a.png", "10_zwx dog/a.png", "10_zwx dog/b.png"]
    assert dataset.report.left_out == [
        Remark(
            "preview.png",
            "it is next to kohya's folders, of which only those named N_name are read. Move it into one of them",
            RemarkKind.OUTSIDE_KOHYAS_FOLDERS,
        )
    ]
    with pytest.raises(
        ValueError, match=r"strict is on and 1 image cannot be used: preview\.png: it is next to kohya's"
    ):
        scan(tmp_path, strict=True)


def project_folder(root: Path) -> Path:
    """Make kohya's project folder, as his graphical interface prepares it."""
    write_photo(root / "img" / "10_zwx dog" / "a.png", colour=(1, 0, 0), caption=None)
    write_photo(root / "img" / "10_zwx dog" / "old" / "b.png", colour=(2, 0, 0), caption=None)
    write_photo(root / "reg" / "2_dog" / "c.png", colour=(3, 0, 0), caption=None)
    write_photo(root / "model" / "sample" / "d.png", colour=(4, 0, 0), caption=None)
    (root / "log").mkdir()
    return root


@pytest.mark.parametrize("recursive", [False, True])
def test_of_kohyas_project_folder_only_img_is_the_subject_and_reg_is_regularization(tmp_path, recursive):
    dataset = scan(project_folder(tmp_path), trigger_word="zwx", fallback_caption="a zwx dog", recursive=recursive)
    assert [
        (image.name, image.num_repeats, image.caption, image.is_regularization, image.subset)
        for image in dataset.images
    ] == [
        ("img/10_zwx dog/a.png", 10, "a zwx dog", False, "10_zwx dog"),
        ("reg/2_dog/c.png", 2, "dog", True, "2_dog"),
    ]
    assert [dataset.get_trigger_word(image) for image in dataset.images] == ["zwx", ""]
    assert dataset.num_training_samples == 10
    notes = {note.name: note.reason for note in dataset.report.notes}
    assert notes["reg/2_dog"] == (
        "kohya's folder: 1 x 2 repeats, 'dog' for images without a caption; regularization images, as they are in a "
        "folder reg"
    )
    unread = "1 image not read: of kohya's folders, only the images directly in a folder named N_name are"
    assert notes["img/10_zwx dog/old"] == notes["model/sample"] == unread
    assert dataset.report.summary == [f"{tmp_path.name}: 1 image, 1 regularization image, 2 to 10 repeats each"]
    assert ("it is read as such" in dataset.report.text()) == recursive


def test_a_stray_image_in_kohyas_project_folder_is_left_out_by_name(tmp_path):
    write_photo(project_folder(tmp_path) / "cover.png", colour=(9, 9, 9))
    dataset = scan(tmp_path)
    assert len(dataset.images) == 2 and [remark.name for remark in dataset.report.left_out] == ["cover.png"]


def test_kohyas_folders_are_found_at_any_depth_but_not_inside_each_other(tmp_path):
    write_photo(tmp_path / "projects" / "dogs" / "3_dog" / "a.png", colour=(1, 0, 0))
    write_photo(tmp_path / "projects" / "dogs" / "3_dog" / "5_close" / "b.png", colour=(2, 0, 0))
    write_photo(tmp_path / "projects" / "cats" / "4_cat" / "c.png", colour=(3, 0, 0))
    dataset = scan(tmp_path)
    assert [(image.name, image.num_repeats) for image in dataset.images] == [
        ("projects/cats/4_cat/c.png", 4),
        ("projects/dogs/3_dog/a.png", 3),
    ]
    assert [note.name for note in dataset.report.notes][-1] == "projects/dogs/3_dog/5_close"


def test_subfolders_that_are_not_read_are_named_with_the_number_of_their_images(tmp_path):
    write_photo(tmp_path / "a.png")
    for i in range(3):
        write_photo(tmp_path / "more" / "deep" / f"{i}.png", colour=(i, 1, 0))
    write_photo(tmp_path / "old" / "7_dog" / "b.png", colour=(9, 0, 0))
    write_photo(tmp_path / "mask" / "a.png", caption=None)
    dataset = scan(tmp_path)
    assert [image.name for image in dataset.images] == ["a.png"]
    assert dataset.report.notes == [
        Remark("more", "3 images not read: turn recursive on to use the images in subfolders"),
        Remark("old", "1 image not read: turn recursive on to use the images in subfolders"),
    ]


def test_a_date_next_to_images_is_not_a_number_of_repeats(tmp_path):
    write_photo(tmp_path / "a.png")
    write_photo(tmp_path / "20240101_trip" / "b.png", colour=(1, 0, 0))
    dataset = scan(tmp_path)
    assert [image.name for image in dataset.images] == ["a.png"]
    assert [note.name for note in dataset.report.notes] == ["20240101_trip"]


def test_an_absurd_number_of_repeats_is_an_error(tmp_path):
    write_photo(tmp_path / "20240101_trip" / "a.png")
    with pytest.raises(
        ValueError,
        match=r"20240101_trip: a kohya folder name starts with the repeats of its images, at most 10,000. Rename it",
    ):
        scan(tmp_path)


def test_what_the_report_says_of_other_files_is_known_without_a_scan(tmp_path):
    """Load Images runs again when it changes."""
    folder = make_kohya_folder(tmp_path)

    def remark() -> set[tuple[str, str]]:
        return {(remark.name, remark.reason) for remark in list_dataset_files(folder, recursive=False).remarks}

    seen = [remark()]
    for name in ("stray.png", "10_zwx dog/lost.txt", "10_zwx dog/mask/lost.png", "more/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        seen.append(remark())
        assert seen[-1] not in seen[:-1], name
    (folder / "10_zwx dog" / "notes.md").write_text("no caption")
    assert remark() == seen[-1]


def test_listing_a_folder_can_be_interrupted(tmp_path):
    with pytest.raises(Interrupted):
        list_dataset_files(make_kohya_folder(tmp_path), recursive=True, check_interrupted=interrupt)


def interrupt() -> None:
    raise Interrupted("cancelled")
