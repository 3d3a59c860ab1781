"""The loss plot and the running average in it."""

import pytest

from trainers.training.loss_plot import draw_loss_plot, running_average


def test_the_running_average_starts_at_the_first_loss_and_settles():
    averages = running_average([1.0] + [0.0] * 200)
    assert averages[0] == 1.0 and averages[-1] < 0.01


@pytest.mark.parametrize("losses", [[], [0.1], [0.0, 0.0], [0.1] * 50 + [1e6] + [0.1] * 50])
def test_any_losses_can_be_plotted(losses):
    assert draw_loss_plot(losses).size == (900, 420)
