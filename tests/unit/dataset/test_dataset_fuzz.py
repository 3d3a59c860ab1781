"""Plans epochs of random datasets: buckets, repeats, regularization, batches, and resuming in
mid-epoch. Reads no files.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import CropPlan, TrainingItem, plan_crops
from trainers.dataset.dataset import Dataset
from trainers.dataset.epochs import batch_epoch
from trainers.dataset.image import TrainingImage
from trainers.dataset.join import join_datasets
from trainers.dataset.report import DatasetReport

# Four properties of 2,500 datasets each.
fuzz = settings(max_examples=2500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

SIDES = (64, 127, 128, 200, 255, 256, 320, 511, 512, 513, 700, 1000, 1024, 1500, 3000)
CONFIGS = [
    BucketConfig(
        resolution=resolution,
        resize_mode=mode,
        bucket_no_upscale=no_upscale,
        extra_resolutions=extra,
        bucket_reso_steps=step,
    )
    for resolution, extra in ((512, ""), (512, "256"), (256, "512, 128"))
    for mode in ("bucket", "random_crop")
    for no_upscale in (True, False)
    for step in (32, 64)
]


@dataclass(frozen=True)
class Epoch:
    dataset: Dataset
    config: BucketConfig
    batch_size: int
    seed: int
    number: int

    def plan(self) -> CropPlan:
        return plan_crops(self.dataset, self.config, seed=self.seed)

    def batches(self, plan: CropPlan) -> list[list[TrainingItem]]:
        return batch_epoch(plan.items, batch_size=self.batch_size, seed=self.seed, epoch=self.number)


# Size, repeats, captioned, regularization: one draw per image keeps ten thousand datasets fast.
images = st.tuples(
    st.sampled_from(SIDES),
    st.sampled_from(SIDES),
    st.integers(1, 3),
    st.sampled_from("ccccce"),
    st.sampled_from("ttttr"),
)


def make_dataset(
    drawn: list[tuple[int, int, int, str, str]], num_repeats: int, folder_name: str = "pictures"
) -> Dataset:
    images = [
        TrainingImage(
            f"{number}.png",
            Path(f"{number}.png"),
            f"{number:064x}",
            (height, width),
            "a toy" if captioned == "c" else "",
            False,
            num_repeats=repeats,
            is_regularization=kind == "r",
        )
        for number, (height, width, repeats, captioned, kind) in enumerate(drawn)
    ]
    return Dataset(images, num_repeats, "", DatasetReport(len(images)), folder_name)


datasets = st.builds(make_dataset, st.lists(images, min_size=1, max_size=8), st.integers(1, 3))
epochs = st.builds(Epoch, datasets, st.sampled_from(CONFIGS), st.integers(1, 5), st.integers(0, 3), st.integers(1, 3))


def is_usable(image: TrainingImage, config: BucketConfig, resolution: int) -> bool:
    """True if the image has a caption and is large enough, or can be enlarged."""
    shortest = config.with_resolution(resolution).shortest_side if config.resize_mode == "bucket" else resolution
    return bool(image.caption) and (not config.bucket_no_upscale or min(image.size_hw) >= shortest)


def list_usable_images(epoch: Epoch, *, is_regularization: bool) -> list[list[TrainingImage]]:
    """List the usable images of each resolution."""
    return [
        [
            image
            for image in epoch.dataset.images
            if image.is_regularization == is_regularization and is_usable(image, epoch.config, resolution)
        ]
        for resolution in epoch.config.resolutions
    ]


def check_if_trainable(check: Callable[[Epoch], None], epoch: Epoch) -> None:
    """Run the check if any training image is usable; otherwise the plan must be refused."""
    if any(list_usable_images(epoch, is_regularization=False)):
        check(epoch)
        return
    try:
        epoch.plan()
    except ValueError:
        return
    raise AssertionError("nothing can be trained, and the plan says nothing")


@given(epochs)
@fuzz
def test_every_image_is_seen_exactly_as_often_as_its_repeats_say(epoch: Epoch) -> None:
    check_if_trainable(check_repeats, epoch)


def check_repeats(epoch: Epoch) -> None:
    plan = epoch.plan()
    seen = Counter(
        item.image.name for batch in epoch.batches(plan) for item in batch if not item.image.is_regularization
    )
    expected: Counter[str] = Counter()
    for images in list_usable_images(epoch, is_regularization=False):
        for image in images:
            expected[image.name] += image.num_repeats * epoch.dataset.num_repeats
    assert seen == expected
    usable = {
        image.name
        for kind in (False, True)
        for images in list_usable_images(epoch, is_regularization=kind)
        for image in images
    }
    assert {remark.name for remark in plan.report.left_out} == {image.name for image in epoch.dataset.images} - usable
    assert plan.report.num_kept == len(usable)
    assert [item.index for item in plan.items] == list(range(len(plan.items)))


@given(epochs)
@fuzz
def test_regularization_images_make_half_of_an_epoch_each_with_its_fair_share(epoch: Epoch) -> None:
    check_if_trainable(check_regularization, epoch)


def check_regularization(epoch: Epoch) -> None:
    seen = Counter(
        item.image.name for batch in epoch.batches(epoch.plan()) for item in batch if item.image.is_regularization
    )
    total = 0
    share_by_name: Counter[str] = Counter()
    both = zip(
        list_usable_images(epoch, is_regularization=False),
        list_usable_images(epoch, is_regularization=True),
        strict=True,
    )
    for training, regularization in both:
        num_samples = sum(image.num_repeats for image in training) * epoch.dataset.num_repeats
        total += num_samples if regularization else 0
        for image in regularization:
            share_by_name[image.name] += (
                num_samples * image.num_repeats / sum(other.num_repeats for other in regularization)
            )  # pyright: ignore[reportArgumentType]
    assert seen.total() == total
    assert all(abs(seen[name] - share) < len(epoch.config.resolutions) for name, share in share_by_name.items())


@given(epochs)
@fuzz
def test_no_batch_mixes_sizes_or_is_smaller_than_necessary(epoch: Epoch) -> None:
    check_if_trainable(check_batches, epoch)


def check_batches(epoch: Epoch) -> None:
    plan = epoch.plan()
    batches = epoch.batches(plan)
    assert sorted(item.index for batch in batches for item in batch) == list(range(len(plan.items)))
    assert all(
        len({item.crop.target_hw for item in batch}) == 1 and 1 <= len(batch) <= epoch.batch_size for batch in batches
    )
    assert len(batches) == sum(-(-count // epoch.batch_size) for count in plan.bucket_counts.values())
    for item in plan.items:
        (top, left), (height, width) = item.crop.top_left_yx, item.crop.target_hw
        assert 0 <= top <= item.crop.resized_hw[0] - height and 0 <= left <= item.crop.resized_hw[1] - width
        assert height * width <= max(epoch.config.resolutions) ** 2


@given(epochs, st.integers(0, 1000), st.lists(images, min_size=1, max_size=4), st.integers(1, 3))
@fuzz
def test_a_run_resumed_in_mid_epoch_sees_the_same_remaining_items(
    epoch: Epoch, position: int, drawn: list, num_repeats: int
) -> None:
    """Resuming plans again, from joined datasets that are built again."""
    joined = replace(epoch, dataset=join_datasets([epoch.dataset, make_dataset(drawn, num_repeats, "more")]))
    again = replace(
        epoch,
        dataset=join_datasets(
            [replace(epoch.dataset, images=list(epoch.dataset.images)), make_dataset(drawn, num_repeats, "more")]
        ),
    )
    check_if_trainable(lambda epoch: check_resume(epoch, again, position), joined)


def check_resume(epoch: Epoch, again: Epoch, position: int) -> None:
    plan = epoch.plan()
    batches = epoch.batches(plan)
    num_done = position % (len(batches) + 1)
    done, remainder = batches[:num_done], again.batches(again.plan())[num_done:]
    assert remainder == batches[num_done:]
    seen = sorted(item.index for batch in [*done, *remainder] for item in batch)
    assert seen == list(range(len(plan.items)))
