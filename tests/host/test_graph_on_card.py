"""Training in the graph on the pretended GPU, in ComfyUI's memory modes and after sampling: what a
step costs, where everything is, and that the graph's models stay as they were.
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
SCRIPT = Path(__file__).with_name("scripts") / "graph_on_card.py"
MODES = ("normal", "lowvram", "highvram", "dynamic")
SMALL_BYTES = 1024
MAX_STREAMED_COPIES = 8 + 2 * 64  # two for each of 32 blocks, some in two pieces
NO_DRIVER = "comfy-aimdo loads weights into memory of NVIDIA's driver, which the pretended GPU has not"


@pytest.fixture(scope="module", params=MODES)
def results(request, run_in_comfyui: Callable[..., str], tmp_path_factory) -> dict[str, Any]:
    try:
        build_card()
    except CannotBuild as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("on_card")
    write_embedded_checkpoint(folder / "base.safetensors")
    write_random_lora(folder / "base.safetensors", folder / "lora.safetensors")
    files = [PACK, folder / "base.safetensors", folder / "lora.safetensors", folder]
    output = run_in_comfyui(SCRIPT.read_text(encoding="utf-8"), *files, request.param, on_card=True)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    return {"mode": request.param, **json.loads(line.removeprefix("RESULT"))}


def test_the_mode_is_the_one_that_is_meant(results):
    assert results["patcher"] == ("ModelPatcherDynamic" if results["mode"] == "dynamic" else "ModelPatcher")


@pytest.mark.parametrize(
    "state",
    ["never loaded", "after sampling", "with samples", "after sampling with a LoRA", "with a LoRA", "streamed"],
)
def test_a_step_waits_once_and_copies_little_with_everything_on_the_device(results, state: str):
    if results["mode"] == "dynamic" and "sampl" in state:
        pytest.skip(NO_DRIVER)
    found = results[state]
    assert found["syncs"] == 1 and found["copies"] <= (MAX_STREAMED_COPIES if state == "streamed" else 8)
    assert found["devices"] == (["cpu", "cuda:0"] if state == "streamed" else ["cuda:0"])
    assert found["encoders_are_gone"] and "192/192 modules load" in found["summary"]
    losses = results["never loaded"]["losses"]
    assert (found["losses"] == losses) == (state != "with a LoRA")  # which is another base model


def test_the_graphs_models_and_their_pictures_stay_as_they_were_and_the_card_is_empty(results):
    assert results["weights are unchanged"] and 0 <= results["bytes left"] < SMALL_BYTES
    if results["mode"] == "dynamic":
        pytest.skip(NO_DRIVER)
    assert results["same picture"] and results["same picture after apply lora"]


def test_apply_lora_draws_what_the_models_of_the_training_draw(results):
    if results["mode"] == "dynamic":
        pytest.skip(NO_DRIVER)
    assert results["apply lora"]
