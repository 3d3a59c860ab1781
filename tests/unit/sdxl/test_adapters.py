"""Our LoRA layer against PEFT's."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from trainers.lora.modules import ModuleNames
from trainers.training.adapter_layers import ADAPTER_NAME
from trainers.training.adapter_shapes import AdapterSettings
from trainers.training.adapters import (
    AdaptedComponent,
    AdaptedModel,
    attach_adapters,
    find_adapter_layers,
    group_parameters,
    wrap_linear_layers,
)
from trainers.training.flat_weights import FlatWeights


def _model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 16, bias=False)).to(dtype)


def _outputs_and_gradients(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    inputs = inputs.clone().requires_grad_()
    output = model(inputs)
    output.float().square().sum().backward()
    assert inputs.grad is not None
    return [output, inputs.grad, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(5, 24), (2, 5, 24)])
def test_our_lora_layer_computes_what_pefts_own_layer_computes(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]
) -> None:
    ours, reference = _model(dtype), _model(dtype)
    settings = AdapterSettings(rank=4, alpha=2.0, dropout=0.0, seed=0)
    FlatWeights(attach_adapters(ours, ["0", "2"], settings, component="unet"), dtype)
    reference.requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=2.0, target_modules=["0", "2"]), reference, adapter_name=ADAPTER_NAME
    )
    for own, other in zip(find_adapter_layers(ours).values(), find_adapter_layers(reference).values(), strict=True):
        assert type(own) is not type(other)
        for matrix, other_matrix in ((own.lora_A, other.lora_A), (own.lora_B, other.lora_B)):
            nn.init.normal_(
                matrix[ADAPTER_NAME].get_parameter("weight"), std=0.3, generator=torch.Generator().manual_seed(1)
            )
            other_matrix[ADAPTER_NAME].to(dtype).load_state_dict(matrix[ADAPTER_NAME].state_dict())
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    for own_value, other_value in zip(
        _outputs_and_gradients(ours, inputs), _outputs_and_gradients(reference, inputs), strict=True
    ):
        assert own_value.dtype == other_value.dtype
        assert (own_value - other_value).abs().max() <= tolerance * other_value.abs().max()


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "lora that drops ranks", "lora on any class"])
def test_inside_at_strength_an_adapter_acts_so_many_times_as_strongly(kind: str) -> None:
    model = nn.Sequential(nn.Linear(24, 40))
    settings = AdapterSettings(
        rank=4, alpha=2.0, dropout=0.0, seed=0, kind=kind[:4], rank_dropout=0.5 if "drops" in kind else 0.0
    )
    if "any" in kind:
        wrap_linear_layers(model, ["0"], settings, component="unet", device=torch.device("cpu"))
    else:
        attach_adapters(model, ["0"], settings, component="unet")
    component = AdaptedComponent(model, group_parameters(model, "unet", 1e-3, {}))
    names = ModuleNames({("unet", "0"): "lora_unet_0"}, (), main_component="unet")
    adapted = AdaptedModel({"unet": component}, names)
    for flat in adapted.flat_weights:
        nn.init.normal_(flat, std=0.3, generator=torch.Generator().manual_seed(1))
    model.eval()
    inputs = torch.randn((3, 24), generator=torch.Generator().manual_seed(2))

    def change() -> Tensor:
        with torch.no_grad():
            return model(inputs) - base

    with adapted.disable_adapters():
        base = model(inputs)
    full = change()
    assert full.abs().max() > 0.01
    for strength in (-2.0, -1.0, 0.0, 0.5):
        with adapted.at_strength(strength):
            torch.testing.assert_close(change(), strength * full, rtol=1e-4, atol=1e-5)
    assert torch.equal(change(), full)
