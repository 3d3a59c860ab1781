"""Noise depends only on seed, step and item, and each option does what its source says."""

import pytest
import torch
from torch import Tensor

from trainers.training.config import TrainingConfig
from trainers.training.generators import generator_for
from trainers.training.noise import NoiseDraw, add_coarse_noise, draw_noise, stack_noise

LATENTS = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(7))
OPTIONS = [
    {"noise_offset": 0.1},
    {"multires_noise_iterations": 6},
    {"ip_noise_gamma": 0.1},
    {"immiscible_noise": 4},
]


def draw(*, seed: int = 1, step: int = 2, item: int = 3, latents: Tensor = LATENTS, **settings) -> NoiseDraw:
    return draw_noise(latents, TrainingConfig(seed=seed, **settings), step=step, item=item)


@pytest.mark.parametrize("settings", [{}, *OPTIONS])
def test_the_same_seed_step_and_item_give_the_same_noise_whatever_happened_before(settings):
    first = draw(**settings)
    torch.randn(100)
    second = draw(**settings)
    assert torch.equal(first.noise, second.noise)
    assert first.input_noise is None or torch.equal(first.input_noise, second.input_noise)
    others = [draw(**settings, **{name: 9}).noise for name in ("seed", "step", "item")]
    assert all(not torch.equal(other, first.noise) for other in others)


def test_without_options_the_noise_is_one_normal_draw():
    assert torch.equal(draw().noise, torch.randn(4, 8, 8, generator=generator_for(1, "noise", 2, 3)))
    assert draw().input_noise is None


@pytest.mark.parametrize("options", OPTIONS)
def test_options_leave_the_global_generator_alone(options):
    before = torch.random.get_rng_state()
    draw(**options)
    assert torch.equal(before, torch.random.get_rng_state())


def test_noise_offset_moves_each_channel_as_a_whole():
    difference = draw(noise_offset=0.1).noise - draw().noise
    torch.testing.assert_close(difference, difference[:, :1, :1].expand_as(difference), rtol=0, atol=1e-6)
    assert difference[:, 0, 0].unique().numel() == 4


def test_input_perturbation_changes_what_the_model_sees_and_not_its_target():
    drawn = draw(ip_noise_gamma=0.25)
    assert torch.equal(drawn.noise, draw().noise)
    added = (drawn.input_noise - drawn.noise) / 0.25
    assert abs(added.mean()) < 0.2 and abs(added.std() - 1) < 0.1


def test_the_nearest_of_several_draws_is_used():
    noise = draw(immiscible_noise=16).noise
    candidates = [draw().noise]
    candidates += [torch.randn(4, 8, 8, generator=generator_for(1, "noise", 2, 3, number)) for number in range(1, 16)]
    distances = torch.stack([(candidate - LATENTS).norm() for candidate in candidates])
    assert torch.equal(noise, candidates[int(distances.argmin())]) and distances.argmin() > 0
    assert torch.equal(draw(immiscible_noise=1).noise, draw().noise)


def test_more_draws_come_nearer():
    distances = [
        torch.stack([(draw(step=step, immiscible_noise=count).noise - LATENTS).norm() for step in range(40)]).mean()
        for count in (1, 4, 64)
    ]
    assert distances[0] > distances[1] > distances[2]


def pyramid_noise_like(noise: Tensor, iterations: int, discount: float, generator: torch.Generator) -> Tensor:
    """That of sd-scripts (library/custom_train_functions.py), with its draws from a generator."""
    batch, channels, height, width = noise.shape
    upsample = torch.nn.Upsample(size=(height, width), mode="bilinear")
    for i in range(iterations):
        r = torch.rand((), generator=generator).item() * 2 + 2
        hn, wn = max(1, int(height / (r**i))), max(1, int(width / (r**i)))
        noise = noise + upsample(torch.randn(batch, channels, hn, wn, generator=generator)) * discount**i
        if wn == 1 or hn == 1:
            break
    return noise / noise.std()


@pytest.mark.parametrize(("iterations", "discount"), [(1, 0.3), (6, 0.3), (10, 0.9)])
def test_multires_noise_is_that_of_sd_scripts(iterations, discount):
    noise = draw().noise
    ours = add_coarse_noise(noise, iterations, discount=discount, generator=torch.Generator().manual_seed(3))
    theirs = pyramid_noise_like(noise[None], iterations, discount, torch.Generator().manual_seed(3))[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert ours.std().item() == pytest.approx(1, abs=1e-5)


def test_multires_noise_has_more_of_the_coarse():
    """The means of large blocks spread more than those of white noise of the same deviation."""
    large = torch.zeros(4, 64, 64)
    plain, coarse = (
        draw(latents=large, multires_noise_iterations=count, multires_noise_discount=0.9) for count in (0, 8)
    )
    spreads = [torch.nn.functional.avg_pool2d(drawn.noise, 16).std() for drawn in (plain, coarse)]
    assert spreads[1] > 3 * spreads[0]


@pytest.mark.parametrize("options", OPTIONS)
def test_latents_with_a_time_axis_get_noise_too(options):
    assert draw(latents=torch.zeros(16, 2, 8, 6), **options).noise.shape == (16, 2, 8, 6)


def test_a_batch_has_input_noise_only_if_it_is_perturbed():
    assert stack_noise([draw(), draw(item=4)])["input_noise"] is None
    stacked = stack_noise([draw(ip_noise_gamma=0.1), draw(item=4, ip_noise_gamma=0.1)])
    assert stacked["noise"].shape == stacked["input_noise"].shape == (2, 4, 8, 8)
