"""The rules of the presets, not their numbers: goal, memory and the number of images decide what
was left open, and given settings stay.
"""

import math
from dataclasses import asdict, replace

import pytest
from PIL import Image

from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.join import join_datasets
from trainers.dataset.scan import scan_folder
from trainers.sdxl.config import SDXLConfig
from trainers.training.plan import make_step_counter, plan_training
from trainers.training.presets import (
    GOALS,
    MEMORY_PRESETS,
    choose,
    choose_memory_preset,
    count_full_steps,
    describe,
    resolve,
)
from trainers.wording import GIBIBYTE


def count_samples(config) -> int:
    return config.max_train_steps * config.train_batch_size * config.gradient_accumulation_steps


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("memory", MEMORY_PRESETS)
def test_every_pair_of_presets_resolves_to_what_their_texts_say(goal, memory):
    settings = resolve(SDXLConfig, {}, goal=goal, memory=memory, num_images=20)
    config, buckets = settings.training, settings.buckets
    assert GOALS[goal].text().startswith(f"rank {config.rank}, learning rate {config.learning_rate:g}, ")
    assert (
        MEMORY_PRESETS[memory]
        .text()
        .startswith(f"resolution {buckets.resolution}, batch size {config.train_batch_size}")
    )
    assert config.optimizer in MEMORY_PRESETS[memory].text()
    assert config.gradient_checkpointing == ("no gradient checkpointing" not in MEMORY_PRESETS[memory].text())


@pytest.mark.parametrize("goal", GOALS)
def test_the_number_of_samples_grows_with_the_images_between_its_bounds(goal):
    low, high = GOALS[goal].num_samples
    per_image = GOALS[goal].samples_per_image
    between = (low // per_image + high // per_image) // 2
    for num_images, expected in ((1, low), (between, between * per_image), (100_000, high)):
        config = resolve(
            SDXLConfig,
            {"train_batch_size": 1, "gradient_accumulation_steps": 1},
            goal=goal,
            memory="24 GB",
            num_images=num_images,
        ).training
        assert count_samples(config) == config.max_train_steps == expected


def test_images_that_are_held_out_take_no_steps():
    given = {"train_batch_size": 1, "gradient_accumulation_steps": 1}
    low, high = GOALS["object"].num_samples
    between = (low + high) // 2 // GOALS["object"].samples_per_image
    whole, split = (
        resolve(
            SDXLConfig, {**given, "validation_share": share}, goal="object", memory="24 GB", num_images=number
        ).training
        for share, number in ((0.0, between), (0.5, 2 * between))
    )
    assert split.max_train_steps == whole.max_train_steps


@pytest.mark.parametrize("memory", MEMORY_PRESETS)
@pytest.mark.parametrize("given", [{}, {"train_batch_size": 3}, {"gradient_accumulation_steps": 7}])
def test_larger_batches_take_fewer_steps_for_the_same_samples(memory, given):
    config = resolve(SDXLConfig, given, goal="object", memory=memory, num_images=20).training
    per_step = config.train_batch_size * config.gradient_accumulation_steps
    low, high = GOALS["object"].num_samples
    assert config.max_train_steps == math.ceil(min(max(20 * GOALS["object"].samples_per_image, low), high) / per_step)


@pytest.mark.parametrize(
    "given",
    [
        {"rank": 3, "alpha": 7.0, "learning_rate": 3e-3, "caption_dropout": 0.5},
        {"train_batch_size": 5, "gradient_accumulation_steps": 2, "gradient_checkpointing": False, "optimizer": "Lion"},
        {"max_train_steps": 12, "seed": 9, "lr_scheduler": "constant"},
    ],
)
def test_given_settings_stay(given):
    config = resolve(SDXLConfig, given, goal="style", memory="8 GB", num_images=20).training
    assert {name: getattr(config, name) for name in given} == given


def test_bucket_settings_reach_the_buckets():
    buckets = resolve(
        SDXLConfig, {"resolution": 640, "random_flip": True}, goal="style", memory="8 GB", num_images=20
    ).buckets
    assert buckets.resolution == 640 and buckets.random_flip


@pytest.mark.parametrize("goal", GOALS)
def test_alpha_follows_a_given_rank(goal):
    config = resolve(SDXLConfig, {"rank": 100}, goal=goal, memory="8 GB", num_images=20).training
    assert config.alpha == 100 * GOALS[goal].alpha_per_rank


@pytest.mark.parametrize("given", [{"rank": 0}, {"resolution": 100}, {"max_train_steps": -1}])
def test_a_setting_out_of_its_range_is_an_error(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} must be"):
        resolve(SDXLConfig, given, goal="object", memory="8 GB", num_images=20)


def test_the_memory_preset_is_the_largest_that_fits():
    assert list(MEMORY_PRESETS) == sorted(MEMORY_PRESETS, key=lambda name: int(name.split()[0]))
    for name in MEMORY_PRESETS:
        size = int(name.split()[0]) * GIBIBYTE
        # a card of that size reports a little less
        assert choose_memory_preset(size) == choose_memory_preset(int(size * 0.96)) == name
    assert choose_memory_preset(2 * GIBIBYTE) == next(iter(MEMORY_PRESETS))
    assert choose_memory_preset(140 * GIBIBYTE) == list(MEMORY_PRESETS)[-1]


def test_the_description_names_the_resolved_numbers():
    given = {
        "train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "optimizer": "Lion",
        "seed": 5,
    }
    settings = resolve(
        SDXLConfig,
        {**given, "max_train_steps": 70, "rank": 12, "alpha": 6.0, "resolution": 896},
        goal="person",
        memory="8 GB",
        num_images=20,
    )
    first, second = describe(settings).splitlines()
    assert first == f"70 steps, rank 12, alpha 6, learning rate {settings.training.learning_rate:g}, Lion."
    assert second == "Resolution 896, batch size 2 x 4 accumulated, gradient checkpointing, seed 5."
    assert describe(replace(settings, training=replace(settings.training, num_train_epochs=3))).startswith("3 epochs, ")


@pytest.mark.parametrize("memory", MEMORY_PRESETS)
def test_a_given_batch_size_is_not_accumulated(memory):
    config = resolve(SDXLConfig, {"train_batch_size": 4}, goal="object", memory=memory, num_images=20).training
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (4, 1)


@pytest.mark.parametrize("given", [{}, {"rank": 100}, {"train_batch_size": 4}])
def test_what_the_presets_choose_is_known_before_the_dataset(given):
    chosen = choose(given, goal="style", memory="8 GB")
    settings = resolve(SDXLConfig, given, goal="style", memory="8 GB", num_images=20)
    resolved = {**asdict(settings.training), **asdict(settings.buckets)}
    assert "max_train_steps" not in chosen
    assert {**chosen, **given}.items() <= resolved.items()


def write_images(folder, sizes, *, red=0) -> DatasetConfig:
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (red, number, 0)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("a cat", encoding="utf-8")
    return DatasetConfig(images=str(folder))


def count_uses(dataset: Dataset, *, num_processes: int = 1, **given) -> tuple[float, float]:
    """Return how often the least and the most seen image are seen."""
    given = {"resolution": 64, "bucket_reso_steps": 32, "train_batch_size": 4, **given}
    settings = resolve(
        SDXLConfig,
        given,
        goal="person",
        memory="24 GB",
        num_images=dataset.num_training_samples,
        count_steps=make_step_counter(dataset, num_processes=num_processes),
    )
    return plan_training(dataset, settings, num_processes=num_processes).schedule.times_seen_range


@pytest.mark.parametrize(
    "given", [{}, {"gradient_accumulation_steps": 2}, {"validation_share": 0.2}, {"num_processes": 3}]
)
def test_images_in_many_buckets_are_seen_as_often_as_the_goal_says(tmp_path, given):
    sizes = [(64, 64), (96, 64), (64, 96), (128, 64), (64, 128)] * 3
    dataset = scan_folder(write_images(tmp_path / "images", sizes))
    least, most = count_uses(dataset, **given)
    assert least == most == pytest.approx(GOALS["person"].samples_per_image, abs=1)


def test_regularization_images_take_no_samples_from_the_others(tmp_path):
    own = scan_folder(write_images(tmp_path / "own", [(64, 64)] * 12))
    of_class = replace(write_images(tmp_path / "class", [(64, 64)] * 12, red=9), is_regularization=True)
    least, most = count_uses(join_datasets([own, scan_folder(of_class)]))
    assert least == most == pytest.approx(GOALS["person"].samples_per_image, abs=1)


def test_what_the_trainer_will_refuse_is_counted_as_full_batches(tmp_path):
    dataset = scan_folder(write_images(tmp_path / "images", [(64, 64)] * 4))
    counter = make_step_counter(replace(dataset, images=[replace(image, caption="") for image in dataset.images]))
    settings = resolve(SDXLConfig, {"train_batch_size": 4}, goal="object", memory="24 GB", num_images=4)
    assert counter(settings, 800) == 200
    assert count_full_steps(settings, 800, num_processes=2) == 100
