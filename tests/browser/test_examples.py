"""Every example workflow in the real editor: it opens as it was saved, is equivalent to its
API-format twin, and runs.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.editor import Editor
from trainers.comfyui.client import Prompt
from trainers.comfyui.server import ComfyServer

EXAMPLES = Path(__file__).parents[2] / "example_workflows"
NAMES = sorted(path.stem for path in (EXAMPLES / "api").glob("*.json"))
LOADER, IMAGES, TRAINER, LATENT = 1, 2, 3, 6  # the same numbers in every example
COMPARE = 4
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SMALL_RUN = {
    "memory": "8 GB",
    "resolution": 128,
    "bucket_reso_steps": 32,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": "off",
    "optimizer": "AdamW",
    "max_train_steps": 12,
}


def read_workflow(name: str) -> dict[str, Any]:
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def read_twin(name: str) -> Prompt:
    return json.loads((EXAMPLES / "api" / f"{name}.json").read_text(encoding="utf-8"))


def add_defaults(prompt: Prompt, definitions: dict[str, Any]) -> Prompt:
    """Add the defaults that an API-format prompt may leave out but the editor writes."""
    return {
        node: {
            "class_type": entry["class_type"],
            "inputs": {**_list_defaults(definitions[entry["class_type"]]), **entry["inputs"]},
        }
        for node, entry in prompt.items()
    }


def _list_defaults(definition: dict[str, Any]) -> dict[str, Any]:
    inputs = {**definition["input"].get("required", {}), **definition["input"].get("optional", {})}
    defaults = {name: _find_default(*spec) for name, spec in inputs.items() if _is_widget(*spec)}
    for name, (kind, *options) in inputs.items():
        if kind == "COMFY_DYNAMICCOMBO_V3":  # the inputs of the first choice, which every example uses
            first = {"input": options[0]["options"][0]["inputs"]}
            defaults |= {f"{name}.{inner}": value for inner, value in _list_defaults(first).items()}
    return defaults


def _is_widget(kind: str | list[str], options: dict[str, Any] | None = None) -> bool:
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not (options or {}).get("forceInput")


def _find_default(kind: str | list[str], options: dict[str, Any] | None = None) -> Any:
    """Return the default; for a choice without one, its first option; None if it has none, such as
    a file where there are no files.
    """
    return (options or {}).get("default", next(iter(kind), None))


@pytest.fixture(scope="module")
def definitions(server: ComfyServer) -> dict[str, Any]:
    return server.client.get("/object_info")


def test_every_example_has_a_twin_and_a_thumbnail():
    assert sorted(path.stem for path in EXAMPLES.glob("*.json")) == NAMES
    assert sorted(path.stem for path in EXAMPLES.glob("*.jpg")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_editor_does_not_change_the_api_prompt(editor: Editor, definitions: dict[str, Any], name: str):
    editor.open_prompt(read_twin(name))
    editor.open_workflow(editor.workflow())
    assert editor.prompt() == add_defaults(read_twin(name), definitions)


@pytest.mark.parametrize("name", NAMES)
def test_the_workflow_is_equivalent_to_the_api_prompt(editor: Editor, definitions: dict[str, Any], name: str):
    editor.open_workflow(read_workflow(name))
    assert editor.prompt() == add_defaults(read_twin(name), definitions)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_as_it_was_saved(editor: Editor, name: str):
    """This includes a missing checkpoint and folder: the user must see the author's values."""
    saved = read_workflow(name)
    editor.open_workflow(saved)
    assert editor.complaints() == []
    opened = {node["id"]: node for node in editor.workflow()["nodes"]}
    for node in saved["nodes"]:
        assert opened[node["id"]].get("widgets_values") == node.get("widgets_values"), node["type"]
        assert opened[node["id"]]["pos"] == node["pos"]


RUN_ELSEWHERE = {"caption_and_train"}  # in test_review_captions.py
NEED_MODELS = {
    "train_z_image",
    "train_z_image_in_the_graph",
    "train_flux2_klein",
    "train_qwen_image",
    "train_qwen_image_edit",
}


@pytest.mark.parametrize("name", sorted({*NAMES} - RUN_ELSEWHERE - NEED_MODELS))
def test_the_run_button_trains(editor: Editor, renderer: str, name: str):
    editor.open_workflow(read_workflow(name))
    editor.wait_until("(id) => app.graph.getNodeById(id).has_errors", LOADER)  # the example's checkpoint is missing
    seed = 10 * NAMES.index(name) + len(renderer)  # a new seed for each run: ComfyUI caches earlier trainings
    editor.set_widgets(LOADER, ckpt_name="embedded_base.safetensors")
    editor.set_widgets(IMAGES, folder="toadstools")
    editor.set_widgets(TRAINER, **SMALL_RUN, seed=seed)
    if name == "compare_checkpoints":
        editor.set_widgets(COMPARE, width=64, height=64, steps=2, strengths="1", seeds="0")
    if name == "train_apply_sample":
        editor.set_widgets(LATENT, width=128, height=128)

    editor.run()
    assert editor.wait_for("preview")["kind"] == "preview"
    editor.screenshot(f"{name}_running")
    assert editor.wait_for("execution_success")["kind"] == "execution_success"
    editor.screenshot(f"{name}_done")

    steps = [event for event in editor.events("progress") if event["node"] == str(TRAINER)]
    assert len(steps) >= 2
    assert editor.widgets(TRAINER)["seed"] == seed
    assert "192/192 modules" in editor.widgets(TRAINER)["$$node-text-preview"]
    assert editor.complaints() == []
