"""Changed copies of images: their colours, angles and masks, and which epoch trains which."""

import colorsys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.unit.dataset.folders import scan_with_trigger_word
from tests.unit.dataset.imagined import make_dataset
from trainers.dataset.augmentation import ColorChange, draw_augmentations
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop import make_crop, rotate_crop
from trainers.dataset.crop_pixels import read_crop, read_mask_crop
from trainers.dataset.crop_plan import plan_crops

NOTHING = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
CHANGED = BucketConfig(resolution=128, bucket_reso_steps=32, color_aug=0.2, rotation_aug=10, num_augmented_variants=3)


def make_photo(size_wh=(240, 150), *, low=0, high=256) -> Image.Image:
    """Smooth colours, so that resizing hardly changes them."""
    small = np.random.default_rng(0).integers(low, high, (5, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size_wh, Image.Resampling.BICUBIC)


def change(pixels, **change):
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    return np.asarray(ColorChange(**{**NOTHING, **change}).apply(image)).astype(float)


def test_nothing_to_change_leaves_every_pixel():
    photo = np.asarray(make_photo())
    assert np.array_equal(change(photo), photo)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_brightness_contrast_and_saturation_are_the_formulas_of_the_field(factor):
    """As torchvision and Pillow's ImageEnhance have them: a blend with black, with the mean grey,
    and with each pixel's own grey.
    """
    photo = np.asarray(make_photo(low=60, high=180)).astype(float)
    grey = photo @ [0.299, 0.587, 0.114]
    blends = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey[..., None]}
    for name, other in blends.items():
        expected = factor * photo + (1 - factor) * other
        np.testing.assert_allclose(change(photo, **{name: factor}), expected.clip(0, 255), rtol=0, atol=1.0)


@pytest.mark.parametrize("degrees", [-36.0, 20.0])
def test_the_hue_turns_and_leaves_greys_and_brightness(degrees):
    photo = np.asarray(make_photo(low=90, high=160)).astype(float)
    turned = change(photo, hue=degrees)
    luma = [0.299, 0.587, 0.114]
    np.testing.assert_allclose(turned @ luma, photo @ luma, rtol=0, atol=1.0)
    ramp = np.arange(256).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(change(ramp, hue=degrees), ramp)
    (((red, green, blue),),) = change([[[150, 100, 100]]], hue=degrees)
    hue = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)[0] * 360
    assert abs((hue + 180) % 360 - 180) == pytest.approx(abs(degrees), abs=abs(degrees) / 2)  # HSV's angle is another
    np.testing.assert_allclose(change(turned.round(), hue=-degrees), photo, rtol=0, atol=2.0)


def test_draws_stay_within_the_settings_and_depend_on_seed_and_image_only():
    config = replace(CHANGED, num_augmented_variants=100)
    drawn = list(draw_augmentations(config, seed=1, sha256="a"))
    assert list(draw_augmentations(CHANGED, seed=1, sha256="a")) == drawn[:3]
    assert not set(drawn) & {*draw_augmentations(config, seed=2, sha256="a")}
    assert not set(drawn) & {*draw_augmentations(config, seed=1, sha256="b")}
    for values, middle, reach in (
        ([each.angle for each in drawn], 0, 10),
        ([each.colors.brightness for each in drawn], 1, 0.2),
        ([each.colors.contrast for each in drawn], 1, 0.2),
        ([each.colors.saturation for each in drawn], 1, 0.2),
        ([each.colors.hue for each in drawn], 0, 7.2),
    ):
        assert max(abs(value - middle) for value in values) <= reach
        assert min(values) < middle - 0.8 * reach and max(values) > middle + 0.8 * reach


def test_one_kind_of_change_does_not_draw_another():
    only_turned = list(draw_augmentations(replace(CHANGED, color_aug=0), seed=1, sha256="a"))
    only_coloured = list(draw_augmentations(replace(CHANGED, rotation_aug=0), seed=1, sha256="a"))
    both = list(draw_augmentations(CHANGED, seed=1, sha256="a"))
    assert [each.colors for each in only_turned] == [None] * 3 and [each.angle for each in only_coloured] == [0] * 3
    assert [(t.angle, c.colors) for t, c in zip(only_turned, only_coloured, strict=True)] == [
        (each.angle, each.colors) for each in both
    ]
    assert not list(draw_augmentations(BucketConfig(), seed=1, sha256="a"))


def test_items_without_changes_are_as_they_were():
    (item,) = plan_crops(make_dataset((1024, 1024)), BucketConfig(), seed=0).items
    assert item.variants == () and item.in_epoch(1) is item.in_epoch(7) is item
    assert item.describe_pixels() == {
        "image": item.image.sha256,
        "alpha_background": None,
        "resized_hw": (1024, 1024),
        "top_left_yx": (0, 0),
        "target_hw": (1024, 1024),
    }


def test_epochs_take_turns_with_the_image_and_its_copies():
    plan = plan_crops(make_dataset((1024, 1024), (1024, 1024), num_repeats=2), replace(CHANGED, resolution=512), seed=0)
    assert len(plan.items) == 4 and len(plan.variants) == 16
    for item in plan.items:
        used = [item.in_epoch(epoch) for epoch in range(1, 9)]
        assert used[:4] == used[4:] and {id(each) for each in used} == {id(item), *map(id, item.variants)}
        assert len({str(each.describe_pixels()) for each in used}) == 4
        assert {each.index for each in used} == {item.index} and {each.crop.target_hw for each in used} == {(512, 512)}
    in_first = Counter((item.in_epoch(1).crop.angle, item.in_epoch(1).colors) for item in plan.items)
    assert len(in_first) == 4  # not all items begin with the plain image


def test_repeats_share_their_copies():
    items = plan_crops(make_dataset((1024, 1024), num_repeats=3), CHANGED, seed=0).items
    assert len({str(each.describe_pixels()) for item in items for each in (item, *item.variants)}) == 4


@pytest.mark.parametrize("angle", [-45.0, -7.0, 0.5, 12.0, 45.0])
@pytest.mark.parametrize("sizes", [((240, 150), (128, 128)), ((150, 240), (96, 160)), ((64, 300), (64, 256))])
@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_no_corner_of_a_turned_crop_is_empty(tmp_path, angle, sizes, offset):
    (height, width), target = sizes
    Image.new("RGB", (width, height), "white").save(tmp_path / "a.png")
    (item,) = plan_crops(scan_with_trigger_word(tmp_path), BucketConfig(resolution=64), seed=0).items
    crop = make_crop((height, width), target, offset=offset)
    turned = rotate_crop(crop, angle)
    assert turned.target_hw == target
    shown = read_crop(replace(item, crop=turned))
    assert shown.size == (target[1], target[0]) and shown.getextrema() == ((255, 255),) * 3
    # it is enlarged by no more than a turn takes, and shows the same place
    diagonal = (target[0] ** 2 + target[1] ** 2) ** 0.5
    assert turned.resized_hw[0] / crop.resized_hw[0] <= diagonal / min(target) + 0.1
    middle, before = (
        [
            (start + side / 2) / whole
            for start, side, whole in zip(each.top_left_yx, target, each.resized_hw, strict=True)
        ]
        for each in (turned, crop)
    )
    if offset == (0.5, 0.5):
        assert middle == pytest.approx(before, abs=0.02)


def test_a_turned_crop_is_the_image_that_pillow_turns(tmp_path):
    """Counter-clockwise about the middle."""
    photo = make_photo((200, 200))
    photo.save(tmp_path / "a.png")
    (item,) = plan_crops(scan_with_trigger_word(tmp_path), BucketConfig(resolution=64), seed=0).items
    crop = replace(make_crop((200, 200), (200, 200)), top_left_yx=(60, 60), target_hw=(80, 80), angle=10.0)
    expected = photo.rotate(10, Image.Resampling.BICUBIC).crop((60, 60, 140, 140))
    given = np.asarray(read_crop(replace(item, crop=crop))).astype(int)
    assert abs(given - np.asarray(expected).astype(int)).max() <= 1
    assert abs(given - np.asarray(photo.crop((60, 60, 140, 140))).astype(int)).max() > 20


def test_masks_turn_with_their_images_and_keep_their_colours(tmp_path):
    """The image is its own mask, so both must have the same pixels."""
    shape = make_photo().convert("L")
    shape.convert("RGB").save(tmp_path / "a.png")
    shape.save(tmp_path / "a-masklabel.png")
    dataset = scan_with_trigger_word(tmp_path)
    (plain,) = plan_crops(dataset, replace(CHANGED, color_aug=0), seed=0).items
    for item in plain.variants:
        difference = np.asarray(read_crop(item))[..., 0].astype(int) - np.asarray(read_mask_crop(item)).astype(int)
        assert abs(difference).max() <= 5 and item.crop.angle  # BICUBIC against BILINEAR
    (coloured,) = plan_crops(dataset, replace(CHANGED, rotation_aug=0), seed=0).items
    for item in coloured.variants:
        assert np.array_equal(read_mask_crop(item), read_mask_crop(coloured))
        assert not np.array_equal(read_crop(item), read_crop(coloured))


def test_images_with_control_images_are_not_changed():
    (image,) = make_dataset((1024, 1024)).images
    dataset = make_dataset((1024, 1024))
    dataset = replace(dataset, images=[replace(image, control_images=(image,))])
    with pytest.raises(ValueError, match=r"0\.png: color_aug and rotation_aug do not change control images.* Set both"):
        plan_crops(dataset, CHANGED, seed=0)
    assert plan_crops(dataset, BucketConfig(), seed=0).items
