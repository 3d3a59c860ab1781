"""Optimizers lower a loss, and errors say what they need."""

import re
import sys

import prodigyopt
import pytest
import torch
from torch import nn

from trainers.training.config import TrainingConfig
from trainers.training.optimizer_args import parse_optimizer_args
from trainers.training.optimizer_table import OPTIMIZERS, require_listed_optimizer
from trainers.training.optimizers import (
    ParameterGroup,
    check_optimizer,
    make_optimizer,
)
from trainers.training.prodigy import Prodigy


def make_groups(*rates: float) -> list[ParameterGroup]:
    generator = torch.Generator().manual_seed(0)
    return [
        ParameterGroup(f"part {i}", [nn.Parameter(torch.randn(64, 80, generator=generator))], rate)
        for i, rate in enumerate(rates)
    ]


@pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_row_holds_as_many_bytes_of_state_as_it_says(row):
    parts = make_groups(1.0 if row.finds_learning_rate else 1e-3)
    (weight,) = parts[0].parameters
    optimizer = make_optimizer(row.name, parts, weight_decay=0.0)
    weight.square().mean().backward()
    optimizer.step()
    states = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    num_bytes = sum(state.numel() * state.element_size() for state in states)
    # 8-bit states have a scale for every 256 numbers.
    assert num_bytes / weight.numel() <= 1.25 * row.state_bytes
    has_rows_and_columns = row.name in ("Adafactor", "CAME", "ProdigyPlusScheduleFree")  # as the shape has them
    assert has_rows_and_columns or num_bytes / weight.numel() >= row.state_bytes


def test_an_optimizer_can_be_named_by_its_import_path():
    optimizer = make_optimizer("torch.optim.RAdam", make_groups(1e-3), weight_decay=0.0, extra_args="betas=(0.8,0.9)")
    assert type(optimizer) is torch.optim.RAdam and optimizer.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "no_such_package.optim.Best",
            ModuleNotFoundError,
            "needs the package no_such_package, which is not installed",
        ),
        ("torch.optim.NoSuchOptimizer", ValueError, "torch.optim has no optimizer class NoSuchOptimizer"),
        ("torch.nn.Linear", ValueError, "torch.nn has no optimizer class Linear"),
    ],
)
def test_an_import_path_that_names_no_optimizer_is_an_error(name, error, message):
    with pytest.raises(error, match=message):
        make_optimizer(name, make_groups(1e-3), weight_decay=0.0)


def test_a_workflow_may_only_choose_from_the_table():
    for name in OPTIMIZERS:
        require_listed_optimizer(name)
    with pytest.raises(
        ValueError, match=r"optimizer must be one of AdamW,.*An import path works on the command line only"
    ):
        require_listed_optimizer("torch.optim.RAdam")


@pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_brings_a_loss_down(row):
    finds_rate = row.name.startswith("Prodigy")  # from a step of 1e-6
    name, rate = row.name, 1.0 if finds_rate else 1e-2
    parts = make_groups(rate)
    (weight,) = parts[0].parameters
    optimizer = make_optimizer(name, parts, weight_decay=0.0)
    losses = []
    for _ in range(300 if finds_rate else 30):
        loss = weight.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("AdamW8bit", "bitsandbytes", "bitsandbytes"),
        ("Lion", "lion_pytorch", "lion-pytorch"),
        ("Prodigy", "prodigyopt", "prodigyopt"),
        ("AdamWScheduleFree", "schedulefree", "schedulefree"),
        ("ProdigyPlusScheduleFree", "prodigyplus", "prodigy-plus-schedule-free"),
        ("CAME", "came_pytorch", "came-pytorch"),
    ],
)
def test_a_missing_package_error_says_how_to_install_it(name, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ModuleNotFoundError,
        match=f"optimizer {name} needs the package {package}, which is not installed: "
        f"{re.escape(sys.executable)} -m pip install {package}, or choose AdamW",
    ):
        make_optimizer(name, make_groups(1.0), weight_decay=0.0)


def test_each_group_has_its_own_learning_rate():
    optimizer = make_optimizer("AdamW", make_groups(1e-4, 5e-5), weight_decay=0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 5e-5]


def test_prodigy_refuses_several_learning_rates():
    with pytest.raises(ValueError, match="Prodigy finds one learning rate for everything"):
        make_optimizer("Prodigy", make_groups(1.0, 0.5), weight_decay=0.0)


def test_prodigy_plus_finds_a_rate_for_each_part():
    check_optimizer(
        TrainingConfig(optimizer="ProdigyPlusScheduleFree", lr_scheduler="constant"), {"unet": 1.0, "text_encoder": 0.5}
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr_scheduler": "cosine"}, "Set lr_scheduler to constant, not cosine"),
        ({"lr_scheduler": "constant", "ema_decay": 0.9}, "averages its weights by itself. Set ema_decay to 0, not 0.9"),
    ],
)
@pytest.mark.parametrize("name", ["AdamWScheduleFree", "schedulefree.RAdamScheduleFree", "ProdigyPlusScheduleFree"])
def test_a_schedule_free_optimizer_takes_no_second_average(name, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_optimizer(TrainingConfig(optimizer=name, **wrong), {"unet": 1.0})


def test_optimizer_args_are_literals_and_reach_the_optimizer():
    assert parse_optimizer_args("betas=(0.9,0.99) d_coef=2 decouple=True") == {
        "betas": (0.9, 0.99),
        "d_coef": 2,
        "decouple": True,
    }
    optimizer = make_optimizer(
        "AdamW", make_groups(1e-4), weight_decay=0.01, extra_args="betas=(0.8,0.9) weight_decay=0.1"
    )
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("separator", [" ", ", ", ",", " , ", "\n"])
def test_optimizer_args_have_spaces_or_commas_between_them(separator):
    text = separator.join(["amsgrad=False", "eps=1e-8", "betas=(0.9, 0.99)", "name='a, b'"])
    assert parse_optimizer_args(text) == {"amsgrad": False, "eps": 1e-8, "betas": (0.9, 0.99), "name": "a, b"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("AdamW", "amsgrad='no'", "amsgrad of AdamW must be True or False, got 'no'"),
        ("AdamW", "amsgrad=(False,)", "amsgrad of AdamW must be True or False, got (False,)"),
        ("AdamW8bit", "is_paged=1", "is_paged of AdamW8bit must be True or False, got 1"),
        ("AdamW", "betas=0.9", "betas of AdamW must be 2 numbers such as (0.9,0.999), got 0.9"),
        ("AdamW", "betas=(2,0.9)", "AdamW does not take them (Invalid beta parameter"),
        ("AdamW", "eps='x'", "AdamW does not take them"),
        ("AdamW", "lr=1", "lr has its own setting. Set learning_rate instead"),
        ("AdamW", "eps=1 eps=2", "eps is given twice"),
        ("Prodigy", "", "Prodigy finds one learning rate for everything"),
    ],
)
def test_what_an_optimizer_cannot_take_shows_without_any_weight(name, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_optimizer(
            TrainingConfig(optimizer=name, optimizer_args=text, weight_decay=0.0), {"unet": 1.0, "text_encoder": 0.5}
        )


def test_a_package_that_is_there_but_broken_is_named_with_its_cause_and_remedy(tmp_path, monkeypatch):
    (tmp_path / "prodigyopt.py").write_text("import ctypes; ctypes.CDLL('gone.so')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "prodigyopt", raising=False)
    with pytest.raises(ImportError, match=r"prodigyopt is installed but broken \(gone.so.*pip install --force"):
        make_optimizer("Prodigy", make_groups(1.0), weight_decay=0.0)


@pytest.mark.parametrize("text", ["betas", "betas=(0.9,", "betas=__import__('os')", "=1"])
def test_unreadable_optimizer_args_are_an_error(text):
    with pytest.raises(ValueError, match=re.escape(f"optimizer_args: cannot read {text!r}")):
        parse_optimizer_args(text)


def test_an_argument_the_optimizer_does_not_take_is_an_error():
    with pytest.raises(ValueError, match="AdamW does not take them"):
        make_optimizer("AdamW", make_groups(1e-4), weight_decay=0.0, extra_args="d_coef=2")


@pytest.mark.parametrize("extra", [{}, {"d_coef": 2.0, "safeguard_warmup": False, "growth_rate": 1.5}, {"slice_p": 2}])
def test_prodigy_trains_as_prodigyopt_does(extra):
    """With a group that has no learning rate, and a weight that gets no gradient at first."""
    runs = {}
    for optimizer_class in (prodigyopt.Prodigy, Prodigy):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(6, 4, generator=generator)) for _ in range(4)]
        weights[1].data.zero_()
        groups = [{"params": weights[:3], "lr": 1.0}, {"params": weights[3:], "lr": 0.0}]
        optimizer = optimizer_class(groups, weight_decay=0.01, use_bias_correction=True, d0=1e-3, **extra)
        target = torch.randn(6, 4, generator=generator)
        for number in range(40):
            optimizer.zero_grad()
            used = weights if number > 2 else weights[:2] + weights[3:]
            sum((weight - target).square().mean() for weight in used).backward()
            optimizer.step()
        runs[optimizer_class] = (weights, optimizer.state_dict())
    (plain, plain_state), (own, own_state) = runs.values()
    for one, other in zip(own, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.equal(plain[0], plain[2]) and plain_state["param_groups"][0]["d"] > 1e-3
    for one, other in zip(own_state["param_groups"], plain_state["param_groups"], strict=True):
        assert one.keys() == other.keys() and one["d"] == pytest.approx(other["d"], rel=1e-4)
    for index, state in plain_state["state"].items():
        assert own_state["state"][index].keys() == state.keys() and own_state["state"][index]["step"] == state["step"]
        assert all(own_state["state"][index][name].shape == state[name].shape for name in ("s", "p0", "exp_avg"))
