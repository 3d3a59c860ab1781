"""The crops of an epoch, and what the plan reports."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.dataset.imagined import make_dataset
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.dataset import Dataset


def test_an_image_too_small_for_any_bucket_is_left_out_and_named():
    plan = plan_crops(make_dataset((1, 1), (1024, 1024)), BucketConfig(), seed=0)
    assert [item.image.name for item in plan.items] == ["1.png"]
    assert plan.report.num_kept == 1
    assert plan.report.left_out[0].name == "0.png"
    assert plan.report.left_out[0].reason.startswith("1 x 1 pixels are too small, both sides must have 256 or more")


def test_one_pixel_alone_or_in_strict_mode_is_an_error():
    with pytest.raises(ValueError, match=r"pictures: no usable image among 1: 0\.png: 1 x 1 pixels are too small"):
        plan_crops(make_dataset((1, 1)), BucketConfig(), seed=0)
    with pytest.raises(ValueError, match=r"strict is on and 1 image cannot be used: 0\.png"):
        plan_crops(make_dataset((1, 1), (1024, 1024), strict=True), BucketConfig(), seed=0)


def test_an_image_without_a_bucket_of_similar_shape_is_reported():
    report = plan_crops(make_dataset((300, 10_000), (1024, 1024)), BucketConfig(), seed=0).report
    assert [(note.name, note.reason) for note in report.notes] == [
        ("0.png", "76% of it is cut off: no bucket is close to the shape of 10000 x 300; the closest is 2048 x 256")
    ]


def test_the_report_counts_images_by_bucket():
    plan = plan_crops(
        make_dataset((1024, 1024), (1024, 1024), (832, 1216), (1, 1), num_repeats=3), BucketConfig(), seed=0
    )
    assert plan.bucket_counts == {(1024, 1024): 6, (832, 1216): 3}
    assert plan.report.text().splitlines() == [
        "3 images kept, 1 left out",
        "  832 x 1216 (height x width): 1",
        "  1024 x 1024 (height x width): 2",
        "Left out:",
        "  3.png: 1 x 1 pixels are too small, both sides must have 256 or more. Use a larger image, or turn off "
        "bucket_no_upscale",
    ]
    assert plan.report.to_dict()["buckets"] == {"1024x1024": 2, "832x1216": 1}


def test_every_repeat_is_a_separate_item():
    items = plan_crops(make_dataset((1024, 1024), (1, 1), (832, 1216), num_repeats=2), BucketConfig(), seed=0).items
    assert [(item.index, item.image.name, item.repeat) for item in items] == [
        (0, "0.png", 0),
        (1, "0.png", 1),
        (2, "2.png", 0),
        (3, "2.png", 1),
    ]


def test_a_square_crop_leaves_out_images_smaller_than_the_square():
    plan = plan_crops(make_dataset((600, 1500), (1100, 1500)), BucketConfig(resize_mode="center_crop"), seed=0)
    (item,) = plan.items
    assert (item.crop.resized_hw, item.crop.top_left_yx, item.crop.target_hw) == ((1024, 1396), (0, 186), (1024, 1024))
    assert "both sides must have 1024 or more" in plan.report.left_out[0].reason
    enlarged = plan_crops(
        make_dataset((600, 1500)), BucketConfig(resize_mode="center_crop", bucket_no_upscale=False), seed=0
    )
    assert enlarged.items[0].crop.resized_hw == (1024, 2560)


def test_a_random_crop_depends_only_on_seed_image_and_repeat():
    config = BucketConfig(resize_mode="random_crop")
    crops = [
        [
            item.crop.top_left_yx
            for item in plan_crops(make_dataset((1100, 1500), num_repeats=5), config, seed=seed).items
        ]
        for seed in (0, 0, 1)
    ]
    assert crops[0] == crops[1] != crops[2]
    assert len(set(crops[0])) == 5 and all(0 <= left <= 372 and top == 0 for top, left in crops[0])


@given(
    height=st.integers(64, 4000),
    width=st.integers(64, 4000),
    resolution=st.sampled_from([512, 768, 1024]),
    upscale=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_crop_is_inside_its_image_and_fills_its_bucket(height, width, resolution, upscale):
    config = BucketConfig(resolution=resolution, bucket_no_upscale=not upscale)
    if not upscale and min(height, width) < config.shortest_side:
        return
    (item,) = plan_crops(make_dataset((height, width)), config, seed=0).items
    crop = item.crop
    for original, resized, offset, target in zip(
        crop.original_hw, crop.resized_hw, crop.top_left_yx, crop.target_hw, strict=True
    ):
        assert target % 64 == 0 and 0 <= offset <= resized - target
        assert upscale or resized <= original
    assert any(resized == target for resized, target in zip(crop.resized_hw, crop.target_hw, strict=True))
    assert crop.target_hw[0] * crop.target_hw[1] <= resolution**2


def test_extra_resolutions_add_separate_items():
    plan = plan_crops(
        make_dataset((1024, 1024), (700, 700), num_repeats=2), BucketConfig(extra_resolutions="512, 256"), seed=0
    )
    assert [(item.index, item.image.name, item.repeat, item.crop.target_hw[0]) for item in plan.items] == [
        *((0, "0.png", 0, 1024), (1, "0.png", 1, 1024), (2, "1.png", 0, 640), (3, "1.png", 1, 640)),
        *((4, "0.png", 0, 512), (5, "0.png", 1, 512), (6, "1.png", 0, 512), (7, "1.png", 1, 512)),
        *((8, "0.png", 0, 256), (9, "0.png", 1, 256), (10, "1.png", 0, 256), (11, "1.png", 1, 256)),
    ]
    assert plan.report.num_kept == 2


def test_an_image_too_small_for_one_resolution_is_trained_at_the_others():
    config = BucketConfig(resize_mode="center_crop", extra_resolutions="512")
    plan = plan_crops(make_dataset((1024, 1024), (700, 700), (100, 100)), config, seed=0)
    assert [(item.image.name, item.crop.target_hw) for item in plan.items] == [
        ("0.png", (1024, 1024)),
        ("0.png", (512, 512)),
        ("1.png", (512, 512)),
    ]
    assert [(note.name, note.reason) for note in plan.report.notes] == [
        ("1.png", "700 x 700 pixels are too small for resolution 1024; it is trained only at the others")
    ]
    assert [remark.name for remark in plan.report.left_out] == [
        "2.png"
    ] and "must have 512 or more" in plan.report.left_out[0].reason


def make_regularized_dataset(
    num_training: int, num_regularization: int, *, num_repeats: int = 1, repeats: tuple[int, ...] = ()
) -> Dataset:
    dataset = make_dataset(*[(1024, 1024)] * (num_training + num_regularization), num_repeats=num_repeats)
    own = [1] * num_training + list(repeats or [1] * num_regularization)
    images = [
        replace(image, is_regularization=i >= num_training, num_repeats=own[i])
        for i, image in enumerate(dataset.images)
    ]
    return replace(dataset, images=images)


def count_uses(dataset: Dataset) -> list[int]:
    counts = Counter(item.image.name for item in plan_crops(dataset, BucketConfig(), seed=0).items)
    return [counts[image.name] for image in dataset.images]


def test_regularization_images_are_used_as_often_as_the_others_together():
    assert count_uses(make_regularized_dataset(2, 2, num_repeats=5)) == [5, 5, 5, 5]
    assert count_uses(make_regularized_dataset(2, 3, num_repeats=5)) == [5, 5, 3, 3, 4]
    # their repeats keep their ratio
    assert count_uses(make_regularized_dataset(2, 2, num_repeats=4, repeats=(3, 1))) == [
        4,
        4,
        6,
        2,
    ]


def test_too_many_regularization_images_are_sampled_evenly_and_reported():
    dataset = make_regularized_dataset(3, 9)
    assert count_uses(dataset) == [1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert [(note.name, note.reason) for note in plan_crops(dataset, BucketConfig(), seed=0).report.notes] == [
        (
            "regularization",
            "3 images make 3 samples per epoch, as many as the training images; the other 6 are not needed. "
            "More repeats of the training images would use them too",
        )
    ]


def test_nothing_but_regularization_images_is_an_error():
    with pytest.raises(
        ValueError, match=r"pictures: nothing but regularization images\. Join a dataset of your subject"
    ):
        plan_crops(make_regularized_dataset(0, 2), BucketConfig(), seed=0)
