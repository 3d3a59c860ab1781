"""The layers of every kind of adapter against independent formulas, PEFT's layers, and their own
files.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional

from trainers.lora.file import to_kohya
from trainers.lora.modules import AdapterModule, LoraModule, ModuleNames
from trainers.lora.read import read_lora
from trainers.sdxl.config import SDXLConfig
from trainers.training.adapter_layers import AdapterLayer, DoraLayer, find_size, read_weight
from trainers.training.adapter_shapes import AdapterSettings, LayerSize, count_parameters, factorize, list_shapes
from trainers.training.adapters import (
    AdaptedComponent,
    AdaptedModel,
    attach_adapters,
    find_adapter_layers,
    get_base_layer,
    group_parameters,
    list_adapter_parameters,
    list_frozen_parameters,
    wrap_linear_layers,
)
from trainers.training.optimizers import ParameterGroup
from trainers.training.quantized_linear import FP8Linear

PLAIN = AdapterSettings(rank=4, alpha=2.0, dropout=0.0, seed=0)
KINDS = {
    "lora": PLAIN,
    "dora": replace(PLAIN, kind="dora"),
    "loha": replace(PLAIN, kind="loha"),
    "lokr": replace(PLAIN, kind="lokr", lokr_factor=2),
    "lokr, both decomposed": replace(PLAIN, kind="lokr", rank=1, lokr_decompose_both=True),
    "lokr, whole": replace(PLAIN, kind="lokr", lokr_full_matrix=True),
}
OTHERS = {name: settings for name, settings in KINDS.items() if name != "lora"}
LAYERS = {
    "linear": (lambda: nn.Linear(24, 40), (3, 5, 24)),
    "convolution": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 6, 10)),
    "pointwise convolution": (lambda: nn.Conv2d(8, 12, 1), (2, 8, 4, 4)),
}
KEY = ("unet", "0")
NAMES = ModuleNames({KEY: "lora_unet_0"}, [("lora_unet_0", KEY)], main_component="unet")


def make(kind: str, layer: str = "linear", dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Tensor]:
    """A model of one layer with an adapter that has learned something, and inputs of it."""
    torch.manual_seed(0)
    make_layer, shape = LAYERS[layer]
    model = nn.Sequential(make_layer())
    attach_adapters(model, ["0"], KINDS[kind], component="unet")
    teach(model)
    return model.to(dtype), torch.randn(shape, dtype=dtype)


def teach(model: nn.Module) -> None:
    for number, matrix in enumerate(list_adapter_parameters(model)):
        nn.init.normal_(matrix, std=0.3, generator=torch.Generator().manual_seed(number))


def adapt(model: nn.Module, dtype: torch.dtype = torch.float32) -> AdaptedModel:
    group = ParameterGroup("unet", list_adapter_parameters(model), 1e-3)
    return AdaptedModel({"unet": AdaptedComponent(model, [group])}, NAMES, dtype=dtype)


def read(model: nn.Module) -> AdapterModule:
    return adapt(model).read()[KEY]


def apply(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, layer.bias)
    return functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def combine(settings: AdapterSettings, weight: Tensor, matrices: dict[str, Tensor], lengths: Tensor) -> Tensor:
    """The weight with the adapter, by the formulas of the papers."""
    scale = settings.alpha / settings.rank
    m = {name: matrix.flatten(1) if matrix.ndim > 1 else matrix for name, matrix in matrices.items()}
    if settings.kind == "loha":
        return weight + scale * ((m["w1_a"] @ m["w1_b"]) * (m["w2_a"] @ m["w2_b"])).view_as(weight)
    if settings.kind == "lokr":
        first = m["w1"] if "w1" in m else m["w1_a"] @ m["w1_b"]
        second = m["w2"] if "w2" in m else m["w2_a"] @ m["w2_b"]
        scale = 1.0 if {"w1", "w2"} <= m.keys() else scale
        return weight + scale * torch.kron(first, second).view_as(weight)
    moved = weight + scale * (m["up"] @ m["down"]).view_as(weight)
    if settings.kind == "lora":
        return moved
    found = moved.transpose(0, 1).flatten(1).norm(dim=1).detach()  # a constant: DoRA, section 4.3
    return moved * ((lengths + m["offset"]) / found).view(1, -1, *(1 for _ in weight.shape[2:]))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_the_formula(kind: str, layer: str) -> None:
    model, x = make(kind, layer)
    adapter = next(iter(find_adapter_layers(model).values()))
    base = adapter.get_base_layer() if kind == "lora" else adapter.base_layer
    parameters = list_adapter_parameters(model)
    copies = [parameter.detach().double().requires_grad_() for parameter in parameters]
    matrices = dict(zip(list_shapes(find_size(base), KINDS[kind]), copies, strict=True))
    weight = base.weight.detach().double()
    lengths = weight.transpose(0, 1).flatten(1).norm(dim=1)
    inputs, other_inputs = x.clone().requires_grad_(), x.double().requires_grad_()
    output = model(inputs)
    with torch.no_grad():
        base.bias.data, own_bias = base.bias.double(), base.bias.data
    expected = apply(base, other_inputs, combine(KINDS[kind], weight, matrices, lengths))
    base.bias.data = own_bias
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(inputs.grad.double(), other_inputs.grad, rtol=1e-4, atol=1e-4)
    for name, parameter, copy in zip(matrices, parameters, copies, strict=True):
        torch.testing.assert_close(parameter.grad.double(), copy.grad, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("kind", "config", "names"),
    [
        (
            "loha",
            LoHaConfig(r=4, alpha=2, target_modules=["0"]),
            {"w1_a": "hada_w1_a", "w1_b": "hada_w1_b", "w2_a": "hada_w2_a", "w2_b": "hada_w2_b"},
        ),
        (
            "lokr",
            LoKrConfig(r=4, alpha=2, decompose_factor=2, target_modules=["0"]),
            {"w1": "lokr_w1", "w2_a": "lokr_w2_a", "w2_b": "lokr_w2_b"},
        ),
    ],
)
def test_output_and_gradients_are_those_of_pefts_layers(kind: str, config: Any, names: dict[str, str]) -> None:
    model, x = make(kind)
    adapter = find_adapter_layers(model)["0"]
    other = nn.Sequential(nn.Linear(24, 40))
    other[0].load_state_dict(adapter.base_layer.state_dict())
    inject_adapter_in_model(config, other, adapter_name="default")
    theirs = {own: getattr(other[0], name)["default"] for own, name in names.items()}
    for name, matrix in theirs.items():
        matrix.data.copy_(adapter.adapter[name])
    for each in (model, other):
        each(x).square().sum().backward()
    torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)
    for name, matrix in theirs.items():
        torch.testing.assert_close(adapter.adapter[name].grad, matrix.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_saved_acts_as_what_was_trained(kind: str, layer: str) -> None:
    model, x = make(kind, layer)
    base: Any = find_adapter_layers(model)["0"].base_layer
    module = read_lora(to_kohya({KEY: read(model)}, NAMES, dtype=torch.float32), NAMES)[KEY]
    expected = apply(base, x, module.merge_into(base.weight, 1.0))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert module.kind == KINDS[kind].kind and module.size == (len(base.weight), base.weight[0].numel())


@pytest.mark.parametrize("kind", OTHERS)
def test_a_new_adapter_changes_nothing_and_everything_in_it_can_learn(kind: str) -> None:
    torch.manual_seed(0)
    model, base = nn.Sequential(nn.Linear(24, 40)), nn.Linear(24, 40)
    base.load_state_dict(model[0].state_dict())
    parameters = attach_adapters(model, ["0"], KINDS[kind], component="unet")
    x = torch.randn(3, 24)
    assert torch.equal(model(x), base(x)) and all(parameter.requires_grad for parameter in parameters)
    assert {id(parameter) for parameter in list_frozen_parameters(model)} == {
        id(parameter) for parameter in model.parameters() if not parameter.requires_grad
    }
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    assert all(bool(parameter.grad.any()) for parameter in parameters)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_first_weights_come_from_the_seed_alone(kind: str) -> None:
    def start(seed: int) -> list[Tensor]:
        model = nn.Sequential(nn.Linear(24, 40))
        state = torch.get_rng_state()
        parameters = attach_adapters(model, ["0"], replace(KINDS[kind], seed=seed), component="unet")
        assert torch.equal(torch.get_rng_state(), state)
        return [*parameters]

    first, again, other = start(1), start(1), start(2)
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))


@pytest.mark.parametrize("kind", OTHERS)
def test_switched_off_it_is_the_base_layer(kind: str) -> None:
    model, x = make(kind)
    adapted, base = adapt(model), find_adapter_layers(model)["0"].base_layer
    with adapted.disable_adapters():
        assert torch.equal(model(x), base(x))
    assert not torch.equal(model(x), base(x))


@pytest.mark.parametrize("kind", OTHERS)
def test_half_precision_computes_nearly_the_same(kind: str) -> None:
    model, x = make(kind)
    expected = model(x)
    half = nn.Sequential(nn.Linear(24, 40).to(torch.bfloat16))
    half[0].load_state_dict(find_adapter_layers(model)["0"].base_layer.state_dict())
    attach_adapters(half, ["0"], KINDS[kind], component="unet")
    teach(half)
    adapt(half, torch.bfloat16)
    output = half(x.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() < 0.02 * expected.norm()


def test_a_small_change_of_length_survives_bf16() -> None:
    """The nearest bf16 numbers to 1 are 0.004 and 0.008 away."""
    model = nn.Sequential(nn.Linear(24, 40, bias=False).to(torch.bfloat16))
    attach_adapters(model, ["0"], KINDS["dora"], component="unet")
    layer = find_adapter_layers(model)["0"]
    assert isinstance(layer, DoraLayer)
    layer.adapter["offset"].data = (1e-3 * layer.base_lengths).to(torch.bfloat16)
    torch.testing.assert_close(layer._find_stretch(torch.bfloat16), torch.full((24,), 1e-3), rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", OTHERS)
def test_dropout_acts_in_training_alone(kind: str) -> None:
    model = nn.Sequential(nn.Linear(24, 40))
    attach_adapters(model, ["0"], replace(KINDS[kind], dropout=0.5), component="unet")
    teach(model)
    x = torch.randn(3, 24)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("kind", OTHERS)
def test_it_wraps_layers_of_whatever_class(kind: str) -> None:
    """A weight of 8 bits, as its layer brings it back, is what a DoRA measures."""
    torch.manual_seed(0)
    model = nn.Sequential(FP8Linear(nn.Linear(24, 40)))
    wrap_linear_layers(model, ["0"], KINDS[kind], component="unet", device=torch.device("cpu"))
    teach(model)
    x = torch.randn(3, 24)
    base: Any = find_adapter_layers(model)["0"].base_layer
    expected = functional.linear(x, read(model).merge_into(base.dequantize(torch.float32), 1.0), base.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


# ---- strength and rank of their own ----


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_rslora_acts_with_alpha_over_the_root_of_the_rank_in_every_program(kind: str) -> None:
    plain, stable = (
        AdapterSettings.of(SDXLConfig(adapter=kind, rank=4, alpha=6.0, use_rslora=stable, lokr_factor=2))
        for stable in (False, True)
    )
    updates = []
    for settings in (plain, stable):
        model = nn.Sequential(nn.Linear(24, 40))
        attach_adapters(model, ["0"], settings, component="unet")
        teach(model)
        (module,) = read_lora(to_kohya({KEY: read(model)}, NAMES, dtype=torch.float32), NAMES).values()
        updates.append(module.scale * module.multiply())
    torch.testing.assert_close(updates[1], 2 * updates[0])  # 6 / sqrt(4) instead of 6 / 4
    peft = nn.Sequential(nn.Linear(24, 40))
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["0"]), peft)
    layer: Any = peft[0]
    assert layer.scaling["default"] == stable.alpha / stable.rank


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_convolutions_have_a_rank_and_alpha_of_their_own(kind: str) -> None:
    settings = AdapterSettings.of(SDXLConfig(adapter=kind, rank=4, alpha=2.0, conv_rank=2, conv_alpha=0.5))
    model = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 12, 1), nn.Flatten(), nn.Linear(12 * 16, 10))
    attach_adapters(model, ["0", "1", "3"], settings, component="unet")
    teach(model)
    names = ModuleNames({("unet", name): name for name in "013"}, [], main_component="unet")
    component = AdaptedComponent(model, [ParameterGroup("unet", list_adapter_parameters(model), 1e-3)])
    modules = AdaptedModel({"unet": component}, names).read()
    assert [module.alpha for module in modules.values()] == [0.5, 2.0, 2.0]
    if kind != "lokr":  # two of its layers are too small for a low rank
        assert [module.scale for module in modules.values()] == [0.25, 0.5, 0.5]
    x = torch.randn(2, 8, 4, 4)
    hidden = x
    for name, layer in zip("013", (model[0], model[1], model[3]), strict=True):
        hidden = hidden.flatten(1) if name == "3" else hidden
        base = get_base_layer(layer)
        weight = modules["unet", name].merge_into(base.weight, 1.0)
        hidden = apply(base, hidden, weight)
    torch.testing.assert_close(model(x), hidden, rtol=1e-4, atol=1e-4)


def test_without_its_own_alpha_a_convolution_acts_as_strongly_as_the_others() -> None:
    settings = AdapterSettings.of(SDXLConfig(rank=16, alpha=8.0, conv_rank=4))
    assert settings.conv_alpha == 2.0
    stable = AdapterSettings.of(SDXLConfig(rank=16, alpha=8.0, conv_rank=4, conv_alpha=3.0, use_rslora=True))
    assert (stable.alpha, stable.conv_alpha) == (32.0, 6.0)


# ---- first values ----


@pytest.mark.parametrize("settings", [PLAIN, replace(PLAIN, rank=30), replace(PLAIN, module_dropout=0.1)])
@pytest.mark.parametrize("layer", [*LAYERS, "quantized linear"])
def test_svd_starts_with_the_top_right_singular_vectors_and_changes_nothing(layer: str, settings: Any) -> None:
    """Against torch's whole decomposition."""
    torch.manual_seed(0)
    make_layer, shape = LAYERS[layer.removeprefix("quantized ")]
    base = make_layer()
    if layer == "quantized linear":
        base = FP8Linear(base)
    model, x = nn.Sequential(base), torch.randn(shape)
    before = model(x)
    weight = read_weight(base, torch.float32).flatten(1)
    wrap_linear_layers(
        model, ["0"], replace(settings, init_lora_weights="svd"), component="unet", device=torch.device("cpu")
    ) if layer == "quantized linear" else attach_adapters(
        model, ["0"], replace(settings, init_lora_weights="svd"), component="unet"
    )
    down, up = (parameter.detach().flatten(1) for parameter in list_adapter_parameters(model))
    number = min(settings.rank, *weight.shape)
    exact = torch.linalg.svd(weight, full_matrices=False).Vh[:number]
    signs = (exact * down[:number]).sum(1, keepdim=True).sign()
    torch.testing.assert_close(down[:number] * signs * 3**0.5, exact, rtol=0, atol=1e-3)
    assert not up.any() and (len(down) == number or bool(down[number:].any(1).all()))
    torch.testing.assert_close(model.eval()(x), before)


def test_svd_of_other_kinds_is_refused() -> None:
    with pytest.raises(ValueError, match="init_lora_weights svd is for adapter lora, not for loha"):
        SDXLConfig(adapter="loha", init_lora_weights="svd")


# ---- learning rates ----


def test_without_rates_of_their_own_all_matrices_are_one_group_in_their_order() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    attach_adapters(model, ["0", "1"], PLAIN, component="unet")
    (group,) = group_parameters(model, "unet", 1e-3, {}, loraplus_lr_ratio=1.0)
    assert [id(each) for each in group.parameters] == [id(each) for each in list_adapter_parameters(model)]


def test_matrices_are_grouped_by_their_rate_with_that_of_the_run_first() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    first, second = attach_adapters(model, ["0", "1"], PLAIN, component="unet")[::2]
    groups = group_parameters(model, "unet", 0.5, {"0": 0.25}, loraplus_lr_ratio=4.0)
    assert [(group.learning_rate, len(group.parameters)) for group in groups] == [
        (0.5, 1),
        (0.25, 1),
        (1.0, 1),
        (2.0, 1),
    ]
    assert groups[0].parameters[0] is second and groups[1].parameters[0] is first


# ---- dropout and norm ----


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_ranks_are_dropped_for_each_image_and_the_others_are_stronger(kind: str, layer: str) -> None:
    """sd-scripts' formula, with the same draws."""
    torch.manual_seed(0)
    make_layer, shape = LAYERS[layer]
    settings = replace(KINDS[kind], rank_dropout=0.4)
    model, x = nn.Sequential(make_layer()), torch.randn(2, *shape[1:])
    attach_adapters(model, ["0"], settings, component="unet")
    teach(model)
    adapter: Any = find_adapter_layers(model)["0"]
    torch.manual_seed(7)
    update = adapter.compute_update(x)
    torch.manual_seed(7)
    batch_first = (2, 4, 1, 1) if layer != "linear" else (2, *(1 for _ in shape[1:-1]), 4)
    mask = (torch.rand(batch_first) > 0.4).float().view(2, 4)
    base, up, down = adapter.base_layer, adapter.adapter["up"].flatten(1), adapter.adapter["down"]
    for number in range(2):
        weight = (up * mask[number] / 0.6) @ down.flatten(1)
        expected = apply(base, x[number : number + 1], weight.view_as(base.weight))
        expected -= apply(base, x[number : number + 1], torch.zeros_like(base.weight))
        torch.testing.assert_close(update[number : number + 1], expected, rtol=1e-4, atol=1e-5)
    assert 0 < mask.sum() < mask.numel()
    model.eval()
    plain, other = nn.Sequential(make_layer()), find_adapter_layers(model)["0"]
    plain[0].load_state_dict(other.base_layer.state_dict())
    attach_adapters(plain, ["0"], KINDS[kind], component="unet")
    teach(plain)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_t_lora_has_fewer_ranks_the_noisier_its_input(layer: str) -> None:
    """The paper's formula, for each sample; all ranks outside of the training."""
    torch.manual_seed(0)
    make_layer, shape = LAYERS[layer]
    model, x = nn.Sequential(make_layer()), torch.randn(5, *shape[1:])
    attach_adapters(model, ["0"], replace(PLAIN, tlora_min_rank=1), component="unet")
    teach(model)
    adapted = adapt(model)
    timesteps = (0, 1, 400, 667, 999)
    adapted.set_timesteps("text_encoder", torch.zeros(5))
    adapter: Any = find_adapter_layers(model)["0"]
    assert adapter.timesteps is None
    adapted.set_timesteps("unet", torch.tensor(timesteps))
    base, up, down = adapter.base_layer, adapter.adapter["up"].flatten(1), adapter.adapter["down"].flatten(1)
    kept = [math.floor((4 - 1) * (1000 - t) / 1000) + 1 for t in timesteps]
    assert kept == [4, 3, 2, 1, 1]
    for number, rank in enumerate(kept):
        weight = base.weight + 0.5 * (up[:, :rank] @ down[:rank]).view_as(base.weight)
        expected = apply(base, x[number : number + 1], weight)
        torch.testing.assert_close(model(x)[number : number + 1], expected, rtol=1e-4, atol=1e-5)
    model.eval()
    whole = apply(base, x, base.weight + 0.5 * (up @ down).view_as(base.weight))
    torch.testing.assert_close(model(x), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_steps_leaves_a_module_out(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40))
    attach_adapters(model, ["0"], replace(KINDS[kind], module_dropout=0.25), component="unet")
    teach(model)
    adapter: Any = find_adapter_layers(model)["0"]
    x = torch.randn(3, 24)
    model.eval()
    whole, alone = model(x), adapter.base_layer(x)
    model.train()
    answers = [model(x) for _ in range(400)]
    left_out = sum(torch.equal(answer, alone) for answer in answers)
    assert left_out + sum(torch.equal(answer, whole) for answer in answers) == 400 and 70 < left_out < 130
    alone = next(answer for answer in answers if torch.equal(answer, alone))
    alone.sum().backward()  # of zero, but there
    assert not any(bool(parameter.grad.any()) for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_scaled_down_to_the_norm_and_smaller_ones_stay(kind: str, layer: str) -> None:
    model, _ = make(kind, layer)
    adapted = adapt(model)

    def measure() -> Tensor:
        module = adapted.read()[KEY]
        torch.testing.assert_close(module.measure(), module.multiply().norm(), rtol=1e-4, atol=0)
        return module.scale * module.multiply()

    before = measure()
    adapted.limit_norms(2 * before.norm().item())
    torch.testing.assert_close(measure(), before, rtol=1e-6, atol=0)
    adapted.limit_norms(0.1 * before.norm().item())
    torch.testing.assert_close(measure(), 0.1 * before, rtol=1e-4, atol=1e-7)


def test_rank_dropout_of_other_kinds_is_refused() -> None:
    with pytest.raises(ValueError, match="rank_dropout is for adapter lora and dora, not for loha"):
        SDXLConfig(adapter="loha", rank_dropout=0.1)


# ---- starting from a file ----


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_at_the_strength_of_its_file_whatever_its_alpha(kind: str, layer: str) -> None:
    model, x = make(kind, layer)
    saved = to_kohya({KEY: read(model)}, NAMES, dtype=torch.float32)
    torch.manual_seed(0)
    other = nn.Sequential(LAYERS[layer][0]())
    attach_adapters(other, ["0"], replace(KINDS[kind], alpha=3.0), component="unet")
    adapt(other).load(read_lora(saved, NAMES))
    torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_dora_of_a_lower_rank_is_filled_up() -> None:
    model, x = make("dora")
    module = read(model)
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(24, 40))
    attach_adapters(other, ["0"], replace(KINDS["dora"], rank=8), component="unet")
    adapt(other).load({KEY: module})
    torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("loha", {"rank": 5}, r"lora_unet_0 has hada_w1_a \[40, 4\].*this run hada_w1_a \[40, 5\].*Set rank as"),
        ("lokr", {"lokr_factor": 4}, r"has lokr_w1 \[2, 2\].*this run lokr_w1 \[4, 4\].*Set rank, lokr_factor"),
        ("dora", {"rank": 2}, "the file has rank 4, this run has rank 2"),
        ("dora", {"kind": "loha"}, "lora_unet_0 is a DoRA, and this run trains a LoHa"),
    ],
)
def test_a_file_that_does_not_fit_the_run_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    model, _ = make(kind)
    module = read(model)
    other = nn.Sequential(nn.Linear(24, 40))
    attach_adapters(other, ["0"], replace(KINDS[kind], **changes), component="unet")
    with pytest.raises(ValueError, match=message):
        adapt(other).load({KEY: module})


def test_a_dora_with_a_length_for_each_output_is_refused() -> None:
    module = replace(read(make("dora")[0]), magnitude=torch.ones(40, 1))
    with pytest.raises(ValueError, match=r"a length for each output \(dora_scale \[40, 1\]\).*wd_on_output=False"):
        adapt(make("dora")[0]).load({KEY: module})


def test_a_module_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="another size than this layer"):
        adapt(make("loha")[0]).load({KEY: LoraModule(torch.ones(2, 5), torch.ones(40, 2), 1.0)})


# ---- shapes ----


@pytest.mark.parametrize(
    ("dimension", "factor", "expected"),
    [
        (127, -1, (1, 127)),
        (128, -1, (8, 16)),
        (128, 4, (4, 32)),
        (250, 8, (5, 50)),
        (250, 16, (10, 25)),
        (1024, -1, (32, 32)),
        (12, 6, (2, 6)),
    ],
)
def test_dimensions_are_split_as_in_lycoris(dimension: int, factor: int, expected: tuple[int, int]) -> None:
    """What its function `factorization` returns."""
    assert factorize(dimension, factor) == expected


def test_a_lokr_keeps_a_factor_whole_where_a_low_rank_saves_nothing() -> None:
    settings = replace(PLAIN, kind="lokr", lokr_factor=8, lokr_decompose_both=True)
    size = LayerSize(1280, 640)
    assert list_shapes(size, settings) == {"w1": (8, 8), "w2_a": (160, 4), "w2_b": (4, 80)}
    assert list_shapes(size, replace(settings, rank=80)) == {"w1": (8, 8), "w2": (160, 80)}
    assert count_parameters([size], settings) == 64 + 4 * 240


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_count_of_parameters_is_what_is_trained(kind: str, layer: str) -> None:
    model, _ = make(kind, layer)
    trained = sum(parameter.numel() for parameter in list_adapter_parameters(model))
    assert count_parameters([find_size(LAYERS[layer][0]())], KINDS[kind]) == trained
    assert isinstance(find_adapter_layers(model)["0"], AdapterLayer) == (kind != "lora")
