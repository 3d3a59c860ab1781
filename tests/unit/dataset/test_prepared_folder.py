"""Writing a folder of images as they are trained."""

import pytest
from PIL import Image

from tests.unit.dataset.folders import scan_with_trigger_word
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_pixels import read_crop
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.prepared_folder import write_prepared_folder


def test_a_prepared_folder_has_the_cropped_images_and_their_captions(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.jpg"):
        Image.new("RGB", (80, 70), "red" if name == "a.png" else "blue").save(tmp_path / "in" / name)
    plan = plan_crops(
        scan_with_trigger_word(tmp_path / "in", recursive=True, num_repeats=3), BucketConfig(resolution=64), seed=0
    )
    write_prepared_folder(plan, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_a.png", "1_a.txt", "2_a.png", "2_a.txt"]
    assert Image.open(tmp_path / "out" / "1_a.png").size == (64, 64)
    assert (tmp_path / "out" / "2_a.txt").read_text() == "zwx\n"
    with pytest.raises(FileExistsError, match=r"is not empty\. Give a new folder"):
        write_prepared_folder(plan, tmp_path / "out")
    with pytest.raises(NotADirectoryError, match=r"is a file\. Give a new folder"):
        write_prepared_folder(plan, tmp_path / "in" / "a.png")


def test_a_prepared_folder_is_a_dataset_that_needs_no_more_cropping(tmp_path):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = Image.new("RGBA", (96, 64), (200, 0, 0, 128))
    rgba.save(tmp_path / "in" / ("name" * 30 + ".png"), exif=exif)
    (item,) = plan_crops(scan_with_trigger_word(tmp_path / "in"), BucketConfig(resolution=64), seed=0).items
    write_prepared_folder(
        plan_crops(scan_with_trigger_word(tmp_path / "in"), BucketConfig(resolution=64), seed=0), tmp_path / "out"
    )
    (again,) = plan_crops(scan_with_trigger_word(tmp_path / "out"), BucketConfig(resolution=64), seed=0).items
    assert (again.image.size_hw, again.image.caption, again.image.has_alpha) == ((64, 64), "zwx", False)
    assert read_crop(again).tobytes() == read_crop(item).tobytes()


def test_a_prepared_folder_has_every_random_crop(tmp_path):
    (tmp_path / "in").mkdir()
    Image.linear_gradient("L").resize((300, 64)).save(tmp_path / "in" / "a.png")
    plan = plan_crops(
        scan_with_trigger_word(tmp_path / "in", num_repeats=3),
        BucketConfig(resolution=64, resize_mode="random_crop"),
        seed=0,
    )
    write_prepared_folder(plan, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_a_cancelled_prepared_folder_has_only_complete_files(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    plan = plan_crops(scan_with_trigger_word(tmp_path / "in"), BucketConfig(resolution=64), seed=0)
    checks = iter([False, True])

    def check():
        if next(checks):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prepared_folder(plan, tmp_path / "out", check_interrupted=check)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_0.png", "1_0.txt"]
