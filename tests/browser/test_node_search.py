"""The editor's search for nodes, which ranks by name and display name only; aliases decide no
more than whether a node is found.
"""

from collections.abc import Iterator

import pytest

from tests.browser.editor import Editor

ANY_MODEL = "LoRA Trainer: Train LoRA"
SDXL = "LoRA Trainer: Train LoRA (SDXL)"
SLIDER = "LoRA Trainer: Train Slider LoRA (SDXL)"
MUSUBI = "LoRA Trainer: Train LoRA (Musubi Tuner)"
LOAD_IMAGES = "Dataset: Load Images (LoRA Trainer)"
CORE_TRAINER = "Train LoRA"  # ComfyUI's own; nothing ranks before a name that is the search text itself


@pytest.fixture
def search(editor: Editor) -> Iterator[Editor]:
    editor.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    yield editor
    editor.page.keyboard.press("Escape")


def find_nodes(search: Editor, text: str) -> list[str]:
    """Return the display names of the results, best first."""
    results = search.page.get_by_test_id("result-item")
    field = search.page.get_by_placeholder("Add a node...")
    field.fill("no node has this name")
    search.wait_until("() => !document.querySelector('[data-testid=result-item]')")
    field.fill(text)
    results.first.wait_for()
    return [result.split("\n")[0] for result in results.all_inner_texts()]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("lora train", [ANY_MODEL, SDXL, SLIDER, MUSUBI]),
        ("lora trainer", [ANY_MODEL, SDXL, SLIDER, MUSUBI]),
        ("train lora", [CORE_TRAINER, ANY_MODEL, SDXL, MUSUBI]),
        ("fine-tune", [ANY_MODEL]),
        ("dataset", [LOAD_IMAGES]),
        ("load images", [LOAD_IMAGES]),
    ],
)
def test_a_search_finds_the_node_that_the_user_means_first(search: Editor, text: str, first: list[str]):
    assert find_nodes(search, text)[: len(first)] == first


@pytest.mark.parametrize("text", ["z-image", "flux", "qwen-image"])
def test_the_name_of_a_model_finds_its_trainer_too(search: Editor, text: str):
    assert ANY_MODEL in find_nodes(search, text)
