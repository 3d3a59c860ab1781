"""The list of buckets, and the choice of one for an image."""

import re

import pytest

from tests.unit.dataset.imagined import make_dataset
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.bucket_sizes import choose_target, list_bucket_sizes
from trainers.dataset.crop_plan import plan_crops

SDXL_NATIVE_WH = [(1024, 1024), (832, 1216), (896, 1152), (768, 1344), (640, 1536)]


def target_wh(width: int, height: int, **settings) -> tuple[int, int]:
    (item,) = plan_crops(make_dataset((height, width)), BucketConfig(**settings), seed=0).items
    return item.crop.target_hw[1], item.crop.target_hw[0]


def test_the_list_has_every_size_sdxl_was_trained_at_and_never_more_area():
    sizes = list_bucket_sizes(BucketConfig())
    assert len(sizes) == 41  # as sd-scripts makes with --max_bucket_reso 2048
    for width, height in SDXL_NATIVE_WH:
        assert (height, width) in sizes and (width, height) in sizes
    assert all(height * width <= 1024**2 and height % 64 == width % 64 == 0 for height, width in sizes)


@pytest.mark.parametrize(
    ("image", "bucket"),
    [
        ((1920, 1080), (1344, 768)),
        ((3000, 2000), (1216, 832)),
        ((4032, 3024), (1152, 896)),
        ((832, 1216), (832, 1216)),
        ((1080, 1920), (768, 1344)),
    ],
)
def test_large_images_go_to_the_bucket_that_kohya_chooses(image, bucket):
    assert target_wh(*image) == bucket


@pytest.mark.parametrize(("width", "height"), SDXL_NATIVE_WH)
def test_an_image_of_a_native_size_is_neither_scaled_nor_cropped(width, height):
    (item,) = plan_crops(make_dataset((height, width)), BucketConfig(), seed=0).items
    assert item.crop.resized_hw == item.crop.target_hw == (height, width)
    assert item.crop.top_left_yx == (0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resolution": 512},
        {"resolution": 128, "bucket_reso_steps": 32},
        {"max_bucket_reso": 2000},
        {"bucket_reso_steps": 8},
    ],
)
def test_every_bucket_is_the_target_of_an_image_of_its_own_size_and_has_sides_in_steps(settings):
    config = BucketConfig(**settings)
    buckets = list_bucket_sizes(config)
    assert all(choose_target(size, config, buckets) == size for size in buckets)
    assert all(side % config.bucket_reso_steps == 0 for size in buckets for side in size)


@pytest.mark.parametrize(
    ("image", "target"),
    [
        ((800, 600), (768, 576)),
        ((640, 360), (576, 320)),  # sd-scripts: 640 x 320, which loses 11 %
        ((300, 300), (256, 256)),
        ((1023, 1025), (960, 960)),  # sd-scripts: 960 x 1024, which loses 6 %
        ((700, 1000), (640, 896)),  # 448 x 640 would lose nothing, but is half as large
        ((400, 300), (320, 256)),  # every size loses more than 4 %: take the one that loses least
    ],
)
def test_small_images_are_not_enlarged_and_get_the_largest_size_that_loses_little(image, target):
    assert target_wh(*image) == target


def test_small_images_are_enlarged_when_that_is_allowed():
    assert target_wh(800, 600, bucket_no_upscale=False) == (1152, 896)


def test_small_resolutions_have_buckets_too():
    assert list_bucket_sizes(BucketConfig(resolution=64)) == [(64, 64)]
    assert {(128, 128), (160, 96), (96, 160)} <= set(
        list_bucket_sizes(BucketConfig(resolution=128, bucket_reso_steps=32))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 1000}, "resolution must be a multiple of 64, got 1000. The nearest are 960 and 1024"),
        ({"resolution": 32}, "resolution must be between 64 and 4096, got 32"),
        ({"bucket_reso_steps": 20}, "bucket_reso_steps must be a multiple of 8, got 20"),
        ({"resolution": 64, "bucket_reso_steps": 128}, "bucket_reso_steps must not be above resolution 64, got 128"),
        ({"resize_mode": "stretch"}, "resize_mode must be one of bucket, center_crop, random_crop; got 'stretch'"),
        (
            {"extra_resolutions": "768; 512"},
            "extra_resolutions must be numbers separated by commas, such as 768, 512; got '768; 512'",
        ),
        (
            {"extra_resolutions": "512, 1024"},
            "extra_resolutions must differ from each other and from resolution 1024, got '512, 1024'",
        ),
        ({"extra_resolutions": "700"}, "extra_resolutions has 700: resolution must be a multiple of 64, got 700"),
        ({"extra_resolutions": "32"}, "extra_resolutions has 32: resolution must be between 64 and 4096, got 32"),
        ({"max_bucket_reso": 512}, "max_bucket_reso must not be below resolution 1024, got 512"),
    ],
)
def test_settings_that_make_no_buckets_are_an_error(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BucketConfig(**settings)
