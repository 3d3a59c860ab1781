"""What a flow training takes for open settings: rules, not numbers of families."""

import pytest

from trainers.flow.families import FAMILIES, FlowFamilyRow, find_family
from trainers.flow.presets import resolve_flow
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
