"""Train LoRA (Musubi Tuner) in the editor: the choice of the architecture brings its own
widgets.
"""

import json

from tests.browser.editor import Editor

TRAINER = "LoRATrainer_MusubiTrain"
SHARED = ["max_train_steps", "seed", "output_name"]
Z_IMAGE = ["architecture", "dit", "vae", "text_encoder", "rank", "learning_rate", "resolution"]


def list_visible(editor: Editor, node: int) -> list[str]:
    return [name for name in editor.visible_widgets(node) if name != "control after generate"]


def test_a_fresh_trainer_shows_the_files_and_settings_of_the_first_architecture(editor: Editor):
    node = editor.add_node(TRAINER)
    editor.screenshot("musubi_fresh")
    assert list_visible(editor, node) == [*Z_IMAGE, *SHARED]
    assert editor.widgets(node)["architecture.discrete_flow_shift"] == 2.0


def test_another_architecture_brings_its_own_widgets_with_recommended_values(editor: Editor):
    node = editor.add_node(TRAINER)
    editor.set_widgets(node, architecture="wan")
    editor.screenshot("musubi_wan")
    files = ["dit", "vae", "t5", "dit_high_noise"]
    assert list_visible(editor, node) == [
        "architecture",
        *files,
        "task",
        "rank",
        "learning_rate",
        "resolution",
        *SHARED,
    ]
    widgets = editor.widgets(node)
    assert (
        widgets["architecture.learning_rate"],
        widgets["architecture.resolution"],
        widgets["architecture.discrete_flow_shift"],
    ) == (2e-4, 768, 3.0)
    editor.set_widgets(node, architecture="hidream-o1")
    assert list_visible(editor, node) == [
        "architecture",
        "dit",
        "model_type",
        "rank",
        "learning_rate",
        "resolution",
        *SHARED,
    ]


def test_the_advanced_widgets_of_an_architecture_can_be_shown(editor: Editor):
    node = editor.add_node(TRAINER)
    editor.set_widgets(node, architecture="krea-2")
    editor.show_advanced(node)
    editor.screenshot("musubi_advanced")
    assert {"fp8", "blocks_to_swap", "timestep_sampling", "optimizer"} < set(list_visible(editor, node))


def test_a_saved_graph_opens_with_its_architecture_and_values(editor: Editor):
    node = editor.add_node(TRAINER)
    editor.set_widgets(node, architecture="qwen-image-edit", max_train_steps=77, output_name="pairs")
    editor.set_widgets(
        node, **{"architecture.model_version": "edit-2509", "architecture.rank": 8, "architecture.blocks_to_swap": 20}
    )
    before = editor.widgets(node)
    editor.open_workflow(json.loads(json.dumps(editor.workflow())))
    assert editor.widgets(node) == before
    assert before["architecture.blocks_to_swap"] == 20 and before["max_train_steps"] == 77


def test_neither_a_setting_nor_a_widget_says_where_musubi_is(editor: Editor):
    settings = editor.evaluate(
        "() => Object.keys(app.ui.settings.settingsLookup ?? {}).filter((id) => id.includes('Musubi'))"
    )
    assert settings == []
    node = editor.add_node(TRAINER)
    assert not {"python", "folder"} & {name.lower() for name in editor.widgets(node)}
