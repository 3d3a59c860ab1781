"""Draws depend only on seed, step and item."""

import torch

from trainers.sdxl.randomness import draw_item

ITEM = {"seed": 1, "step": 2, "item": 3, "latent_shape": (4, 8, 8), "num_timesteps": 1000}


def test_the_same_seed_step_and_item_give_the_same_draw_whatever_happened_before():
    first = draw_item(**ITEM)
    torch.randn(100)
    second = draw_item(**ITEM)
    assert first.timestep == second.timestep
    assert torch.equal(first.noise, second.noise)


def test_another_seed_step_or_item_gives_other_noise():
    noises = [draw_item(**{**ITEM, name: 9}).noise for name in ("seed", "step", "item")] + [draw_item(**ITEM).noise]
    assert all(not torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


def test_options_do_not_change_the_noise_or_the_timestep():
    plain, optioned = draw_item(**ITEM), draw_item(**ITEM, random_flip=True)
    assert torch.equal(plain.noise, optioned.noise)
    assert plain.timestep == optioned.timestep


def test_noise_offset_moves_each_channel_as_a_whole():
    difference = draw_item(**ITEM, noise_offset=0.1).noise - draw_item(**ITEM).noise
    torch.testing.assert_close(difference, difference[:, :1, :1].expand_as(difference), rtol=0, atol=1e-6)
    assert difference[:, 0, 0].unique().numel() == 4


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    draw_item(**ITEM, noise_offset=0.1, random_flip=True)
    assert torch.equal(before, torch.random.get_rng_state())


def test_draws_have_the_right_distribution():
    draws = [draw_item(**{**ITEM, "step": step}, random_flip=True) for step in range(2000)]
    timesteps = torch.tensor([draw.timestep for draw in draws]).float()
    assert (timesteps.min() < 10) and (timesteps.max() > 989) and abs(timesteps.mean() - 499.5) < 20
    assert abs(sum(draw.flip for draw in draws) / 2000 - 0.5) < 0.04
    noise = torch.stack([draw.noise for draw in draws])
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
