"""What a trained adapter of any kind does in ComfyUI: exactly what it did in the training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from trainers.embedded_base import write_embedded_checkpoint
from trainers.lora.file import save_lora, to_kohya
from trainers.lora.modules import ModuleKey, ModuleNames, list_weighted_modules
from trainers.lora.read import read_lora
from trainers.sdxl.model.sdxl_model import SDXLModel, load_model
from trainers.sdxl.names import TEXT_ENCODER, UNET, kohya_names, module_key
from trainers.sdxl.targets import find_text_encoder_targets, find_unet_targets
from trainers.training.adapter_shapes import AdapterSettings
from trainers.training.adapters import (
    AdaptedComponent,
    AdaptedModel,
    attach_adapters,
    find_adapter_layers,
    get_base_layer,
)
from trainers.training.optimizers import ParameterGroup

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "adapter_effects.py"
TARGETS = r".*(attn1\.to_q|attn2\.to_k|ff\.net\.2|resnets\.0\.conv1|downsamplers\.0\.conv|conv_shortcut|time_emb_proj)"
PLAIN = AdapterSettings(rank=4, alpha=3.0, dropout=0.0, seed=0)
KINDS = {
    "lora": PLAIN,
    "convolutions_of_another_rank": replace(PLAIN, conv_rank=2, conv_alpha=0.7),
    "dora": replace(PLAIN, kind="dora", conv_rank=2, conv_alpha=0.7),
    "loha": replace(PLAIN, kind="loha"),
    "lokr": replace(PLAIN, kind="lokr"),
    "lokr_of_factor_4": replace(PLAIN, kind="lokr", lokr_factor=4),
    "lokr_decomposed": replace(PLAIN, kind="lokr", rank=1, lokr_decompose_both=True),
    "lokr_whole": replace(PLAIN, kind="lokr", lokr_full_matrix=True),
}


class Trained:
    """A model whose adapters have learned something."""

    def __init__(self, checkpoint: Path, settings: AdapterSettings) -> None:
        model = load_model(checkpoint)
        self.names = name_modules(model)
        parts = {UNET: model.unet.float(), TEXT_ENCODER: model.text_encoder.float()}
        targets = {
            UNET: find_unet_targets(model.unet, TARGETS),
            TEXT_ENCODER: find_text_encoder_targets(model.text_encoder, uses_last_layer=False),
        }
        components = {
            name: AdaptedComponent(
                part, [ParameterGroup(name, attach_adapters(part, targets[name], settings, component=name), 1e-3)]
            )
            for name, part in parts.items()
        }
        self.adapted = AdaptedModel(components, self.names, module_key)
        for number, flat in enumerate(self.adapted.flat_weights):
            flat.data += 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(number))
        self.adapted.publish()
        self.layers: dict[ModuleKey, nn.Module] = {
            module_key(name, path): layer
            for name, part in parts.items()
            for path, layer in find_adapter_layers(part).items()
        }


def name_modules(model: SDXLModel) -> ModuleNames:
    return kohya_names(
        *(list_weighted_modules(part) for part in (model.unet, model.text_encoder, model.text_encoder_2))
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_embedded_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> dict[str, Trained]:
    return {kind: Trained(checkpoint, settings) for kind, settings in KINDS.items()}


@pytest.fixture(scope="module")
def files(
    run_in_comfyui: Callable[..., str],
    checkpoint: Path,
    trained: dict[str, Trained],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for kind, each in trained.items():
        save_lora(folder / f"{kind}.safetensors", to_kohya(each.adapted.read(), each.names, dtype=torch.float32), {})
    run_in_comfyui(SCRIPT.read_text(), PACK, checkpoint, folder)
    return folder


def make_inputs(layer: nn.Module) -> Tensor:
    shape = (2, layer.in_channels, 6, 6) if isinstance(layer, nn.Conv2d) else (5, layer.in_features)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def compute(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    return functional.linear(x, weight, layer.bias)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_answers_in_comfyui_as_in_the_training(kind: str, trained: dict[str, Trained], files: Path):
    found, each = load_file(files / "weights" / f"{kind}.safetensors"), trained[kind]
    assert len(each.layers) > 30
    for key, layer in each.layers.items():
        base = get_base_layer(layer)
        x = make_inputs(base)
        before, ours = base(x), layer(x)
        theirs = compute(base, x, found[f"{each.names[key]} at 1.0"])
        effect = (ours - before).norm()
        assert effect > 1e-3 * before.norm() and (ours - theirs).norm() < 1e-5 * max(effect, before.norm()), key


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_merges_at_every_strength_as_comfyui_does(kind: str, trained: dict[str, Trained], files: Path):
    found, each = load_file(files / "weights" / f"{kind}.safetensors"), trained[kind]
    modules = read_lora(files / f"{kind}.safetensors", each.names)
    assert modules.keys() == each.layers.keys()
    for key, module in modules.items():
        weight = get_base_layer(each.layers[key]).weight
        for strength in (1.0, 0.6):
            merged = found[f"{each.names[key]} at {strength}"]
            torch.testing.assert_close(module.merge_into(weight, strength), merged, rtol=1e-5, atol=1e-6)
