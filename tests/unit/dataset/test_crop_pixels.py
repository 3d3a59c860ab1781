"""The pixels of crops and of their masks."""

import numpy as np
import pytest
from PIL import Image

from tests.unit.dataset.folders import scan_with_trigger_word
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop import make_crop
from trainers.dataset.crop_pixels import read_crop, read_mask_crop
from trainers.dataset.crop_plan import TrainingItem, plan_crops


def test_a_crop_has_the_pixels_of_its_place(tmp_path):
    photo = Image.new("RGB", (100, 64))
    photo.paste((255, 0, 0), (18, 0, 82, 64))
    photo.save(tmp_path / "a.png")
    (image,) = scan_with_trigger_word(tmp_path).images
    cropped = read_crop(TrainingItem(0, image, 0, make_crop((64, 100), (64, 64))))
    assert cropped.size == (64, 64) and cropped.getcolors() == [(64 * 64, (255, 0, 0))]


def test_an_image_of_exactly_its_bucket_size_is_read_bit_for_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (item,) = plan_crops(
        scan_with_trigger_word(tmp_path), BucketConfig(resolution=128, bucket_reso_steps=32), seed=0
    ).items
    assert item.crop.target_hw == (96, 160)
    assert np.array_equal(np.asarray(read_crop(item)), pixels)


@pytest.mark.parametrize("mask_source", ["files", "alpha"])
def test_a_mask_is_cropped_like_its_image(tmp_path, mask_source):
    """The image is its own mask, so both crops must have the same pixels."""
    shape = Image.radial_gradient("L").resize((300, 200))
    image = Image.merge("RGB", [shape] * 3)
    if mask_source == "alpha":
        image.putalpha(shape)
    else:
        shape.save(tmp_path / "a-masklabel.png")
    image.save(tmp_path / "a.png")
    dataset = scan_with_trigger_word(tmp_path, mask_source=mask_source, alpha_background="black", num_repeats=4)
    plan = plan_crops(dataset, BucketConfig(resolution=128, bucket_reso_steps=32, resize_mode="random_crop"), seed=0)
    for item in plan.items:
        mask = read_mask_crop(item)
        assert mask is not None and mask.mode == "L" and mask.size == (128, 128)
        expected = np.asarray(read_crop(item)).astype(int)[..., 0]
        given = np.asarray(mask).astype(int)
        difference = expected - (given * given / 255 if mask_source == "alpha" else given)
        assert abs(difference).max() <= 4  # LANCZOS against BILINEAR on a gradient


def test_an_image_without_a_mask_has_no_mask_crop(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (item,) = plan_crops(scan_with_trigger_word(tmp_path), BucketConfig(resolution=64), seed=0).items
    assert read_mask_crop(item) is None


def test_a_file_that_changed_since_the_scan_is_an_error_that_names_it(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (item,) = plan_crops(scan_with_trigger_word(tmp_path), BucketConfig(resolution=64), seed=0).items
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    with pytest.raises(RuntimeError, match=r"a\.png: the file has changed since the folder was scanned\. Start again"):
        read_crop(item)
    (tmp_path / "a.png").unlink()
    with pytest.raises(RuntimeError, match=r"a\.png: it cannot be read \(No such file or directory\)"):
        read_crop(item)
