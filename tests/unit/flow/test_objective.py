"""The objective against its formulas."""

import math

import pytest
import torch

from trainers.flow.objective import (
    find_levels,
    find_shift_by_size,
    loss_weights,
    shift_level,
)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shift_keeps_the_ends_and_moves_the_middle(shift):
    assert shift_level(0.0, shift) == 0 and shift_level(1.0, shift) == 1
    assert shift_level(0.5, shift) == pytest.approx(shift / (shift + 1))


def test_the_bell_has_mean_one_and_ends_at_zero():
    levels = torch.linspace(0, 1, 100_001)
    weights = loss_weights(levels, "bell")
    assert weights.mean().item() == pytest.approx(1, abs=1e-4)
    assert weights[0].item() == pytest.approx(0, abs=1e-6) and weights[50_000] == weights.max()


def test_min_snr_caps_the_weight_of_clean_images():
    """In terms of the clean image the weight is min(SNR, 5), and its error is sigma times the
    velocity's.
    """
    for level in (0.1, 0.3, 0.5, 0.9):
        snr = ((1 - level) / level) ** 2
        expected = min(snr, 5.0) * level**2
        assert loss_weights(torch.tensor([level]), "min_snr").item() == pytest.approx(expected, rel=1e-5)


def test_no_weighting_is_one():
    assert loss_weights(torch.tensor([0.1, 0.9]), "none").tolist() == [1, 1]
    with pytest.raises(ValueError, match="loss_weighting must be"):
        loss_weights(torch.tensor([0.1]), "other")


def test_the_shift_by_size_is_fluxs_line():
    assert find_shift_by_size((256, 256)) == pytest.approx(math.exp(0.5))
    assert find_shift_by_size((1024, 1024)) == pytest.approx(math.exp(1.15))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("timesteps", [(0, 1000), (875, 1000), (0, 875), (400, 401)])
def test_levels_are_found_for_timesteps(shift, timesteps):
    """The shift is undone: t / (shift - (shift - 1) * t)."""
    found = find_levels(lambda level: 1000 * shift_level(level, shift), timesteps)
    expected = [t / 1000 / (shift - (shift - 1) * t / 1000) for t in timesteps]
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_schedule_may_end_before_the_last_timestep():
    assert find_levels(lambda level: 10 + 980 * level, (0, 1000)) == (0.0, 1.0)
