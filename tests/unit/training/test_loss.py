"""What an error costs, against numbers by hand and the formulas of sd-scripts."""

import math

import pytest
import torch

from trainers.training.loss import per_sample_loss, scheduled_huber_c


def test_the_loss_is_each_samples_mean_also_with_a_time_axis():
    prediction, target = torch.ones(2, 3, 1, 4, 4), torch.zeros(2, 3, 1, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[1, :, :2] = 1
    assert per_sample_loss(prediction, target).tolist() == [1, 1]
    assert per_sample_loss(prediction, target, mask).tolist() == [0, 0.5]


def test_the_errors_of_two_samples_by_hand():
    prediction = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).reshape(2, 1, 1, 2)
    c = torch.tensor([4.0, 3.0])

    def loss(loss_type: str) -> list[float]:
        return per_sample_loss(prediction, torch.zeros(2, 1, 1, 2), loss_type=loss_type, huber_c=c).tolist()

    assert loss("l2") == [4.5, 8] and loss("l1") == [1.5, 2]
    # sqrt(3^2 + 4^2) = 5 for both
    assert loss("huber") == [(2 * 4 * (5 - 4)) / 2, (2 * 3 * (5 - 3)) / 2]
    assert loss("smooth_l1") == [(2 * (5 - 4)) / 2, (2 * (5 - 3)) / 2]


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 4, 3, 6, 5)])
def test_losses_equal_those_of_sd_scripts(shape):
    """conditional_loss (library/train_util.py) of sd-scripts, with reduction none."""
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, *shape, generator=generator)
    c = torch.tensor([0.1, 0.7])
    view = c.view(-1, *([1] * (prediction.ndim - 1)))
    theirs = {
        "huber": 2 * view * (torch.sqrt((prediction - target) ** 2 + view**2) - view),
        "smooth_l1": 2 * (torch.sqrt((prediction - target) ** 2 + view**2) - view),
        "l1": torch.nn.functional.l1_loss(prediction, target, reduction="none"),
    }
    for loss_type, errors in theirs.items():
        ours = per_sample_loss(prediction, target, loss_type=loss_type, huber_c=c)
        torch.testing.assert_close(ours, errors.mean(list(range(1, errors.ndim))), rtol=1e-6, atol=0)


def test_huber_is_the_square_for_small_errors():
    tiny = torch.full((1, 1, 1, 1), 1e-2)
    found = per_sample_loss(tiny, torch.zeros_like(tiny), loss_type="huber", huber_c=torch.tensor([0.5]))
    assert found.item() == pytest.approx(1e-4, rel=1e-3)


def test_schedules_of_huber_c_by_hand():
    progress, sigmas = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, math.inf])

    def find(schedule: str) -> list[float]:
        return scheduled_huber_c(0.25, schedule, progress=progress, sigmas=sigmas).tolist()

    assert find("constant") == [0.25, 0.25, 0.25]
    assert find("exponential") == pytest.approx([1, 0.5, 0.25])
    assert find("snr") == pytest.approx([1, 0.75 / 4 + 0.25, 0.25])


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="loss_type must be l2, l1, huber or smooth_l1, got 'l3'"):
        per_sample_loss(torch.zeros(1, 1), torch.zeros(1, 1), loss_type="l3")
    with pytest.raises(ValueError, match="huber_schedule must be constant, exponential or snr, got 'linear'"):
        scheduled_huber_c(0.1, "linear", progress=torch.zeros(1), sigmas=torch.zeros(1))
