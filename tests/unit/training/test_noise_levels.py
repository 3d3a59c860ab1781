"""Which noise levels are drawn."""

import math

import pytest

from trainers.flow.objective import find_levels, shift_level
from trainers.training.config import TrainingConfig
from trainers.training.noise_levels import draw_level, sample_level

SAMPLINGS = ("uniform", "sigmoid", "logit_normal")


def draw(sampling: str, *, between: tuple[float, float] = (0.0, 1.0), count: int = 300, **settings) -> list[float]:
    return [
        draw_level(TrainingConfig(**settings), sampling, step=step, item=1, between=between) for step in range(count)
    ]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("timesteps", [(875, 1000), (0, 875)])
def test_an_expert_is_trained_at_its_own_timesteps(sampling, timesteps):
    """As the whole model would be there: a draw within the range is that of the whole range."""
    between = find_levels(lambda level: 1000 * shift_level(level, 3.0), timesteps)
    levels, whole = draw(sampling, between=between), draw(sampling)
    drawn = [1000 * shift_level(level, 3.0) for level in levels]
    assert timesteps[0] - 1e-6 <= min(drawn) and max(drawn) <= timesteps[1] + 1e-6
    assert len(set(levels)) == len(levels)
    inside = [number for number, level in enumerate(whole) if between[0] <= level <= between[1]]
    assert inside and all(levels[number] == whole[number] for number in inside)


def test_a_range_that_the_sampling_never_draws_is_an_error():
    with pytest.raises(ValueError, match="timestep_sampling sigmoid draws no timesteps between 998 and 999"):
        draw("sigmoid", between=(0.99999, 0.999999), count=1, min_timestep=998, max_timestep=999)


@pytest.mark.parametrize(
    "wrong", [{"min_timestep": 500, "max_timestep": 500}, {"min_timestep": 900, "max_timestep": 1}]
)
def test_an_empty_range_is_an_error(wrong):
    with pytest.raises(ValueError, match="max_timestep must be above min_timestep"):
        TrainingConfig(**wrong)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("uniform", 0.25), ("sigmoid", 1 / (1 + math.exp(-2.0))), ("logit_normal", 1 / (1 + math.exp(-2.5)))],
)
def test_levels_follow_their_formula(sampling, expected):
    assert sample_level(sampling, 0.25, 1.0, scale=2.0, mean=-0.5, std=3.0) == pytest.approx(expected)


def test_an_unknown_sampling_is_refused():
    with pytest.raises(ValueError, match="timestep_sampling must be"):
        sample_level("cosine", 0.5, 0.0, scale=1.0, mean=0.0, std=1.0)
