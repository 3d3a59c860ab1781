"""The loss scale of fp16 against torch's GradScaler, number by number."""

import math

import torch
from torch import nn

from trainers.training import loss_scale
from trainers.training.config import TrainingConfig
from trainers.training.flat_weights import FlatWeights, TrainedGroup
from trainers.training.loss_scale import LossScale
from trainers.training.optimizer_step import OptimizerStep

OVERFLOWS = [False, False, True, False, False, False, False, True, True, False, False, False]


def test_the_scale_and_the_weights_are_those_of_gradscaler(monkeypatch):
    """With an interval of 3 steps, so that the scale grows."""
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    own, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    config = TrainingConfig(lr_scheduler="constant", lr_warmup_steps=0.0, learning_rate=0.1)
    weights = FlatWeights([own])
    step = OptimizerStep([TrainedGroup("part", weights, 0.1)], config, total_steps=99, precision="fp16")
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    optimizer = torch.optim.AdamW([other], lr=0.1, weight_decay=config.weight_decay)
    for number, overflows in enumerate(OVERFLOWS, start=1):
        step.backward((own * torch.tensor([0.1, 0.2, 0.3])).sum())
        if overflows:
            weights.flat.grad[1] = math.inf
        step.update(number, torch.ones(()))
        optimizer.zero_grad()
        scaler.scale((other * torch.tensor([0.1, 0.2, 0.3])).sum()).backward()
        if overflows:
            other.grad[1] = math.inf
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([other], config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        assert step.state_dict()[1] == {
            "scale": scaler.get_scale(),
            "_growth_tracker": scaler.state_dict()["_growth_tracker"],
        }
        torch.testing.assert_close(own.detach(), other.detach(), rtol=1e-6, atol=0)
    assert step.schedule_step == OVERFLOWS.count(False)


def test_a_run_goes_on_from_the_state_of_gradscaler():
    state = torch.amp.GradScaler("cpu", init_scale=1024.0).state_dict()
    scale = LossScale(is_on=True)
    scale.load_state_dict({**state, "_growth_tracker": 7})
    assert scale.state_dict() == {"scale": 1024.0, "_growth_tracker": 7}


def test_without_fp16_nothing_is_scaled_or_kept():
    scale, loss = LossScale(is_on=False), torch.ones(())
    scale.update(has_overflowed=True)
    assert scale.scale(loss) is loss and scale.value == 1 and scale.state_dict() == {}
