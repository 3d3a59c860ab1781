"""Training on a UNet that ComfyUI has loaded in 8 or 4 bits: it keeps them, and the LoRA is that of
a copy in floats, bit for bit; on the CPU and on the pretended GPU.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.host.test_borrowed_weights import write_random_lora
from tests.pretend_gpu.build import CannotBuild, build_card
from trainers.embedded_base import write_embedded_checkpoint

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "quantized_unet.py"
KINDS = (
    "float8_e4m3fn",
    "float8_e4m3fn with a LoRA",
    "float8_e5m2",
    "scaled float8_e4m3fn",
    "scaled float8_e4m3fn with a LoRA",
    "scaled int8_tensorwise",
    "scaled nvfp4",
    "scaled mxfp8",
)


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def results(request, run_in_comfyui: Callable[..., str], tmp_path_factory) -> dict[str, Any]:
    on_card = request.param == "cuda"
    if on_card:
        try:
            build_card()
        except CannotBuild as reason:
            pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("quantized")
    write_embedded_checkpoint(folder / "base.safetensors")
    write_random_lora(folder / "base.safetensors", folder / "lora.safetensors")
    files = [PACK, folder / "base.safetensors", folder / "lora.safetensors", folder]
    output = run_in_comfyui(SCRIPT.read_text(encoding="utf-8"), *files, on_card=on_card)
    lines = [line for line in output.splitlines() if line.startswith("RESULT")]
    return {"device": "cuda:0" if on_card else "cpu", **dict(json.loads(line.removeprefix("RESULT")) for line in lines)}


def choose(results: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind.endswith("with a LoRA") and results["device"] != "cpu":
        pytest.skip(
            "ComfyUI rounds patched weights of 8 bits with a generator of CUDA, which the pretended GPU has not"
        )
    return results[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_lora_is_that_of_a_copy_in_floats_bit_for_bit_and_the_graphs_weights_stay(results, kind: str):
    found = choose(results, kind)
    assert found["is equal"] and found["learned"] and found["graph is unchanged"]
    assert found["is equal when streamed"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_keep_their_bits_on_the_device_without_a_copy_in_main_memory(results, kind: str):
    found = choose(results, kind)
    assert found["devices"] == [results["device"]] and found["shares the memory"]
    # the files of quantized formats have convolutions in 16 bits
    assert found["share of bytes"] < (0.85 if "scaled" in kind else 0.51)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_budget_and_flight_check_know_of_the_bits(results, kind: str):
    found = choose(results, kind)
    assert found["imagined is equal"]
    assert f"{found['layers']} layers of the base model stay in the bits that it is loaded in" in found["text"]
