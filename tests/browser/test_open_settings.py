"""Settings that are left open show what the presets chose for them: at once, and after a run."""

import json

from tests.browser.editor import Editor
from tests.browser.test_examples import IMAGES, LOADER, SMALL_RUN, TRAINER, read_workflow

SDXL = "LoRATrainer_LoRATrainSDXL"
ANY_MODEL = "LoRATrainer_TrainLoRA"
CHECK = "LoRATrainer_FlightCheck"
SHOWS = "([id, labels]) => labels.every((label) => app.graph.getNodeById(id).widgets.some((w) => w.label === label))"


def wait_for_labels(editor: Editor, node: int, *labels: str) -> None:
    editor.wait_until(SHOWS, [node, labels])
    if editor.renderer == "vue":
        for label in labels:
            editor.page.get_by_test_id("widget-layout-field-label").filter(has_text=label).first.wait_for()


def test_a_new_node_shows_what_the_presets_choose(editor: Editor):
    node = editor.add_node(SDXL)
    wait_for_labels(editor, node, "rank → 16", "learning_rate → 0.0001", "resolution → 1024", "max_train_steps")
    editor.show_node(node)
    editor.screenshot("open_settings")
    assert {"rank": 0, "learning_rate": 0.0, "resolution": 0}.items() <= editor.widgets(node).items()
    assert "→" not in json.dumps(editor.workflow(), ensure_ascii=False)


def test_the_numbers_follow_the_widgets(editor: Editor):
    node = editor.add_node(SDXL)
    editor.show_advanced(node)
    wait_for_labels(editor, node, "rank → 16", "alpha → 8")
    editor.set_widgets(node, goal="style")
    wait_for_labels(editor, node, "rank → 32", "alpha → 16")
    editor.set_widgets(node, rank=8, memory="8 GB")
    wait_for_labels(editor, node, "rank", "alpha → 4", "gradient_accumulation_steps → 2", "gradient_checkpointing → on")
    editor.set_widgets(node, train_batch_size=4)
    wait_for_labels(editor, node, "train_batch_size", "gradient_accumulation_steps → 1")


def test_a_saved_node_opens_with_the_numbers_of_its_own_goal(editor: Editor):
    node = editor.add_node(SDXL)
    editor.set_widgets(node, goal="style")
    editor.open_workflow(editor.workflow())
    wait_for_labels(editor, node, "rank → 32", "resolution → 1024")


def test_train_lora_shows_numbers_only_after_a_run(editor: Editor):
    """They depend on the model."""
    node = editor.add_node(ANY_MODEL)
    editor.page.wait_for_timeout(500)
    wait_for_labels(editor, node, "rank", "learning_rate", "resolution")
    chosen = {"rank": 32, "learning_rate": 0.0001, "timestep_sampling": "sigmoid"}
    presets = {"goal": "object", "memory": "auto", "given": {}, "chosen": chosen}
    editor.evaluate(
        "([id, presets]) => app.graph.getNodeById(id).onExecuted({ lora_trainer: [{ presets }] })", [node, presets]
    )
    wait_for_labels(editor, node, "rank → 32", "learning_rate → 0.0001")
    editor.set_widgets(node, goal="style")
    wait_for_labels(editor, node, "rank", "learning_rate")


def test_flight_check_shows_them_too(editor: Editor):
    node = editor.add_node(CHECK)
    wait_for_labels(editor, node, "rank → 16", "resolution → 1024", "max_train_steps")


def test_after_a_run_the_number_of_steps_is_shown_until_a_setting_changes(editor: Editor, renderer: str):
    editor.open_workflow(read_workflow("train_sdxl_from_folder"))
    editor.set_widgets(LOADER, ckpt_name="embedded_base.safetensors")
    editor.set_widgets(IMAGES, folder="toadstools")
    size = {"resolution": 64, "resize_mode": "center_crop", "train_batch_size": 12}  # an epoch is one step
    editor.set_widgets(TRAINER, **{**SMALL_RUN, **size, "max_train_steps": 0, "seed": len(renderer)})
    editor.run()
    assert editor.wait_for("execution_success")["kind"] == "execution_success"
    wait_for_labels(editor, TRAINER, "max_train_steps → 80", "rank → 16")
    assert editor.widgets(TRAINER)["max_train_steps"] == 0
    assert editor.prompt()[str(TRAINER)]["inputs"]["max_train_steps"] == 0
    editor.set_widgets(TRAINER, goal="style")
    wait_for_labels(editor, TRAINER, "max_train_steps", "rank → 32")
