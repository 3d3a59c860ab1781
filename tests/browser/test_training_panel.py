"""The training panel as users see it, over run folders as a trainer writes them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.editor import READY, RECORD_EVENTS, Editor
from tests.run_folders import keep_alive, write_losses, write_progress, write_result, write_run
from trainers.comfyui.server import ComfyServer

if TYPE_CHECKING:
    from playwright.sync_api import Locator

EXAMPLE = Path(__file__).parents[2] / "example_workflows" / "train_sdxl_from_folder.json"
TRAINERS = (
    "LoRATrainer_LoRATrainSDXL",
    "LoRATrainer_TrainLoRA",
    "LoRATrainer_MusubiTrain",
    "LoRATrainer_TrainSlider",
)
NAME = "toadstool-20261130-140000"
EARLIER = "earlier-20261129-101500"
BUSY = "(count) => app.api.dispatchCustomEvent('status', { exec_info: { queue_remaining: count } })"
TO_SUBGRAPH = """(id) => {
    const { node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]));
    app.canvas.openSubgraph(node.subgraph, node);
    return [String(node.id), String(node.subgraph.nodes.find((each) => each.comfyClass).id)];
}"""


class Panel:
    """The panel of the page's only trainer, the node with the id `node`."""

    def __init__(self, editor: Editor, runs_folder: Path) -> None:
        self.editor = editor
        self.runs_folder = runs_folder
        self.root = editor.page.locator(".ltp")
        self.node = 0

    def open_example(self) -> None:
        workflow = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        self.editor.open_workflow(workflow)
        self.node = next(node["id"] for node in workflow["nodes"] if node["type"] == TRAINERS[0])
        self.root.wait_for(state="attached")

    def write_run(self, name: str = NAME, *, node: str = "", **changes: Any) -> Path:
        workflow = self.editor.evaluate("() => (app.rootGraph ?? app.graph).id")
        origin = {"node_id": node or str(self.node), "workflow_id": workflow, "prompt_id": "p"}
        return write_run(self.runs_folder, name, origin=origin, **changes)

    def begin(self) -> None:
        """Let the server say that a prompt runs, as it does when a training begins."""
        self.editor.evaluate(BUSY, 1)
        self.editor.page.locator(".ltp-open").wait_for()

    def button(self, name: str) -> "Locator":
        return self.root.get_by_role("button", name=name, exact=True)

    def number(self, name: str) -> str:
        row = self.root.locator(".ltp-entry-number", has=self.editor.page.get_by_text(name, exact=True))
        return row.locator("dd").inner_text().replace("\n", " ")

    def wait_for_text(self, text: str) -> None:
        self.root.get_by_text(text).first.wait_for()

    def look_at(self) -> None:
        """Zoom so that the panel is seen at its normal size, and a little larger."""
        self.editor.evaluate(
            """(id) => {
                const { pos, size } = app.graph.getNodeById(id);
                const { ds } = app.canvas;
                ds.scale = 1.4;
                ds.offset = [300 - pos[0], 640 - pos[1] - size[1]];
                app.canvas.setDirty(true, true);
            }""",
            self.node,
        )
        self.editor.page.wait_for_timeout(1000)


@pytest.fixture
def panel(server: ComfyServer, editor: Editor) -> Iterator[Panel]:
    runs_folder = server.base_directory / "output" / "lora_trainer" / "runs"
    runs_folder.mkdir(parents=True, exist_ok=True)
    before = set(runs_folder.iterdir())
    editor.evaluate("() => app.extensionManager.toast.removeAll()")  # what the test before has left
    yield Panel(editor, runs_folder)
    editor.evaluate(BUSY, 0)
    for folder in set(runs_folder.iterdir()) - before:
        shutil.rmtree(folder)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_before_the_first_run_it_is_one_line_and_in_neither_workflow_nor_prompt(
    editor: Editor, panel: Panel, trainer: str
):
    node = editor.add_node(trainer)
    panel.wait_for_text("No training yet")
    assert panel.root.evaluate("(element) => element.offsetHeight") <= 48
    (saved,) = editor.workflow()["nodes"]
    assert len(saved["widgets_values"]) == len(editor.widgets(node)) - 1
    assert "training_panel" not in json.dumps(saved)
    assert not any("training_panel" in name for name in editor.prompt()[str(node)]["inputs"])
    assert editor.complaints() == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_run_is_shown_with_everything(editor: Editor, panel: Panel, theme: str):
    editor.evaluate("(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
    panel.open_example()
    write_run(panel.runs_folder, EARLIER, steps=1000, status="finished", shift=0.012)
    folder = panel.write_run(notices=["3 of 12 images are enlarged."])
    with keep_alive(folder):
        panel.begin()
        assert panel.root.locator(".ltp-state").inner_text() == "Training"
        assert panel.number("Validation") == "0.1093 best at step 400"
        assert panel.number("Memory") == "8.4 GB of 12.0 GB"
        assert panel.number("Time left") == "4:10" and panel.number("Speed") == "1.60 it/s"
        assert "bf16, AdamW8bit" in (panel.root.locator("pre").text_content() or "")
        assert panel.root.locator(".ltp-samples img").count() == 3
        assert panel.root.locator(".ltp-lora-name").all_inner_texts() == ["Step 600", "Step 400", "Step 200"]
        panel.root.get_by_label("Compare with").select_option(EARLIER)
        panel.root.locator(".ltp-other").wait_for(state="attached")
        panel.look_at()
        editor.screenshot(f"panel_{theme}")
        panel.root.locator(".ltp-samples").scroll_into_view_if_needed()
        editor.wait_until("() => [...document.querySelectorAll('.ltp-samples img')].every((each) => each.naturalWidth)")
        editor.screenshot(f"panel_{theme}_below")
    editor.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def test_the_values_at_a_step_can_be_read_with_pointer_and_keyboard(editor: Editor, panel: Panel):
    panel.open_example()
    with keep_alive(panel.write_run()):
        panel.begin()
        slider = panel.root.get_by_role("slider")
        legend = panel.root.locator(".ltp-legend-step")
        assert legend.inner_text() == "Step 600"
        panel.look_at()
        slider.hover()
        middle = int(legend.inner_text().removeprefix("Step "))
        assert 270 < middle < 330
        slider.focus()
        for key, step in (("Home", 2), ("ArrowRight", 4), ("PageUp", 24), ("End", 600), ("ArrowLeft", 598)):
            slider.press(key)
            assert legend.inner_text() == f"Step {step}"
        assert slider.get_attribute("aria-valuetext").startswith("Step 598, Smoothed 0.1")
        picture = panel.root.get_by_role("img").first
        assert picture.get_attribute("aria-label").startswith("Loss over 600 steps: smoothed, it was 0.1")


@pytest.mark.parametrize(("name", "file"), [("Finish now", "finish"), ("Pause", "pause")])
def test_a_button_asks_the_run(panel: Panel, name: str, file: str):
    panel.open_example()
    folder = panel.write_run()
    with keep_alive(folder):
        panel.begin()
        panel.button(name).click()
        panel.wait_for_text("after this step")
        assert (folder / file).is_file() and panel.button(name).is_disabled()
        with panel.editor.page.expect_request("**/interrupt") as interrupt:
            panel.button("Cancel").click()
        assert interrupt.value.post_data_json == {"prompt_id": "p"}
        panel.wait_for_text("Cancelling")


def test_the_end_is_said_once_and_the_result_can_be_used(editor: Editor, panel: Panel):
    panel.open_example()
    folder = panel.write_run(steps=900)
    with keep_alive(folder):
        panel.begin()
        losses = [0.1] * 1000
        write_losses(folder, losses, total=1000)
        shutil.copy(folder / "checkpoints" / "toadstool-step00000800.safetensors", folder / "toadstool.safetensors")
        write_result(folder, steps=1000, total=1000)
        write_progress(folder, losses, total=1000, status="finished", message="It is in the run's folder")
        said = editor.page.locator(".p-toast-message-success", has_text=f"Finished – {NAME}")
        said.wait_for()
    assert said.count() == 1
    assert not panel.button("Finish now").is_visible() and panel.root.locator(".ltp-best").count() == 1
    panel.root.get_by_role("button", name="Copy path").first.click()
    panel.wait_for_text("Path copied")
    assert panel.root.locator("code").inner_text() == str(folder / "toadstool.safetensors")


LOADERS = """() => app.graph.nodes.filter((node) => node.type === "LoraLoader").map((node) => ({
    lora: node.widgets.find((widget) => widget.name === "lora_name").value,
    from: ["model", "clip"].map((name) => node.inputs.find((input) => input.name === name).link !== null),
    id: node.id,
}))"""
ADD_SELECTED = """() => {
    const node = LiteGraph.createNode("LoraLoader");
    node.pos = [0, 1200];
    app.graph.add(node);
    app.canvas.selectNode(node);
    return node.id;
}"""


def test_a_lora_is_put_to_use_in_a_new_loader_and_then_in_the_selected_one(
    editor: Editor, panel: Panel, server: ComfyServer
):
    panel.open_example()
    loras = server.base_directory / "models" / "loras"
    with keep_alive(panel.write_run()):
        panel.begin()
        use = panel.root.get_by_role("button", name="Use", exact=True)
        use.nth(1).click()
        panel.wait_for_text("loads it now.")
        (loader,) = editor.evaluate(LOADERS)
        assert loader["lora"] == "toadstool-step00000400.safetensors" and loader["from"] == [True, True]
        panel.look_at()
        editor.screenshot("panel_lora_in_use")
        use.nth(0).click()
        editor.wait_until(
            "(name) => app.graph.nodes.some((node) => node.widgets?.some((each) => each.value === name))",
            "toadstool-step00000600.safetensors",
        )
        assert len(editor.evaluate(LOADERS)) == 1, "the one that it has made is used again"
        other = editor.evaluate(ADD_SELECTED)
        use.nth(2).click()
        editor.wait_until(
            "([id, name]) => app.graph.getNodeById(id).widgets[0].value === name",
            [other, "toadstool-step00000200.safetensors"],
        )
        assert len(editor.evaluate(LOADERS)) == 2
        assert editor.prompt()[str(other)]["inputs"]["lora_name"] == "toadstool-step00000200.safetensors"
        assert editor.complaints() == []
    for path in loras.glob("toadstool-step*.safetensors"):
        path.unlink()


def test_a_run_that_was_killed_offers_to_resume(panel: Panel):
    panel.open_example()
    with keep_alive(panel.write_run()):
        panel.begin()
    panel.button("Resume").wait_for()
    assert panel.root.locator(".ltp-state").inner_text() == "Ended unexpectedly"


def test_it_opens_closes_and_survives_a_refresh(editor: Editor, panel: Panel):
    panel.open_example()
    with keep_alive(panel.write_run()):
        panel.begin()
        opened = editor.height(panel.node)
        panel.button("Hide the training").click()
        panel.root.locator(".ltp-body").wait_for(state="hidden")
        assert editor.height(panel.node) < opened - 300
        panel.button("Show the training").click()
        panel.root.locator(".ltp-body").wait_for()
        assert abs(editor.height(panel.node) - opened) < 60
        editor.page.wait_for_timeout(1500)  # the editor saves the graph by itself, a moment after a change
        editor.page.reload(wait_until="domcontentloaded")
        editor.wait_until(READY)
        editor.evaluate(RECORD_EVENTS)
        editor.page.locator(".ltp-open").wait_for()
        assert panel.number("Time left") == "4:10"
        assert abs(editor.height(panel.node) - opened) < 60


def test_a_trainer_in_a_subgraph_finds_its_run(editor: Editor, panel: Panel):
    panel.open_example()
    outer, inner = editor.evaluate(TO_SUBGRAPH, panel.node)
    panel.node = int(inner)
    with keep_alive(panel.write_run(node=f"{outer}:{inner}")):
        panel.begin()
        assert panel.root.locator(".ltp-state").inner_text() == "Training"
        editor.screenshot("panel_in_subgraph")


def test_it_uses_the_language_of_the_settings(editor: Editor, panel: Panel):
    panel.open_example()
    set_locale = "(locale) => app.extensionManager.setting.set('Comfy.Locale', locale)"
    with keep_alive(panel.write_run()):
        panel.begin()
        try:
            editor.evaluate(set_locale, "fr")  # the front end opens the workflow again
            panel.button("Terminer ici").wait_for()
            panel.root.locator(".ltp-legend-step").get_by_text("Étape 600").wait_for()
            panel.look_at()
            editor.screenshot("panel_french")
        finally:
            editor.evaluate(set_locale, "en")
        panel.button("Finish now").wait_for()
