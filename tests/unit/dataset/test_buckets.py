"""Buckets, crops and the order of an epoch."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.bucket_sizes import bucket_sizes, choose_target
from trainers.dataset.config import DatasetConfig
from trainers.dataset.crop import make_crop
from trainers.dataset.crop_pixels import read_crop, read_mask_crop
from trainers.dataset.crop_plan import TrainingItem, plan_crops
from trainers.dataset.dataset import Dataset
from trainers.dataset.epochs import epoch_batches
from trainers.dataset.image import TrainingImage
from trainers.dataset.prepared_folder import write_prepared_folder
from trainers.dataset.report import DatasetReport
from trainers.dataset.scan import scan_folder

ROOT = Path(__file__).parents[3]
SDXL_NATIVE_WH = [(1024, 1024), (832, 1216), (896, 1152), (768, 1344), (640, 1536)]


def dataset_of(*sizes_hw: tuple[int, int], num_repeats: int = 1, strict: bool = False) -> Dataset:
    images = [TrainingImage(f"{i}.png", Path(f"{i}.png"), f"{i:064x}", size, f"caption {i}", False) for i, size in enumerate(sizes_hw)]
    return Dataset(images, num_repeats, "", DatasetReport(len(images)), "pictures", strict)


def target_wh(width: int, height: int, **settings) -> tuple[int, int]:
    (item,) = plan_crops(dataset_of((height, width)), BucketConfig(**settings), seed=0).items
    return item.crop.target_hw[1], item.crop.target_hw[0]


def test_the_list_has_every_size_sdxl_was_trained_at_and_never_more_area():
    sizes = bucket_sizes(BucketConfig())
    assert len(sizes) == 41  # as many as sd-scripts makes with --max_bucket_reso 2048
    for width, height in SDXL_NATIVE_WH:
        assert (height, width) in sizes and (width, height) in sizes
    assert all(height * width <= 1024**2 and height % 64 == width % 64 == 0 for height, width in sizes)


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [((1920, 1080), (1344, 768)), ((3000, 2000), (1216, 832)), ((4032, 3024), (1152, 896)), ((832, 1216), (832, 1216)), ((1080, 1920), (768, 1344))],
)
def test_large_pictures_go_to_the_bucket_that_kohya_chooses(picture, bucket):
    assert target_wh(*picture) == bucket


@pytest.mark.parametrize(("width", "height"), SDXL_NATIVE_WH)
def test_a_picture_of_a_native_size_is_neither_scaled_nor_cropped(width, height):
    (item,) = plan_crops(dataset_of((height, width)), BucketConfig(), seed=0).items
    assert item.crop.resized_hw == item.crop.target_hw == (height, width)
    assert item.crop.top_left_yx == (0, 0)


@pytest.mark.parametrize(
    "settings", [{}, {"resolution": 512}, {"resolution": 128, "bucket_reso_steps": 32}, {"max_bucket_reso": 2000}, {"bucket_reso_steps": 8}]
)
def test_every_bucket_is_the_target_of_a_picture_of_its_own_size_and_has_sides_in_steps(settings):
    config = BucketConfig(**settings)
    buckets = bucket_sizes(config)
    assert all(choose_target(size, config, buckets) == size for size in buckets)
    assert all(side % config.bucket_reso_steps == 0 for size in buckets for side in size)


@pytest.mark.parametrize(
    ("picture", "target"),
    [
        ((800, 600), (768, 576)),
        ((640, 360), (576, 320)),  # sd-scripts: 640 x 320, which loses 11 %
        ((300, 300), (256, 256)),
        ((1023, 1025), (960, 960)),  # sd-scripts: 960 x 1024, which loses 6 %
        ((700, 1000), (640, 896)),  # 448 x 640 would lose nothing, and be half as large
        ((400, 300), (320, 256)),  # every size loses more than 4 %: the one that loses least
    ],
)
def test_small_pictures_are_not_enlarged_and_get_the_largest_size_that_loses_little(picture, target):
    assert target_wh(*picture) == target


def test_small_pictures_are_enlarged_when_that_is_allowed():
    assert target_wh(800, 600, bucket_no_upscale=False) == (1152, 896)


def test_a_picture_too_small_for_any_bucket_is_left_out_and_named():
    plan = plan_crops(dataset_of((1, 1), (1024, 1024)), BucketConfig(), seed=0)
    assert [item.image.name for item in plan.items] == ["1.png"]
    assert plan.report.num_kept == 1
    assert plan.report.left_out[0].name == "0.png"
    assert plan.report.left_out[0].reason.startswith("1 x 1 pixels are too small, both sides must have 256 or more")


def test_one_pixel_alone_or_in_strict_mode_is_an_error():
    with pytest.raises(ValueError, match=r"pictures: no usable picture among 1: 0\.png: 1 x 1 pixels are too small"):
        plan_crops(dataset_of((1, 1)), BucketConfig(), seed=0)
    with pytest.raises(ValueError, match=r"strict is on and 1 picture cannot be used: 0\.png"):
        plan_crops(dataset_of((1, 1), (1024, 1024), strict=True), BucketConfig(), seed=0)


def test_a_picture_that_no_bucket_resembles_is_noted():
    report = plan_crops(dataset_of((300, 10_000), (1024, 1024)), BucketConfig(), seed=0).report
    assert [(note.name, note.reason) for note in report.notes] == [
        ("0.png", "76% of it is cut off: no bucket is near the shape of 10000 x 300, 2048 x 256 is nearest")
    ]


def test_the_report_counts_pictures_by_bucket():
    plan = plan_crops(dataset_of((1024, 1024), (1024, 1024), (832, 1216), (1, 1), num_repeats=3), BucketConfig(), seed=0)
    assert plan.bucket_counts == {(1024, 1024): 6, (832, 1216): 3}
    assert plan.report.text().splitlines() == [
        "3 pictures kept, 1 left out",
        "  832 x 1216 (height x width): 1",
        "  1024 x 1024 (height x width): 2",
        "Left out:",
        "  3.png: 1 x 1 pixels are too small, both sides must have 256 or more. Use a larger picture, or turn off bucket_no_upscale",
    ]
    assert plan.report.to_dict()["buckets"] == {"1024x1024": 2, "832x1216": 1}


def test_every_repeat_is_an_item_of_its_own():
    items = plan_crops(dataset_of((1024, 1024), (1, 1), (832, 1216), num_repeats=2), BucketConfig(), seed=0).items
    assert [(item.index, item.image.name, item.repeat) for item in items] == [(0, "0.png", 0), (1, "0.png", 1), (2, "2.png", 0), (3, "2.png", 1)]


def test_a_square_crop_leaves_out_what_is_smaller_than_the_square():
    plan = plan_crops(dataset_of((600, 1500), (1100, 1500)), BucketConfig(resize_mode="center_crop"), seed=0)
    (item,) = plan.items
    assert (item.crop.resized_hw, item.crop.top_left_yx, item.crop.target_hw) == ((1024, 1396), (0, 186), (1024, 1024))
    assert "both sides must have 1024 or more" in plan.report.left_out[0].reason
    enlarged = plan_crops(dataset_of((600, 1500)), BucketConfig(resize_mode="center_crop", bucket_no_upscale=False), seed=0)
    assert enlarged.items[0].crop.resized_hw == (1024, 2560)


def test_a_random_crop_is_a_function_of_seed_picture_and_repeat():
    config = BucketConfig(resize_mode="random_crop")
    crops = [[item.crop.top_left_yx for item in plan_crops(dataset_of((1100, 1500), num_repeats=5), config, seed=seed).items] for seed in (0, 0, 1)]
    assert crops[0] == crops[1] != crops[2]
    assert len(set(crops[0])) == 5 and all(0 <= left <= 372 and top == 0 for top, left in crops[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 1000}, "resolution must be a multiple of 64, got 1000. The nearest are 960 and 1024"),
        ({"resolution": 32}, "resolution must be between 64 and 4096, got 32"),
        ({"bucket_reso_steps": 20}, "bucket_reso_steps must be a multiple of 8, got 20"),
        ({"resolution": 64, "bucket_reso_steps": 128}, "bucket_reso_steps must not be above resolution 64, got 128"),
        ({"resize_mode": "stretch"}, "resize_mode must be one of bucket, center_crop, random_crop; got 'stretch'"),
        ({"extra_resolutions": "768; 512"}, "extra_resolutions must be numbers with commas between, such as 768, 512; got '768; 512'"),
        ({"extra_resolutions": "512, 1024"}, "extra_resolutions must differ from one another and from resolution 1024, got '512, 1024'"),
        ({"extra_resolutions": "700"}, "extra_resolutions has 700: resolution must be a multiple of 64, got 700"),
        ({"extra_resolutions": "32"}, "extra_resolutions has 32: resolution must be between 64 and 4096, got 32"),
        ({"max_bucket_reso": 512}, "max_bucket_reso must not be below resolution 1024, got 512"),
    ],
)
def test_settings_that_make_no_buckets_are_an_error(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BucketConfig(**settings)


def test_small_resolutions_have_buckets_too():
    assert bucket_sizes(BucketConfig(resolution=64)) == [(64, 64)]
    assert {(128, 128), (160, 96), (96, 160)} <= set(bucket_sizes(BucketConfig(resolution=128, bucket_reso_steps=32)))


@given(height=st.integers(64, 4000), width=st.integers(64, 4000), resolution=st.sampled_from([512, 768, 1024]), upscale=st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_crop_lies_inside_its_picture_and_fills_its_bucket(height, width, resolution, upscale):
    config = BucketConfig(resolution=resolution, bucket_no_upscale=not upscale)
    if not upscale and min(height, width) < config.shortest_side:
        return
    (item,) = plan_crops(dataset_of((height, width)), config, seed=0).items
    crop = item.crop
    for original, resized, offset, target in zip(crop.original_hw, crop.resized_hw, crop.top_left_yx, crop.target_hw, strict=True):
        assert target % 64 == 0 and 0 <= offset <= resized - target
        assert upscale or resized <= original
    assert any(resized == target for resized, target in zip(crop.resized_hw, crop.target_hw, strict=True))
    assert crop.target_hw[0] * crop.target_hw[1] <= resolution**2


@given(
    sizes=st.lists(st.tuples(st.sampled_from([512, 700, 1024, 1500]), st.sampled_from([512, 700, 1024, 1500])), min_size=1, max_size=12),
    num_repeats=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    epoch=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_an_epoch_has_every_picture_exactly_repeats_times_and_no_batch_mixes_sizes(sizes, num_repeats, batch_size, epoch):
    plan = plan_crops(dataset_of(*sizes, num_repeats=num_repeats), BucketConfig(), seed=0)
    batches = epoch_batches(plan.items, batch_size=batch_size, seed=0, epoch=epoch)
    assert sorted(item.index for batch in batches for item in batch) == list(range(len(sizes) * num_repeats))
    assert all(len({item.crop.target_hw for item in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    assert batches == epoch_batches(plan.items, batch_size=batch_size, seed=0, epoch=epoch)


def test_epochs_and_seeds_have_different_orders():
    items = plan_crops(dataset_of(*[(1024, 1024)] * 20), BucketConfig(), seed=0).items
    orders = {tuple(item.index for (item,) in epoch_batches(items, batch_size=1, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (1, 2, 3)}
    assert len(orders) == 6


def test_the_order_and_the_crops_do_not_depend_on_the_process():
    code = """
from pathlib import Path
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.dataset import Dataset
from trainers.dataset.epochs import epoch_batches
from trainers.dataset.image import TrainingImage
from trainers.dataset.report import DatasetReport
images = [TrainingImage(f"{i}.png", Path(f"{i}.png"), f"{i:064x}", (1100, 1500), "a toy", False) for i in range(6)]
items = plan_crops(Dataset(images, 1, "", DatasetReport(6), "pictures"), BucketConfig(resize_mode="random_crop"), seed=3).items
print([[(item.index, item.crop.top_left_yx) for item in batch] for batch in epoch_batches(items, batch_size=2, seed=3, epoch=1)])
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed}, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for hash_seed in ("1", "2")
    }
    items = plan_crops(dataset_of(*[(1100, 1500)] * 6), BucketConfig(resize_mode="random_crop"), seed=3).items
    here = [[(item.index, item.crop.top_left_yx) for item in batch] for batch in epoch_batches(items, batch_size=2, seed=3, epoch=1)]
    assert outputs == {f"{here}\n"}


def test_extra_resolutions_make_items_of_their_own():
    plan = plan_crops(dataset_of((1024, 1024), (700, 700), num_repeats=2), BucketConfig(extra_resolutions="512, 256"), seed=0)
    assert [(item.index, item.image.name, item.repeat, item.crop.target_hw[0]) for item in plan.items] == [
        *((0, "0.png", 0, 1024), (1, "0.png", 1, 1024), (2, "1.png", 0, 640), (3, "1.png", 1, 640)),
        *((4, "0.png", 0, 512), (5, "0.png", 1, 512), (6, "1.png", 0, 512), (7, "1.png", 1, 512)),
        *((8, "0.png", 0, 256), (9, "0.png", 1, 256), (10, "1.png", 0, 256), (11, "1.png", 1, 256)),
    ]
    assert plan.report.num_kept == 2


def test_a_picture_too_small_for_one_resolution_is_trained_at_the_others():
    config = BucketConfig(resize_mode="center_crop", extra_resolutions="512")
    plan = plan_crops(dataset_of((1024, 1024), (700, 700), (100, 100)), config, seed=0)
    assert [(item.image.name, item.crop.target_hw) for item in plan.items] == [("0.png", (1024, 1024)), ("0.png", (512, 512)), ("1.png", (512, 512))]
    assert [(note.name, note.reason) for note in plan.report.notes] == [
        ("1.png", "700 x 700 pixels are too small for resolution 1024; it is trained at the others only")
    ]
    assert [finding.name for finding in plan.report.left_out] == ["2.png"] and "must have 512 or more" in plan.report.left_out[0].reason


def with_regularization(num_training: int, num_regularization: int, *, num_repeats: int = 1, repeats: tuple[int, ...] = ()) -> Dataset:
    dataset = dataset_of(*[(1024, 1024)] * (num_training + num_regularization), num_repeats=num_repeats)
    own = [1] * num_training + list(repeats or [1] * num_regularization)
    images = [replace(image, is_regularization=i >= num_training, num_repeats=own[i]) for i, image in enumerate(dataset.images)]
    return replace(dataset, images=images)


def uses(dataset: Dataset) -> list[int]:
    counts = Counter(item.image.name for item in plan_crops(dataset, BucketConfig(), seed=0).items)
    return [counts[image.name] for image in dataset.images]


def test_regularization_pictures_are_used_as_often_as_the_others_together():
    assert uses(with_regularization(2, 2, num_repeats=5)) == [5, 5, 5, 5]
    assert uses(with_regularization(2, 3, num_repeats=5)) == [5, 5, 3, 3, 4]
    assert uses(with_regularization(2, 2, num_repeats=4, repeats=(3, 1))) == [4, 4, 6, 2]  # the ratio of their repeats stays


def test_of_too_many_regularization_pictures_some_are_taken_evenly_and_the_report_says_so():
    dataset = with_regularization(3, 9)
    assert uses(dataset) == [1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert [(note.name, note.reason) for note in plan_crops(dataset, BucketConfig(), seed=0).report.notes] == [
        (
            "regularization",
            "3 pictures make 3 samples per epoch, as many as the training pictures; the other 6 are not needed. "
            "More repeats of the training pictures would use them",
        )
    ]


def test_nothing_but_regularization_pictures_is_an_error():
    with pytest.raises(ValueError, match=r"pictures: nothing but regularization pictures\. Join a dataset of what is to be learned"):
        plan_crops(with_regularization(0, 2), BucketConfig(), seed=0)


def scanned(folder: Path, **settings) -> Dataset:
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx", **settings))


def test_a_crop_has_the_pixels_of_its_place(tmp_path):
    picture = Image.new("RGB", (100, 64))
    picture.paste((255, 0, 0), (18, 0, 82, 64))
    picture.save(tmp_path / "a.png")
    (image,) = scanned(tmp_path).images
    cropped = read_crop(TrainingItem(0, image, 0, make_crop((64, 100), (64, 64))))
    assert cropped.size == (64, 64) and cropped.getcolors() == [(64 * 64, (255, 0, 0))]


def test_a_picture_of_exactly_its_bucket_comes_through_bit_for_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (item,) = plan_crops(scanned(tmp_path), BucketConfig(resolution=128, bucket_reso_steps=32), seed=0).items
    assert item.crop.target_hw == (96, 160)
    assert np.array_equal(np.asarray(read_crop(item)), pixels)


@pytest.mark.parametrize("mask_source", ["files", "alpha"])
def test_a_mask_is_cut_as_its_picture(tmp_path, mask_source):
    """The picture is its own mask, so that both crops must be the same pixels."""
    shape = Image.radial_gradient("L").resize((300, 200))
    picture = Image.merge("RGB", [shape] * 3)
    if mask_source == "alpha":
        picture.putalpha(shape)
    else:
        shape.save(tmp_path / "a-masklabel.png")
    picture.save(tmp_path / "a.png")
    dataset = scanned(tmp_path, mask_source=mask_source, alpha_background="black", num_repeats=4)
    plan = plan_crops(dataset, BucketConfig(resolution=128, bucket_reso_steps=32, resize_mode="random_crop"), seed=0)
    for item in plan.items:
        mask = read_mask_crop(item)
        assert mask is not None and mask.mode == "L" and mask.size == (128, 128)
        expected = np.asarray(read_crop(item)).astype(int)[..., 0]
        given = np.asarray(mask).astype(int)
        difference = expected - (given * given / 255 if mask_source == "alpha" else given)
        assert abs(difference).max() <= 4  # LANCZOS against BILINEAR on a gradient


def test_a_picture_without_a_mask_has_no_mask_crop(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (item,) = plan_crops(scanned(tmp_path), BucketConfig(resolution=64), seed=0).items
    assert read_mask_crop(item) is None


def test_a_file_that_changed_since_the_scan_is_an_error_that_names_it(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (item,) = plan_crops(scanned(tmp_path), BucketConfig(resolution=64), seed=0).items
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    with pytest.raises(RuntimeError, match=r"a\.png: the file has changed since the folder was scanned\. Start again"):
        read_crop(item)
    (tmp_path / "a.png").unlink()
    with pytest.raises(RuntimeError, match=r"a\.png: it cannot be read \(No such file or directory\)"):
        read_crop(item)


def test_a_prepared_folder_has_the_cropped_pictures_and_their_captions(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.jpg"):
        Image.new("RGB", (80, 70), "red" if name == "a.png" else "blue").save(tmp_path / "in" / name)
    plan = plan_crops(scanned(tmp_path / "in", recursive=True, num_repeats=3), BucketConfig(resolution=64), seed=0)
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
    (item,) = plan_crops(scanned(tmp_path / "in"), BucketConfig(resolution=64), seed=0).items
    write_prepared_folder(plan_crops(scanned(tmp_path / "in"), BucketConfig(resolution=64), seed=0), tmp_path / "out")
    (again,) = plan_crops(scanned(tmp_path / "out"), BucketConfig(resolution=64), seed=0).items
    assert (again.image.size_hw, again.image.caption, again.image.has_alpha) == ((64, 64), "zwx", False)
    assert read_crop(again).tobytes() == read_crop(item).tobytes()


def test_a_prepared_folder_has_every_random_crop(tmp_path):
    (tmp_path / "in").mkdir()
    Image.linear_gradient("L").resize((300, 64)).save(tmp_path / "in" / "a.png")
    plan = plan_crops(scanned(tmp_path / "in", num_repeats=3), BucketConfig(resolution=64, resize_mode="random_crop"), seed=0)
    write_prepared_folder(plan, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_a_cancelled_prepared_folder_has_only_whole_files(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    plan = plan_crops(scanned(tmp_path / "in"), BucketConfig(resolution=64), seed=0)
    checks = iter([False, True])

    def check():
        if next(checks):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prepared_folder(plan, tmp_path / "out", check_interrupted=check)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_0.png", "1_0.txt"]
