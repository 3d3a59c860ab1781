"""Crops around the white part of a mask."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.unit.dataset.folders import scan_with_trigger_word
from tests.unit.dataset.imagined import make_dataset
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_pixels import read_crop, read_mask_crop
from trainers.dataset.crop_plan import CropPlan, plan_crops
from trainers.dataset.subject_crop import choose_window, find_subject

CORNERS = {
    "top left": (0, 0, 40, 30),
    "top right": (360, 0, 400, 30),
    "bottom left": (0, 270, 40, 300),
    "bottom right": (360, 270, 400, 300),
    "middle": (190, 130, 230, 170),
}
MODES = [("center", "center_crop"), ("center", "bucket"), ("zoom", "center_crop"), ("zoom", "bucket")]


def write_subject(folder, box, *, size_wh=(400, 300), mask_wh=None) -> None:
    """A red image with a blue subject, and its mask."""
    photo, mask = Image.new("RGB", size_wh, "red"), Image.new("L", size_wh)
    photo.paste((0, 0, 255), box)
    mask.paste(255, box)
    photo.save(folder / "a.png")
    mask.resize(mask_wh or size_wh).save(folder / "a-masklabel.png")


def plan(folder, **settings) -> CropPlan:
    return plan_crops(
        scan_with_trigger_word(folder), BucketConfig(resolution=128, bucket_reso_steps=32, **settings), seed=0
    )


def count_blue(image: Image.Image) -> int:
    return int((np.asarray(image)[..., 2] > 128).sum())


def test_the_subject_is_the_box_around_what_is_white():
    mask = Image.new("L", (100, 50))
    mask.paste(127, (0, 0, 100, 10))
    mask.paste(128, (10, 20, 30, 25))
    mask.paste(255, (60, 30, 61, 40))
    assert find_subject(mask, (50, 100)) == (10, 20, 61, 40)
    assert find_subject(mask, (100, 200)) == (20, 40, 122, 80)
    assert find_subject(Image.new("L", (9, 9), 127), (9, 9)) is None


@pytest.mark.parametrize("box", CORNERS.values(), ids=CORNERS)
@pytest.mark.parametrize(("crop_to_subject", "resize_mode"), MODES)
def test_the_crop_shows_the_whole_subject(tmp_path, box, crop_to_subject, resize_mode):
    write_subject(tmp_path, box)
    (item,) = plan(tmp_path, crop_to_subject=crop_to_subject, resize_mode=resize_mode).items
    assert item.image.subject_box == box
    shown, mask = read_crop(item), read_mask_crop(item)
    assert mask is not None and shown.size == mask.size == (item.crop.target_hw[1], item.crop.target_hw[0])
    scale = item.crop.resized_hw[0] / 300
    whole = (box[2] - box[0]) * (box[3] - box[1]) * scale**2
    assert count_blue(shown) == pytest.approx(whole, rel=0.12)
    assert (np.asarray(mask) > 127).sum() == pytest.approx(whole, rel=0.12)
    if box == CORNERS["middle"] and (crop_to_subject, resize_mode) != ("center", "bucket"):  # no room to move there
        left, top, right, bottom = mask.point([255 * (value > 127) for value in range(256)]).getbbox() or (0, 0, 0, 0)
        assert abs(left + right - mask.width) <= 3 and abs(top + bottom - mask.height) <= 3


def test_without_it_a_square_misses_a_subject_in_the_corner(tmp_path):
    write_subject(tmp_path, CORNERS["top right"])
    (item,) = plan(tmp_path, resize_mode="center_crop").items
    assert count_blue(read_crop(item)) == 0


def test_center_only_moves_the_crop(tmp_path):
    write_subject(tmp_path, CORNERS["top right"])
    (usual,) = plan(tmp_path, resize_mode="center_crop").items
    (moved,) = plan(tmp_path, resize_mode="center_crop", crop_to_subject="center").items
    height, width = usual.crop.resized_hw
    assert moved.crop == replace(usual.crop, top_left_yx=(0, width - 128)) and height == 128


def test_zoom_cuts_down_to_the_subject_and_its_margin(tmp_path):
    """200 x 200 with a margin of a tenth: 240 of the image's pixels become 128."""
    write_subject(tmp_path, (1000, 700, 1200, 900), size_wh=(1600, 1200))
    (item,) = plan(tmp_path, crop_to_subject="zoom", subject_margin=0.1, resize_mode="center_crop").items
    assert item.crop.resized_hw == (1200 * 128 / 240, round(1600 * 128 / 240))
    assert item.crop.top_left_yx == (round(800 * 640 / 1200 - 64), round(1100 * 853 / 1600 - 64))
    (wide,) = plan(tmp_path, crop_to_subject="zoom", subject_margin=0.5, resize_mode="center_crop").items
    assert wide.crop.resized_hw[0] == round(1200 * 128 / 400)


def test_zoom_chooses_the_bucket_by_the_subjects_shape(tmp_path):
    write_subject(tmp_path, (600, 200, 800, 1000), size_wh=(1600, 1200))
    (usual,) = plan(tmp_path).items
    (item,) = plan(tmp_path, crop_to_subject="zoom", subject_margin=0.0).items
    assert usual.crop.target_hw[0] < usual.crop.target_hw[1] and item.crop.target_hw == (256, 64)
    assert count_blue(read_crop(item)) == pytest.approx(256 * 64, rel=0.02)


def test_zoom_keeps_as_many_pixels_as_the_resolution_needs(tmp_path):
    """The subject is tiny: what is cut out is grown to 128 x 128 rather than enlarged."""
    write_subject(tmp_path, (380, 10, 390, 20))
    (item,) = plan(tmp_path, crop_to_subject="zoom").items
    assert item.crop.resized_hw == (300, 400) and item.crop.target_hw == (128, 128)
    assert item.crop.top_left_yx == (0, 400 - 128) and count_blue(read_crop(item)) == 100


def test_a_window_that_meets_the_edge_grows_along_the_other_side():
    config = BucketConfig(crop_to_subject="zoom", subject_margin=0.0)
    assert choose_window((600, 4000), (0, 0, 300, 300), config) == (600, 1748)
    assert choose_window((600, 1000), (0, 0, 300, 300), config) == (600, 1000)
    assert choose_window((3000, 4000), (0, 0, 2000, 1500), config) == (1500, 2000)
    assert choose_window((3000, 4000), (0, 0, 2000, 1500), replace(config, resize_mode="center_crop")) == (2000, 2000)
    assert choose_window((600, 4000), None, config) == (600, 4000)
    assert choose_window((600, 4000), (0, 0, 9, 9), replace(config, crop_to_subject="center")) == (600, 4000)


def test_random_crops_are_wherever_they_show_the_subject(tmp_path):
    write_subject(tmp_path, (300, 100, 340, 140))
    dataset = scan_with_trigger_word(tmp_path, num_repeats=20)
    config = BucketConfig(resolution=128, resize_mode="random_crop", crop_to_subject="zoom", subject_margin=0.0)
    items = plan_crops(dataset, config, seed=0).items
    assert len({item.crop.top_left_yx for item in items}) > 15
    assert {count_blue(read_crop(item)) for item in items} == {40 * 40}


def test_a_subject_larger_than_the_crop_is_in_its_middle(tmp_path):
    write_subject(tmp_path, (100, 0, 400, 300))
    (item,) = plan(tmp_path, crop_to_subject="center", resize_mode="center_crop").items
    (top, left), (_, width) = item.crop.top_left_yx, item.crop.resized_hw
    assert (top, left) == (0, round(width * 250 / 400 - 64))


def test_a_mask_of_another_size_and_an_alpha_channel_count_too(tmp_path):
    write_subject(tmp_path, (360, 0, 400, 30), mask_wh=(200, 150))
    (image,) = scan_with_trigger_word(tmp_path).images
    assert image.subject_box is not None and np.abs(np.subtract(image.subject_box, (360, 0, 400, 30))).max() <= 2
    photo = Image.open(tmp_path / "a.png").convert("RGB")
    photo.putalpha(Image.open(tmp_path / "a-masklabel.png").resize((400, 300), Image.Resampling.NEAREST))
    photo.save(tmp_path / "a.png")
    (image,) = scan_with_trigger_word(tmp_path, mask_source="alpha").images
    assert image.subject_box == (360, 0, 400, 30)
    assert scan_with_trigger_word(tmp_path, mask_source="off").images[0].subject_box is None


def test_images_without_a_mask_are_cropped_as_usual_and_named():
    dataset = make_dataset((1500, 1100), (1500, 1100))
    dataset = replace(dataset, images=[replace(dataset.images[0], subject_box=(0, 0, 200, 200)), dataset.images[1]])
    config = BucketConfig(crop_to_subject="center", resize_mode="center_crop")
    plan = plan_crops(dataset, config, seed=0)
    (usual,) = {item.crop for item in plan_crops(dataset, replace(config, crop_to_subject="off"), seed=0).items}
    assert plan.items[0].crop.top_left_yx == (0, 0) and plan.items[1].crop == usual
    assert [(note.name, note.reason) for note in plan.report.notes] == [
        ("1.png", "no mask with white in it, so crop_to_subject center does not change its crop")
    ]


@pytest.mark.parametrize("angle", [5.0, -5.0])
def test_a_subject_with_room_around_it_is_whole_in_turned_copies(tmp_path, angle):
    write_subject(tmp_path, (300, 100, 340, 140))
    config = {"crop_to_subject": "zoom", "rotation_aug": abs(angle), "num_augmented_variants": 5}
    (item,) = plan(tmp_path, **config).items
    for turned in item.variants:
        zoom = turned.crop.resized_hw[0] / 300
        assert turned.crop.angle and count_blue(read_crop(turned)) == pytest.approx(1600 * zoom**2, rel=0.06)
