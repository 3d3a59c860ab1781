"""Draws the thumbnails of the example workflows that show a graph: UPDATE_THUMBNAILS=1 pytest
tests/browser/test_thumbnails.py. The thumbnail of train_apply_sample is a result, not a graph.
"""

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.editor import Editor
from tests.browser.test_examples import EXAMPLES, IMAGES, read_workflow

UPDATE = "UPDATE_THUMBNAILS"
SIZE = (960, 540)
CLIP = {"x": 0.0, "y": 0.0, "width": 1600.0, "height": 900.0}
# Without the editor's bars and messages.
ONLY_THE_GRAPH = "body * { visibility: hidden } #graph-canvas, .dom-widget, .dom-widget * { visibility: visible }"
SHOW = """([[x, y, width, height], clip]) => {
    const scale = Math.min(clip.width / width, clip.height / height);
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset[0] = clip.x / scale - x;
    app.canvas.ds.offset[1] = clip.y / scale - y;
    app.canvas.deselectAll();
    // a missing checkpoint or model file
    for (const node of app.graph.nodes) {
        node.has_errors = false;
        for (const input of node.inputs ?? []) input.hasErrors = false;
    }
    app.canvas.draw(true, true);
}"""
HAS_NUMBERS = "() => app.graph.nodes.some((node) => node.widgets?.some((widget) => widget.label === 'rank → 16'))"

pytestmark = pytest.mark.skipif(not os.environ.get(UPDATE), reason=f"set {UPDATE}=1 to draw the thumbnails again")


@pytest.fixture(autouse=True)
def canvas_only(renderer: str) -> None:
    if renderer != "canvas":
        pytest.skip("the thumbnails show the canvas")


def draw(editor: Editor, name: str, area: tuple[int, int, int, int]) -> None:
    """Draw an area of the graph: x, y, width and height in its own units."""
    style = editor.page.add_style_tag(content=ONLY_THE_GRAPH)
    editor.evaluate(SHOW, [area, CLIP])
    editor.page.wait_for_timeout(1000)  # thumbnails in widgets are loaded
    path: Path = editor.screenshots / f"{name}.png"
    editor.page.screenshot(path=path, clip=CLIP)  # pyright: ignore[reportArgumentType]
    style.evaluate("(style) => style.remove()")
    Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS).save(EXAMPLES / f"{name}.jpg", quality=88)


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("train_sdxl_from_folder", (380, -60, 1220, 686)),
        ("train_z_image", (-20, -100, 1620, 911)),
        ("train_z_image_in_the_graph", (-20, -60, 1672, 940)),
        ("train_flux2_klein", (-20, -60, 1672, 940)),
        ("train_qwen_image", (-20, -60, 1672, 940)),
        ("train_qwen_image_edit", (-20, -60, 2080, 1170)),
    ],
)
def test_graphs_that_have_not_run(editor: Editor, name: str, area: tuple[int, int, int, int]):
    editor.open_workflow(read_workflow(name))
    if name == "train_sdxl_from_folder":
        editor.wait_until(HAS_NUMBERS)
    draw(editor, name, area)


def test_captions_in_review(editor: Editor):
    captioner, check = 5, 7
    without_training = "(mode) => { for (const id of [1, 3, 4]) app.graph.getNodeById(id).mode = mode }"
    editor.open_workflow(read_workflow("caption_and_train"))
    editor.set_widgets(IMAGES, folder="toadstools")
    editor.set_widgets(captioner, model="LLM/tiny_florence2", existing_captions="keep")
    editor.set_widgets(check, stop_at="never")
    editor.evaluate(without_training, 2)
    editor.close_messages()
    editor.run()
    assert editor.wait_for("execution_success")["kind"] == "execution_success"
    editor.evaluate(without_training, 0)
    editor.page.locator(".ltr-card textarea").first.fill("a zwx with a pink hat")
    editor.page.keyboard.press("Escape")
    draw(editor, "caption_and_train", (800, -50, 1240, 698))
