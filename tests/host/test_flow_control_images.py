"""Edit models with control images, at tiny size on ComfyUI's own classes: what the trainer tells
the model is what ComfyUI's nodes tell it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "flow_control_images.py"
REFERENCES = {
    "Qwen-Image-Edit": 1,
    "Qwen-Image-Edit-2509": 2,
    "Qwen-Image-Edit-2511": 1,
    "FLUX.1 Kontext": 1,
    "FLUX.2": 2,
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def results(run_in_comfyui: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = run_in_comfyui(SCRIPT.read_text(), PACK, tmp_path_factory.mktemp("edit"))
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


@pytest.mark.parametrize("name", REFERENCES)
def test_conditions_are_those_of_comfyuis_nodes_bit_for_bit(results, name):
    """Of two images and two mirrored ones, loaded by ComfyUI's Load Image."""
    found = results["conditions"][name]
    assert "error" not in found, found["error"]
    assert found == {"equal": [True] * 4, "references": [REFERENCES[name]]}


@pytest.mark.parametrize("name", REFERENCES)
def test_comfyui_predicts_with_the_lora_and_the_control_image_what_the_trainer_predicts(results, name):
    found = results["predictions"][name]
    assert "error" not in found, found["error"]
    assert found["load"] == found["in_file"] > 5
    assert max(found["differences"]) < TOLERANCE
    assert found["of_control"] > 0.01, "the control image changes nothing"


def test_only_the_control_images_tell_what_to_draw(results):
    """Of two images with one caption, each is learned, and its own control image is what calls it
    up.
    """
    found = results["learned"]
    assert "error" not in found, found["error"]
    for before, after, with_other in zip(found["before"], found["after"], found["with_other"], strict=True):
        assert after < 0.6 * before
        assert after < 0.85 * with_other


def test_a_stopped_run_goes_on_bit_for_bit(results):
    assert results["stopped"] == {"losses": True, "lora": True}
