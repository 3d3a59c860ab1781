"""Layers on weights that came in fp8: the same numbers as those of a copy in bf16, without it."""

import pytest
import torch
from torch import nn

from trainers.training.adapter_layers import find_size
from trainers.training.float8_layers import FLOAT8, Float8Conv2d, Float8Linear, keep_float8
from trainers.training.quantized_linear import describe_quantized

LAYERS = {
    "linear": (lambda: nn.Linear(96, 64), (2, 5, 96)),
    "linear without bias": (lambda: nn.Linear(96, 64, bias=False), (2, 5, 96)),
    "convolution": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 9, 7)),
    "convolution with a stride": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 9, 7)),
    "convolution of groups": (lambda: nn.Conv2d(16, 24, 1, groups=4, bias=False), (2, 16, 9, 7)),
}


def make_pair(name: str, float8: torch.dtype, dtype: torch.dtype) -> tuple[nn.Sequential, nn.Sequential]:
    """The layer on its fp8 weight, and the usual one on a copy of it that was bf16 once."""
    torch.manual_seed(1)
    usual, own = nn.Sequential(LAYERS[name][0]()), nn.Sequential(LAYERS[name][0]())
    usual.to(float8).requires_grad_(False)
    own.requires_grad_(False)
    own.load_state_dict(usual.state_dict(), assign=True)
    keep_float8(own)
    own.to(dtype)
    usual.to(torch.bfloat16).to(dtype)
    return own, usual


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("float8", FLOAT8, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_and_backward_are_those_of_a_copy_in_bf16(name, float8, dtype):
    pair = make_pair(name, float8, dtype)
    assert isinstance(pair[0][0], (Float8Linear, Float8Conv2d))
    drawn = torch.randn(LAYERS[name][1], generator=torch.Generator().manual_seed(2))
    inputs = [drawn.to(dtype, copy=True).requires_grad_() for _ in pair]
    outputs = [layer(value) for layer, value in zip(pair, inputs, strict=True)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs) and torch.equal(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("name", LAYERS)
def test_neither_the_input_nor_the_whole_weight_is_kept_for_the_backward_pass(name):
    own, _ = make_pair(name, FLOAT8[0], torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()), lambda pointer: pointer
    ):
        own(torch.ones(LAYERS[name][1], requires_grad=True))
    assert kept == [own[0].weight.data_ptr()]


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_stays_on_its_memory_in_its_bits_with_the_size_of_the_layer(name):
    layer = nn.Sequential(LAYERS[name][0]())
    layer.to(FLOAT8[0]).requires_grad_(False)
    (usual,) = layer
    weight, size = layer.get_parameter("0.weight"), find_size(usual)
    keep_float8(layer)
    layer.to("cpu", torch.bfloat16)
    (own,) = layer
    kept = layer.get_parameter("0.weight")
    assert own is not usual and kept.data_ptr() == weight.data_ptr() and kept.element_size() == 1
    assert find_size(own) == size
    assert (size.outputs, size.inputs, *size.kernel) == tuple(weight.shape)


def test_norms_in_fp8_become_bf16_and_what_is_not_fp8_stays_as_it_is():
    model = nn.ModuleDict({"norm": nn.GroupNorm(4, 16).to(FLOAT8[0]), "linear": nn.Linear(8, 8).bfloat16()})
    before = model["norm"].weight.float()
    keep_float8(model.requires_grad_(False))
    assert model["norm"].weight.dtype == torch.bfloat16 and torch.equal(model["norm"].weight.float(), before)
    assert type(model["linear"]) is nn.Linear and describe_quantized(model) == ()


def test_the_note_counts_the_layers_and_their_bytes():
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Conv2d(256, 256, 4)).to(FLOAT8[1]).requires_grad_(False)
    keep_float8(model)
    assert describe_quantized(model) == ("2 layers of the base model stay in the bits that it is loaded in: 2.0 MB",)
