"""Learning-rate schedules against their formulas, and transformers' where it has them."""

import math

import pytest
import torch
from transformers import get_wsd_schedule

from trainers.training.config import TrainingConfig
from trainers.training.lr_schedule import count_steps, make_lr_scheduler


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def walk(schedule: torch.optim.lr_scheduler.LRScheduler, total: int) -> list[float]:
    seen = []
    for _ in range(total):
        seen.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return seen


def list_rates(name: str, *, warmup: int, total: int, decay: int = 0) -> list[float]:
    schedule = make_lr_scheduler(name, make_optimizer(), warmup_steps=warmup, total_steps=total, decay_steps=decay)
    return walk(schedule, total)


def test_a_schedule_counts_optimizer_steps_and_warms_up():
    cosine = list_rates("cosine", warmup=10, total=110)
    assert cosine[0] == 0 and cosine[5] == pytest.approx(0.5) and cosine[10] == 1
    assert cosine[60] == pytest.approx(0.5) and cosine[109] < 0.001


def test_a_constant_schedule_keeps_its_warm_up():
    assert list_rates("constant", warmup=4, total=8) == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_rex_follows_the_papers_formula():
    rates = list_rates("rex", warmup=2, total=10)
    expected = [0, 0.5, *((1 - step / 8) / (1 / 2 + (1 - step / 8) / 2) for step in range(8))]
    assert rates == pytest.approx(expected)
    assert rates[6] == pytest.approx(2 / 3), "half of the way down, a line would be at 1/2"


@pytest.mark.parametrize(("warmup", "decay"), [(0, 5), (3, 4), (3, 0)])
def test_warmup_stable_decay_is_transformers_schedule(warmup, decay):
    theirs = get_wsd_schedule(
        make_optimizer(), num_warmup_steps=warmup, num_decay_steps=decay, num_stable_steps=20 - warmup - decay
    )
    ours = list_rates("warmup_stable_decay", warmup=warmup, total=20, decay=decay)
    assert ours == pytest.approx(walk(theirs, 20))
    assert ours[19] == (1 if decay == 0 else pytest.approx(0.5 * (1 + math.cos(math.pi * (1 - 1 / decay)))))


def test_a_cooldown_is_one_minus_the_root_of_its_progress():
    rates = list_rates("constant_with_cooldown", warmup=2, total=12, decay=4)
    assert rates == pytest.approx(
        [0, 0.5, *[1] * 6, 1, 1 - math.sqrt(1 / 4), 1 - math.sqrt(2 / 4), 1 - math.sqrt(3 / 4)]
    )


def test_a_cooldown_longer_than_the_run_begins_at_the_end_of_the_warm_up():
    assert list_rates("warmup_stable_decay", warmup=2, total=6, decay=100) == pytest.approx(
        [0, 0.5, 1, *(0.5 * (1 + math.cos(math.pi * step / 4)) for step in (1, 2, 3))]
    )


@pytest.mark.parametrize(
    "name", [choice for choice in TrainingConfig.__dataclass_fields__["lr_scheduler"].metadata["choices"]]
)
def test_every_schedule_can_be_chosen_and_goes_to_the_end(name):
    rates = list_rates(name, warmup=1, total=9, decay=3)
    assert rates[0] == 0 and rates[1] == 1 and (rates[-1] == 1) == (name == "constant")


def test_a_setting_is_a_number_of_steps_or_a_share():
    assert [count_steps(setting, 1500) for setting in (0.05, 200, 0, 2000)] == [75, 200, 0, 1500]
