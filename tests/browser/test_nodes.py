"""Our nodes in the editor: new ones from the menu, and ones with errors."""

import json
from pathlib import Path

import pytest

from tests.browser.editor import Editor

EXAMPLE = Path(__file__).parents[2] / "example_workflows" / "train_sdxl_from_folder.json"
TRAINER = "LoRATrainer_LoRATrainSDXL"
TRAINERS = (TRAINER, "LoRATrainer_TrainLoRA")
SHOWN = ["goal", "memory", "rank", "learning_rate", "max_train_steps", "resolution", "seed", "output_name"]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_new_trainer_shows_eight_widgets(editor: Editor, trainer: str):
    node = editor.add_node(trainer)
    editor.screenshot("fresh")
    assert [name for name in editor.visible_widgets(node) if name != "control after generate"] == SHOWN
    assert editor.height(node) < 500


def test_the_advanced_widgets_can_be_shown(editor: Editor):
    node = editor.add_node(TRAINER)
    editor.show_advanced(node)
    editor.screenshot("advanced")
    assert {"alpha", "optimizer", "network_weights"} < set(editor.visible_widgets(node))


def test_the_seed_of_a_new_trainer_is_fixed(editor: Editor):
    """The front end's default would change it with every Run, and train again."""
    node = editor.add_node(TRAINER)
    assert (
        editor.evaluate(
            "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'seed').linkedWidgets[0].value", node
        )
        == "fixed"
    )


def test_an_error_is_shown_on_the_node_that_has_it(editor: Editor):
    editor.open_workflow(json.loads(EXAMPLE.read_text(encoding="utf-8")))
    editor.set_widgets(1, ckpt_name="embedded_base.safetensors")
    editor.set_widgets(2, folder="[None]", path="/nowhere")
    editor.run()
    editor.wait_until("() => Object.keys(app.lastNodeErrors ?? {}).length > 0")
    editor.screenshot("mistake")
    errors = editor.evaluate("() => app.lastNodeErrors")
    assert list(errors) == ["2"]
    assert "/nowhere: there is no such folder" in errors["2"]["errors"][0]["details"]
    assert "path" in editor.evaluate(
        "() => app.graph.getNodeById(2).inputs.filter((input) => input.hasErrors).map((input) => input.name)"
    )
