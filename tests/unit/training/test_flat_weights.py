"""The trained matrices as one tensor, against torch's usual way with one parameter per matrix."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from trainers.training import flat_weights
from trainers.training.config import TrainingConfig
from trainers.training.flat_weights import FlatWeights, TrainedGroup
from trainers.training.optimizer_step import OptimizerStep
from trainers.training.optimizer_table import OPTIMIZERS
from trainers.training.optimizers import ParameterGroup, make_optimizer

SHAPES = [(4, 30), (50, 4), (4, 7, 3, 3), (6, 4, 1, 1), (4, 33)]
STEPS = 5


def make_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def compute_loss(parameters: list[nn.Parameter], step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    factors = [torch.randn(each.shape, generator=generator).to(each.dtype) for each in parameters]
    return sum(((each * factor).sin().sum() for each, factor in zip(parameters, factors, strict=True)), torch.zeros(()))


def make_step(weights: FlatWeights, *, precision: str = "no", **given: object) -> OptimizerStep:
    config = TrainingConfig(lr_scheduler="constant", lr_warmup_steps=0.0, **given)
    return OptimizerStep([TrainedGroup("part", weights, 1e-2)], config, total_steps=99, precision=precision)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion", "Adafactor", "Prodigy", "AdamW8bit"])
@pytest.mark.parametrize("max_grad_norm", [0.5, 0.0])
def test_float32_trains_bit_for_bit_as_one_parameter_per_matrix(optimizer, max_grad_norm, monkeypatch):
    monkeypatch.setattr(flat_weights, "AT_ONCE", 2)
    own, others = make_parameters(), make_parameters()
    weights = FlatWeights(own)
    step = make_step(weights, optimizer=optimizer, max_grad_norm=max_grad_norm, learning_rate=1e-2)
    usual = make_optimizer(
        optimizer, [ParameterGroup("part", others, 1e-2)], weight_decay=TrainingConfig().weight_decay
    )
    for number in range(1, STEPS + 1):
        for part in (0, 100):  # two micro-batches
            step.backward(compute_loss(own, number + part))
            compute_loss(others, number + part).backward()
        step.update(number, torch.ones(()))
        if max_grad_norm:
            nn.utils.clip_grad_norm_(others, max_grad_norm)
        usual.step()
        usual.zero_grad()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own, others, strict=True))
    assert all(torch.equal(mine, view) for mine, view in zip(own, weights.split(weights.flat), strict=True))


def test_in_half_precision_the_layers_have_a_copy_and_the_small_steps_are_not_lost():
    own = make_parameters()
    weights = FlatWeights(own, torch.bfloat16)
    assert all(each.dtype == torch.bfloat16 for each in own) and weights.flat.dtype == torch.float32
    before = weights.flat.detach().clone()
    step = make_step(weights, precision="bf16", weight_decay=0.0)
    step._optimizer.param_groups[0]["lr"] = step._lr_scheduler.base_lrs[0] = 1e-5
    for number in range(1, 101):
        step.backward(sum(each.float().sum() for each in own))
        step.update(number, torch.ones(()))
    torch.testing.assert_close(before - weights.flat, torch.full_like(before, 1e-3), rtol=1e-2, atol=1e-6)
    assert all(torch.equal(mine, view.bfloat16()) for mine, view in zip(own, weights.split(weights.flat), strict=True))


def test_gradients_of_micro_batches_add_up_in_float32():
    """In bf16, 256 + 1 is 256."""
    (weight,) = own = [nn.Parameter(torch.zeros(3))]
    weights = FlatWeights(own, torch.bfloat16)
    for factor in (256.0, 1.0, 1.0):
        (weight * factor).sum().backward()
        weights.collect_gradients()
        assert weight.grad is None
    assert weights.flat.grad.tolist() == [258.0] * 3


def test_a_layer_without_a_gradient_counts_as_zero_and_forgotten_gradients_are_gone():
    first, second = own = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    weights = FlatWeights(own)
    matrices = weights.as_matrices()
    second.sum().backward()
    weights.collect_gradients()
    weights.share_gradients()
    assert weights.flat.grad.tolist() == [0, 0, 1, 1, 1]
    assert [matrix.grad.tolist() for matrix in matrices] == [[0, 0], [1, 1, 1]]
    first.sum().backward()
    weights.forget_gradients()
    assert all(each.grad is None for each in (*own, *matrices, weights.flat))


def test_an_optimizer_that_looks_at_shapes_gets_the_matrices():
    weights = FlatWeights(make_parameters())
    assert [p.shape for p in make_step(weights, optimizer="AdamW")._optimizer.param_groups[0]["params"]] == [
        weights.flat.shape
    ]
    shapes = [p.shape for p in make_step(weights, optimizer="torch.optim.RAdam")._optimizer.param_groups[0]["params"]]
    assert shapes == [torch.Size(shape) for shape in SHAPES]


@pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_passes_over_weights_after_their_last_step(row):
    """Also where the sum over several processes has given them a gradient of zeros."""
    groups = [
        TrainedGroup(name, FlatWeights([nn.Parameter(torch.full((4, 3), 0.5))]), 0.5)
        for name in ("unet", "text_encoder")
    ]
    config = TrainingConfig(optimizer=row.name, lr_scheduler="constant", lr_warmup_steps=0.0, weight_decay=0.1)
    step = OptimizerStep(groups, config, total_steps=9, precision="no")
    unet, encoder = (group.weights for group in groups)
    encoder.last_step = 2
    seen = []
    for number in range(1, 5):
        loss = sum(each.square().sum() for weights in (unet, encoder) for each in weights.parameters)
        step.backward(loss)
        if number > 2:
            encoder.flat.grad.zero_()
        step.update(number, loss.detach())
        seen.append([weights.flat.detach().clone() for weights in (unet, encoder)])
    assert all(not torch.equal(one[0], other[0]) for one, other in itertools.pairwise(seen))
    assert not torch.equal(seen[0][1], seen[1][1]) and torch.equal(seen[1][1], seen[3][1])
