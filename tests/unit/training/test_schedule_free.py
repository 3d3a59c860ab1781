"""Schedule-free optimizers: what is saved, drawn and measured is the average, what is trained is
not, and looking at it changes nothing.
"""

import copy

import pytest
import torch
from torch import nn

from tests.unit.training.test_loop import dataset  # noqa: F401 (a fixture)
from tests.unit.training.test_resume import train
from tests.unit.training.toy_family import PreparedToy
from trainers.training import validation_plan
from trainers.training.config import TrainingConfig
from trainers.training.flat_weights import FlatWeights, TrainedGroup
from trainers.training.optimizer_step import OptimizerStep

SETTINGS = {"lr_scheduler": "constant", "lr_warmup_steps": 0.0}
OPTIMIZERS = {"AdamWScheduleFree": 1e-2, "ProdigyPlusScheduleFree": 1.0, "schedulefree.RAdamScheduleFree": 1e-2}


def make_step(optimizer: str, dtype: torch.dtype = torch.float32) -> tuple[OptimizerStep, FlatWeights]:
    generator = torch.Generator().manual_seed(0)
    weights = FlatWeights([nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2)], dtype)
    config = TrainingConfig(optimizer=optimizer, weight_decay=0.0, max_grad_norm=0.0, **SETTINGS)
    groups = [TrainedGroup("unet", weights, OPTIMIZERS[optimizer])]
    return OptimizerStep(groups, config, total_steps=50, precision="no"), weights


def make_update(step: OptimizerStep, weights: FlatWeights, number: int) -> None:
    loss = sum((each.float() - 1).square().sum() for each in weights.parameters)
    step.backward(loss)
    step.update(number, loss.detach())


def test_the_average_of_adamw_is_the_mean_of_its_sequence_z():
    """With a constant rate every z counts alike (Defazio et al. 2024, equation 5)."""
    step, weights = make_step("AdamWScheduleFree")
    sequence = []
    for number in range(1, 9):
        make_update(step, weights, number)
        state, _ = step.state_dict()
        sequence.append(state["state"][0]["z"].clone())
        with step.averaged():
            torch.testing.assert_close(weights.flat.detach(), torch.stack(sequence).mean(0), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(weights.flat, sequence[-1]) or number == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looking_at_the_average_changes_nothing(optimizer, dtype):
    plain, watched = make_step(optimizer, dtype), make_step(optimizer, dtype)
    for number in range(1, 12):
        make_update(*plain, number)
        make_update(*watched, number)
        step, weights = watched
        with pytest.raises(KeyError), step.averaged():
            assert torch.equal(torch.cat([each.flatten() for each in weights.parameters]), weights.flat.to(dtype))
            raise KeyError
    assert torch.equal(plain[1].flat, watched[1].flat)
    assert all(torch.equal(*pair) for pair in zip(plain[1].parameters, watched[1].parameters, strict=True))


def test_other_optimizers_have_no_average():
    config = TrainingConfig(**SETTINGS)
    weights = FlatWeights([nn.Parameter(torch.ones(3))])
    step = OptimizerStep([TrainedGroup("unet", weights, 0.1)], config, total_steps=5, precision="no")
    make_update(step, weights, 1)
    before = weights.flat.detach().clone()
    with step.averaged():
        assert torch.equal(weights.flat, before)


def read_up(toy: PreparedToy) -> torch.Tensor:
    (module,) = toy.adapted.read(alpha=1.0).values()
    return module.up.clone()


@pytest.mark.parametrize("optimizer", ["AdamWScheduleFree", "ProdigyPlusScheduleFree"])
def test_samples_validation_and_every_file_show_the_average(dataset, tmp_path, monkeypatch, optimizer):  # noqa: F811
    monkeypatch.setattr(validation_plan, "MAX_SHARE", 10.0)
    seen: dict[str, list[torch.Tensor]] = {"draw_samples": [], "validation_losses": [], "loss_terms": []}
    for name, found in seen.items():
        real = getattr(PreparedToy, name)

        def listen(toy, *given, real=real, found=found):
            found.append(read_up(toy))
            return real(toy, *given)

        monkeypatch.setattr(PreparedToy, name, listen)
    settings = {**SETTINGS, "optimizer": optimizer, "learning_rate": OPTIMIZERS[optimizer], "alpha": 1.0}
    plain = train(dataset, tmp_path / "plain", validate_every_n_steps=-1, **settings)
    for found in seen.values():
        found.clear()
    trained = train(
        dataset,
        tmp_path / "watched",
        sample_every_n_steps=6,
        validate_every_n_steps=6,
        save_every_n_steps=6,
        **settings,
    )
    assert trained.losses == plain.losses, "looking at the average has changed the training"
    name = next(name for name in trained.state_dict if "lora_up" in name)
    assert torch.equal(trained.state_dict[name], plain.state_dict[name])
    assert torch.equal(seen["draw_samples"][-1], trained.state_dict[name])
    assert torch.equal(seen["validation_losses"][-1], trained.state_dict[name])
    assert not torch.equal(seen["loss_terms"][-1], seen["draw_samples"][-1])
    assert not torch.equal(seen["draw_samples"][1], seen["loss_terms"][-6])


def test_a_state_keeps_the_weights_that_are_trained_and_each_dtype(dataset, tmp_path):  # noqa: F811
    step, weights = make_step("ProdigyPlusScheduleFree")
    for number in range(1, 4):
        make_update(step, weights, number)
    optimizer, scaler = copy.deepcopy(step.state_dict())
    other, again = make_step("ProdigyPlusScheduleFree")
    with torch.no_grad():
        again.flat.copy_(weights.flat)
    other.restore(optimizer, scaler, schedule_step=3)
    assert {value.dtype for value in other.state_dict()[0]["state"][0].values() if isinstance(value, torch.Tensor)} == {
        torch.float32,
        torch.bfloat16,
    }
    for number in range(4, 9):
        make_update(step, weights, number)
        make_update(other, again, number)
    assert torch.equal(weights.flat, again.flat)
