"""Frozen layers of fewer bits: how near they are, their gradients, and what is kept of them."""

import pytest
import torch
from torch import nn

from trainers.sdxl.config import BASE_DTYPES
from trainers.training.quantized_linear import (
    BYTES_PER_WEIGHT,
    KINDS,
    FP8Linear,
    NF4Linear,
    QuantizedLinear,
    ScaledLinear,
    quantize_linear_layers,
)

ERRORS = {"fp8": 0.03, "int8": 0.012, "nf4": 0.1}  # relative, of normally distributed weights


def make_layer(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(128, 96, bias=bias).to(dtype).requires_grad_(False)


def test_the_settings_have_the_kinds():
    assert tuple(KINDS) == tuple(BYTES_PER_WEIGHT) == BASE_DTYPES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_comes_back_nearly_and_takes_as_many_bytes_as_the_table_says(kind, dtype):
    layer = make_layer(dtype)
    own = KINDS[kind](layer)
    back = own.dequantize(dtype)
    assert back.dtype == dtype and back.shape == layer.weight.shape
    assert (back - layer.weight).float().norm() / layer.weight.float().norm() < ERRORS[kind]
    packed = own.weight.numel() * own.weight.element_size() / layer.weight.numel()
    assert packed == pytest.approx(BYTES_PER_WEIGHT[kind], abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_are_those_of_the_weight_that_comes_back(kind, bias):
    layer = make_layer(bias=bias)
    own = KINDS[kind](layer)
    usual = nn.Linear(128, 96, bias=bias)
    usual.load_state_dict({"weight": own.dequantize(torch.float32), **({"bias": layer.bias} if bias else {})})
    inputs = [torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in "12"]
    outputs = [each(value) for each, value in zip((own, usual), inputs, strict=True)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs) and torch.equal(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_weight_is_not_kept_for_the_backward_pass(kind):
    own, kept = KINDS[kind](make_layer()), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()), lambda pointer: pointer
    ):
        own(torch.ones(3, 128, requires_grad=True))
    assert set(kept) == {weight.data_ptr() for name, weight in own.named_parameters() if name != "bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_move_to_another_dtype_leaves_the_packed_weight_and_its_scales(kind):
    own = KINDS[kind](make_layer())
    before = own.dequantize(torch.float32)
    nn.Module.to(own, "cpu", torch.bfloat16)
    assert own.bias.dtype == torch.bfloat16 and torch.equal(own.dequantize(torch.float32), before)
    assert own.weight.dtype in (torch.int8, torch.uint8) and not own.weight.requires_grad


def test_a_row_of_zeros_stays_zero():
    layer = make_layer()
    layer.weight[3] = 0
    assert not FP8Linear(layer).dequantize(torch.float32)[3].any()


def test_all_linear_layers_are_replaced_but_small_ones_and_the_given_weights_stay():
    model = nn.Sequential(make_layer(), nn.Sequential(nn.Linear(96, 96), nn.Linear(8, 8)), nn.Conv2d(64, 64, 3))
    given = model[0].weight
    before = given.clone()
    assert quantize_linear_layers(model, "int8") == 2
    assert isinstance(model[0], QuantizedLinear) and isinstance(model.get_submodule("1.0"), ScaledLinear)
    assert type(model.get_submodule("1.1")) is nn.Linear and torch.equal(given, before)


def test_without_bitsandbytes_nf4_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"base_dtype nf4 needs the package bitsandbytes.*choose fp8"):
        quantize_linear_layers(nn.Sequential(make_layer()), "nf4")
    assert NF4Linear is KINDS["nf4"]
