"""Draws depend only on seed, step and item."""

import pytest
import torch

from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.randomness import draw_item, draw_timestep

LATENTS = torch.zeros(4, 8, 8)


def draw(*, seed: int = 1, step: int = 2, item: int = 3, **settings):
    return draw_item(SDXLConfig(seed=seed, **settings), LATENTS, step=step, item=item)


def test_the_same_seed_step_and_item_give_the_same_draw_whatever_happened_before():
    first = draw()
    torch.randn(100)
    second = draw()
    assert first.timestep == second.timestep
    assert torch.equal(first.noise.noise, second.noise.noise)


def test_another_seed_step_or_item_gives_another_timestep():
    assert len({draw().timestep, draw(seed=9).timestep, draw(step=9).timestep, draw(item=9).timestep}) == 4


def test_options_of_the_noise_do_not_change_the_timestep():
    assert draw().timestep == draw(noise_offset=0.1, immiscible_noise=3, ip_noise_gamma=0.1).timestep


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    draw(noise_offset=0.1, multires_noise_iterations=4, ip_noise_gamma=0.1, timestep_sampling="sigmoid")
    assert torch.equal(before, torch.random.get_rng_state())


def list_timesteps(**settings) -> torch.Tensor:
    return torch.tensor([draw_timestep(SDXLConfig(**settings), step=step, item=3) for step in range(2000)]).float()


@pytest.mark.parametrize("sampling", ["auto", "uniform"])
def test_timesteps_are_uniform_by_default(sampling):
    timesteps = list_timesteps(timestep_sampling=sampling)
    assert (timesteps.min() < 10) and (timesteps.max() > 989) and abs(timesteps.mean() - 499.5) < 20
    assert abs(timesteps.std() - 1000 / 12**0.5) < 10


def test_logit_normal_timesteps_have_its_quartiles():
    """Those of the normal draw, through the logistic function: 1 / (1 + exp(0.6745 - 1)), ..."""
    timesteps = list_timesteps(timestep_sampling="logit_normal", logit_mean=1.0)
    quartiles = [1000 / (1 + torch.tensor(-1 - 0.6745 * side).exp().item()) for side in (-1, 0, 1)]
    found = torch.quantile(timesteps, torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert found == pytest.approx(quartiles, abs=25)


@pytest.mark.parametrize("sampling", ["uniform", "sigmoid", "logit_normal"])
@pytest.mark.parametrize("limits", [(200, 500), (0, 1), (999, 0)])
def test_timesteps_stay_in_their_range(sampling, limits):
    low, high = limits
    timesteps = {
        draw_timestep(
            SDXLConfig(
                min_timestep=low, max_timestep=high, timestep_sampling=sampling, logit_std=6.0, sigmoid_scale=6.0
            ),
            step=step,
            item=0,
        )
        for step in range(60)
    }
    assert min(timesteps) >= low and max(timesteps) < (high or 1000)
    assert len(timesteps) > 20 or limits != (200, 500)


def test_a_range_of_uniform_timesteps_is_that_of_sd_scripts():
    """torch.randint(min_timestep, max_timestep): the last is not drawn."""
    assert {draw_timestep(SDXLConfig(min_timestep=4, max_timestep=7), step=step, item=0) for step in range(50)} == {
        4,
        5,
        6,
    }
