"""What a flow training takes for open settings: rules, not numbers of families."""

import pytest

from trainers.check.memory_estimate import MemoryEstimate
from trainers.flow.families import FAMILIES, FlowFamilyRow, find_family
from trainers.flow.presets import choose_resolution, describe_need, resolve_flow
from trainers.training.presets import GOALS, MEMORY_PRESETS

ROW = FlowFamilyRow(name="Someone", rank=24, learning_rate=3e-4, timestep_sampling="logit_normal")


def resolve(row=ROW, *, goal="object", memory="8 GB", **given):
    return resolve_flow(given, row, goal=goal, memory=memory, num_images=20)


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
def test_every_family_resolves(row):
    settings = resolve(row)
    config = settings.training
    assert (config.rank, config.learning_rate) == (row.rank, row.learning_rate)
    assert config.timestep_sampling == row.timestep_sampling
    assert config.discrete_flow_shift == (row.discrete_flow_shift or 0)
    assert settings.buckets.bucket_reso_steps % row.resolution_step == 0


@pytest.mark.parametrize("goal", GOALS)
def test_the_goal_decides_steps_and_the_ratio_of_alpha(goal):
    config = resolve(goal=goal).training
    samples = max(GOALS[goal].samples_per_image * 20, GOALS[goal].num_samples[0])
    assert config.max_train_steps * config.gradient_accumulation_steps == samples
    assert config.alpha == 24 * GOALS[goal].alpha_per_rank


@pytest.mark.parametrize("memory", MEMORY_PRESETS)
def test_the_memory_decides_the_rest_with_single_images_and_checkpointing(memory):
    settings, preset = resolve(memory=memory), MEMORY_PRESETS[memory]
    config = settings.training
    assert (config.optimizer, settings.buckets.resolution) == (preset.optimizer, preset.resolution)
    assert config.train_batch_size == 1 and config.gradient_checkpointing
    assert config.gradient_accumulation_steps == preset.train_batch_size * preset.gradient_accumulation_steps


@pytest.mark.parametrize(
    "given",
    [
        {"rank": 4, "alpha": 3.0, "learning_rate": 1e-3},
        {"timestep_sampling": "uniform", "discrete_flow_shift": 5.0},
        {"gradient_checkpointing": False, "optimizer": "AdamW", "gradient_accumulation_steps": 7},
        {"max_train_steps": 12},
    ],
)
def test_given_settings_stay(given):
    config = resolve(**given).training
    assert {name: getattr(config, name) for name in given} == given


def test_a_given_batch_size_is_not_accumulated():
    config = resolve(train_batch_size=3).training
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (3, 1)


@pytest.mark.parametrize(("step", "given", "expected"), [(16, 64, 64), (48, 64, 192), (32, 32, 32), (32, 128, 128)])
def test_sides_of_buckets_are_multiples_of_the_familys_step(step, given, expected):
    row = FlowFamilyRow(name="Someone", resolution_step=step)
    assert resolve(row, bucket_reso_steps=given).buckets.bucket_reso_steps == expected


def test_given_sides_that_do_not_fit_are_refused():
    row = FlowFamilyRow(name="Someone", resolution_step=32)
    with pytest.raises(ValueError, match="multiple of 32 for Someone, got 48"):
        resolve(row, bucket_reso_steps=48)


def test_an_older_model_is_trained_at_its_own_resolution():
    assert resolve(find_family("SD15")).buckets.resolution == 512
    assert resolve(find_family("SD15"), resolution=768).buckets.resolution == 768


def test_an_expert_has_its_own_timesteps_and_given_ones_win():
    family = find_family("WAN21_T2V")
    high, low = (family.for_file(f"wan2.2_t2v_{noise}_noise_14B_fp8_scaled") for noise in ("high", "low"))
    assert [resolve(row).training.timesteps for row in (high, low, family)] == [(875, 1000), (0, 875), (0, 1000)]
    assert family.for_file("Wan2_2-T2V-A14B-LOW_fp8").timesteps == (0, 875)
    assert resolve(high, min_timestep=1, max_timestep=900).training.timesteps == (1, 900)
    assert resolve(high, max_timestep=900).training.timesteps == (875, 900)


GIB = 2**30


def imagine(total: float, *, is_rough: bool = False) -> MemoryEstimate:
    """An estimate whose total is so many GB."""
    needed = round((total * GIB - 600 * 2**20) / 1.05)
    return MemoryEstimate(needed, 0, 0, 0, is_rough=is_rough)


@pytest.mark.parametrize(
    ("sizes", "resolution"),
    [
        ({1024: 7.1}, 1024),  # of 8 GB, 7.2 with a tenth to spare
        ({1024: 7.3, 768: 5.0}, 768),
        ({1024: 9.0, 768: 8.0, 512: 7.0}, 512),
        ({1024: 20.0, 768: 19.0, 512: 18.0}, 512),
        ({512: 9.0}, 512),
    ],
)
def test_the_resolution_is_the_highest_that_fits(sizes, resolution):
    chosen, needed = choose_resolution(max(sizes), lambda size: imagine(sizes[size]), 8 * GIB)
    assert (chosen, needed) == (resolution, imagine(sizes[resolution]))


def test_a_rough_estimate_lowers_nothing():
    assert choose_resolution(1024, lambda _: imagine(20, is_rough=True), 8 * GIB)[0] == 1024


def test_what_does_not_fit_is_said_with_the_smallest_preset_that_does():
    assert describe_need(imagine(7.1), 512, ROW, 8 * GIB) == ""
    assert describe_need(imagine(7.3), 512, ROW, 8 * GIB) == (
        "Someone needs about 7.3 GB at 512 pixels, with the weights of its blocks in main memory, which is too much "
        "for 8.0 GB: the smallest memory that fits is 12 GB"
    )
    assert describe_need(imagine(30), 512, ROW, 24 * GIB).endswith("for 24.0 GB: no preset of memory fits")
