"""Training on the graph's own weights: none are copied or changed, LoRAs and merges count, and
unsuitable models are refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.embedded_base import write_embedded_checkpoint
from trainers.lora.file import save_lora, to_kohya
from trainers.lora.modules import LoraModule, list_weighted_modules
from trainers.sdxl.model.sdxl_model import load_model
from trainers.sdxl.names import kohya_names
from trainers.sdxl.targets import find_unet_targets

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "borrowed_weights.py"


@pytest.fixture(scope="module")
def results(run_in_comfyui: Callable[..., str], tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("borrowed")
    write_embedded_checkpoint(folder / "base.safetensors")
    write_random_lora(folder / "base.safetensors", folder / "lora.safetensors")
    output = run_in_comfyui(SCRIPT.read_text(), PACK, folder / "base.safetensors", folder / "lora.safetensors", folder)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


def write_random_lora(base: Path, path: Path) -> None:
    unet = load_model(base).unet
    generator = torch.Generator().manual_seed(0)
    modules = {}
    for name in find_unet_targets(unet, "attention_mlp"):
        layer = unet.get_submodule(name)
        modules["unet", name] = LoraModule(
            *(
                torch.randn(shape, generator=generator) * 0.1
                for shape in ((4, layer.in_features), (layer.out_features, 4))
            ),
            4.0,
        )
    save_lora(path, to_kohya(modules, kohya_names(list_weighted_modules(unet), [], []), dtype=torch.float32), {})


def test_no_weight_of_unet_text_encoders_and_vae_is_copied(results):
    assert results["shared"] == {
        "weights": results["shared"]["weights"],
        "copied": 0,
        "inference": 0,
        "trainable": 0,
        "prediction": ["epsilon", False],
        "name": "base",
    }
    assert results["shared"]["weights"] > 700


def test_a_backward_pass_works_and_does_not_change_a_bit_of_the_graphs_models(results):
    assert results["gradient"] > 0 and results["unchanged"] and results["inference_mode_is_back"]


def test_a_lora_on_the_model_is_part_of_the_frozen_base_and_only_its_layers_are_copied(results):
    found = results["with_lora"]
    assert found["difference_to_sampler"] == 0 and found["difference_to_base"] > 1e-3
    assert found["copied"] == 192 and found["path"] is None


def test_training_on_a_merge_uses_the_weights_that_sampling_uses(results):
    assert results["merged"] < 1e-6


def test_after_sampling_with_a_lora_borrowing_returns_the_plain_model(results):
    assert results["after_sampling_with_a_lora"] == 0


@pytest.mark.parametrize("name", ["plain", "patched"])
def test_a_model_that_computes_on_the_cpu_of_a_machine_with_a_gpu_is_borrowed_without_what_sampling_left(results, name):
    was_patched, difference = results[f"beside_a_gpu_{name}"]
    assert was_patched and difference == 0


def test_with_highvram_the_graphs_models_leave_the_gpu(results):
    assert results["moved_from_the_gpu"] == ["cpu"]


def test_patched_weights_are_brought_back_to_main_memory(results):
    assert results["patched_weights_brought_back"] == 192


def test_8_bit_weights_stay_on_their_memory(results):
    assert results["float8"] == {"kind": "Float8Linear", "shares the memory": True, "difference": 0.0}
    quantized = results["quantized"]
    assert quantized["kind"] == "GraphLinear" and quantized["shares the memory"] and quantized["difference"] < 0.1


def test_other_quantized_weights_are_refused_with_their_type(results):
    assert (
        results["gguf"].startswith("MODEL holds its weights as GGMLTensor")
        and "ComfyUI's own loaders" in results["gguf"]
    )


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("bypass", "MODEL carries a LoRA in bypass mode"),
        ("clip_skip", "CLIP Set Last Layer is -3; SDXL is trained on the penultimate layer"),
        ("no_clip", "CLIP is empty"),
        ("no_vae", "VAE is empty"),
        ("no_vae_in_file", "VAE is empty"),
        ("edm", "MODEL samples with"),
    ],
)
def test_models_that_cannot_be_trained_on_are_refused(results, case: str, message: str):
    assert message in results["refused"][case]


def test_training_uses_the_graphs_prediction_type(results):
    assert results["v_prediction"] == ["v_prediction", True] and results["clip_skip_2"] == "accepted"
