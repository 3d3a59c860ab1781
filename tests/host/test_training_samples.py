"""Sample images of a training in the graph are those that KSampler draws with the saved LoRA."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers.embedded_base import write_embedded_checkpoint, write_embedded_z_image

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "training_samples.py"
CASES = (
    "sdxl",
    "sdxl patched",
    "sdxl text encoders",
    "sdxl streamed",
    "sdxl dora",
    "sdxl fp8",
    "z-image",
    "z-image patched",
    "flux",
)


@pytest.fixture(scope="module")
def results(run_in_comfyui: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("samples")
    write_embedded_checkpoint(folder / "base.safetensors")
    base = write_embedded_z_image(folder)
    files = (folder / "base.safetensors", base.model, base.text_encoder, base.vae, folder)
    output = run_in_comfyui(SCRIPT.read_text(encoding="utf-8"), PACK, *files)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


@pytest.mark.parametrize("name", CASES)
def test_a_sample_is_what_ksampler_draws_with_the_lora(results, name: str):
    found = results[name]
    assert "error" not in found, found["error"]
    assert found["latents"] < 1e-4 and found["levels"] <= 2
    if "fp8" not in name and name != "flux":  # drawn before the first step
        assert found["effect"] > 1e-2, "the LoRA changes nothing, so the test would see no difference"


@pytest.mark.parametrize("name", CASES)
def test_no_weight_is_copied_and_the_graphs_models_stay_as_they_are(results, name: str):
    found = results[name]
    assert found["copied"] == 0 and found["is_unchanged"] and found["loaded_after"] == 0


@pytest.mark.parametrize("name", ["sdxl", "z-image"])
def test_a_training_with_samples_is_bit_for_bit_the_one_without(results, name: str):
    assert results[name]["losses"] == results[f"{name} without"] and results[name]["same_random"]


def test_a_sampler_that_comfyui_has_not_is_refused(results):
    usual, sampler, scheduler = results["refused"]
    assert usual == "" and sampler.startswith("sample_sampler 'magic' is none of this ComfyUI's: euler, ")
    assert scheduler.startswith("sample_scheduler 'magic' is none of this ComfyUI's: auto, ")


def test_a_cancel_ends_the_samples_at_the_next_step(results):
    assert results["cancelled"] == {"calls": 3, "checks": 3}


def test_an_interrupt_that_comfyui_answers_itself_cancels_the_training_too(results):
    assert results["interrupted"] is True, "the flag is up again, so that the training saves and stops"
