"""Subfolders that a scan does not read: links, and folders of the system."""

import pytest

from tests.unit.dataset.folders import scan, write_photo
from trainers.dataset.folder_walk import ENTRIES_BETWEEN_CHECKS
from trainers.dataset.image_folder import list_images
from trainers.dataset.report import Remark


@pytest.mark.parametrize("name", ["@eaDir/a.png", "#recycle", "$RECYCLE.BIN", "System Volume Information"])
def test_thumbnails_and_deleted_files_are_not_images(tmp_path, name):
    write_photo(tmp_path / "a.png")
    write_photo(tmp_path / "sub" / "b.png", colour=(1, 0, 0))
    write_photo(tmp_path / name / "thumbnail.png", colour=(2, 0, 0))
    write_photo(tmp_path / "sub" / name / "thumbnail.png", colour=(3, 0, 0))
    dataset = scan(tmp_path, recursive=True)
    assert [image.name for image in dataset.images] == ["a.png", "sub/b.png"]
    why = "not read (and 1 folder like it): thumbnails or deleted files that the system keeps"
    assert dataset.report.notes == [Remark(name.partition("/")[0], why)]


def test_a_link_to_a_folder_is_named_and_not_followed(tmp_path):
    write_photo(tmp_path / "images" / "a.png")
    write_photo(tmp_path / "elsewhere" / "b.png", colour=(1, 0, 0))
    try:
        (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "images" / "loop").symlink_to(tmp_path / "images", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    why = "a link to a folder is not followed. To use its images, load that folder too and join both"
    for recursive in (False, True):
        dataset = scan(tmp_path / "images", recursive=recursive)
        assert [image.name for image in dataset.images] == ["a.png"]
        assert dataset.report.notes == [Remark("loop", why), Remark("more", why)]


def test_a_linked_kohya_folder_is_read(tmp_path):
    write_photo(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "images").mkdir()
    try:
        (tmp_path / "images" / "3_dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    assert [(image.name, image.num_repeats) for image in scan(tmp_path / "images").images] == [("3_dog/a.png", 3)]


def test_a_folder_of_many_other_files_can_be_cancelled(tmp_path):
    write_photo(tmp_path / "a.png")
    for number in range(2 * ENTRIES_BETWEEN_CHECKS):
        (tmp_path / f"{number}.dat").touch()
    calls = []
    list_images(tmp_path, recursive=False, check_interrupted=lambda: calls.append(1))
    assert len(calls) >= 3
