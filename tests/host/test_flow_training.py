"""A LoRA for any MODEL of the graph: every family at tiny size, on ComfyUI's own classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "flow_training.py"
FAMILIES = """
    Z-Image|FLUX.1|FLUX.1 Kontext|FLUX.1 schnell|FLUX.2 klein|FLUX.2 dev|Chroma|Qwen-Image|Qwen-Image-Edit|Krea 2|Anima|
    Cosmos-Predict2|Lumina 2|SD 3.5|HunyuanImage 2.1|HunyuanVideo|Wan 2.1|Wan 2.2 14B|Wan 2.2 5B|ERNIE-Image|Ideogram 4|
    HiDream|SD 1.5|SD 2|SD 2 v
"""
NAMES = [name.strip() for name in FAMILIES.replace("\n", "").split("|")]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def results(run_in_comfyui: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = run_in_comfyui(SCRIPT.read_text(), PACK, tmp_path_factory.mktemp("flow"))
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


def check(result: dict[str, Any], *, tolerance: float = TOLERANCE) -> None:
    assert "error" not in result, result["error"]
    assert result["shared"] == result["weights"] > 20
    assert result["is_unchanged"], "the graph's MODEL was changed"
    assert result["load"] == result["in_file"] > 5 and not result["unknown"]
    assert result["difference"] < tolerance
    assert result["last_loss"] < 0.95 * result["first_loss"]


def test_every_family_is_trained(results):
    assert list(results["families"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_trained_on_the_graphs_own_weights(results, name):
    """All weights are shared and stay as they are, every module loads, ComfyUI predicts with the
    file what the trainer predicted, and one image is learned.
    """
    result = results["families"][name]
    check(result)
    assert all(result["header"].values())


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "mxfp8", "nvfp4"])
def test_quantized_weights_are_trained_on_as_they_are(results, kind):
    """ComfyUI puts the LoRA into the weights, and quantizes them again: only roughly the same."""
    check(results["quantized"][kind], tolerance=0.2)


@pytest.mark.parametrize("kind", ["GGMLTensor", "TensorCoreConvRotW4A4Layout", "AsymW4A8Int8Layout"])
def test_forms_without_gradients_are_refused_by_name_before_anything_is_encoded(results, kind):
    refused = results["refused"][kind]
    assert "error" not in refused, refused["error"]
    assert refused["message"].startswith(f"MODEL holds its weights as {kind}, ") and refused["encoded"] == [0, 0]
    assert "Load a .safetensors file in fp16, bf16, fp32, fp8, int8, mxfp8 or nvfp4" in refused["message"]


def test_one_text_encoder_in_two_ways_is_two(results):
    """Z-Image and FLUX.2 klein read captions by the same Qwen3."""
    first, again, other_layer, other_kind = results["texts"]
    assert first == again and len({first, other_layer, other_kind}) == 3


def test_rotated_int8_weights_are_trained_on(results):
    assert results["rotated"]["message"] == ""


def test_a_bf16_model_is_trained_in_bf16(results):
    check(results["bf16"], tolerance=0.05)


def test_a_stopped_run_goes_on_bit_for_bit(results):
    stopped = results["stopped"]
    assert "error" not in stopped, stopped["error"]
    assert stopped["unchanged_after"] == {"Interrupted": True, "KeyError": True, "OutOfMemoryError": True}
    assert stopped["same_losses"] and stopped["same_lora"] and stopped["was_loaded"]


@pytest.mark.parametrize("kind", ["fp32", "fp8"])
def test_blocks_that_come_to_the_device_one_by_one_train_the_same(results, kind):
    streamed = results["streamed"][kind]
    assert "error" not in streamed, streamed["error"]
    assert all(streamed.values()), streamed
