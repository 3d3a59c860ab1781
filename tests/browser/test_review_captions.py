"""Review Captions as users see it: the grid of captions, search, changes of many captions, keys,
conflicts and waiting for a review.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.editor import READY, RECORD_EVENTS, Editor
from tests.data.make_tiny_florence2 import COLOURS, plain_image
from trainers.comfyui.client import Prompt
from trainers.comfyui.server import ComfyServer
from trainers.demo.concept import TRIGGER_WORD

if TYPE_CHECKING:
    from playwright.sync_api import Locator

FIT_VIEW = "() => { app.graph.arrange(); app.extensionManager.command.execute('Comfy.Canvas.FitView') }"
IMAGES, REVIEW, BASE, TRAINER, SINK = 1, 2, 3, 4, 5
NUM_IMAGES = 12
EXAMPLE = Path(__file__).parents[2] / "example_workflows" / "caption_and_train.json"
EXAMPLE_TRAINER, EXAMPLE_CAPTIONER, EXAMPLE_REVIEW, EXAMPLE_CHECK = 3, 5, 6, 7
SMALL_RUN = {
    "resolution": 64,
    "bucket_reso_steps": 32,
    "rank": 2,
    "alpha": 2.0,
    "train_batch_size": 2,
    "max_train_steps": 2,
}
SMALL_RUN |= {"optimizer": "AdamW", "gradient_checkpointing": "off", "gradient_accumulation_steps": 1}


def review_prompt(folder: str = "toadstools", **settings: Any) -> Prompt:
    """Build a prompt with every widget: if one is left out, the front end uses the value of an
    earlier node with the same number.
    """
    settings = {"edits": "", "wait_for_review": False, "reviewed": "", **settings}
    return {
        f"{IMAGES}": {
            "class_type": "LoRATrainer_LoadImages",
            "inputs": {"folder": folder, "trigger_word": TRIGGER_WORD},
        },
        f"{REVIEW}": {"class_type": "LoRATrainer_ReviewCaptions", "inputs": {"dataset": [f"{IMAGES}", 0], **settings}},
        f"{SINK}": {"class_type": "PreviewAny", "inputs": {"source": [f"{REVIEW}", 1]}},
    }


def training_prompt(name: str, **settings: Any) -> Prompt:
    inputs = {
        "model": ["3", 0],
        "clip": ["3", 1],
        "vae": ["3", 2],
        "dataset": ["2", 0],
        **SMALL_RUN,
        "output_name": name,
    }
    return {
        **review_prompt(**settings),
        f"{BASE}": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}},
        f"{TRAINER}": {"class_type": "LoRATrainer_LoRATrainSDXL", "inputs": inputs},
        f"{SINK}": {"class_type": "PreviewAny", "inputs": {"source": [f"{TRAINER}", 4]}},
    }


class Review:
    """The widget of the page's only Review Captions node, with the id `node`."""

    def __init__(self, editor: Editor, node: int = REVIEW) -> None:
        self.editor = editor
        self.node = node
        self.root = editor.page.locator(".ltr")
        self.search = self.root.get_by_label("Search captions and names")
        self.filter = self.root.get_by_label("Captions to show")
        self.undo = self.root.get_by_role("button", name="Undo")

    @property
    def cards(self) -> "Locator":
        return self.root.locator(".ltr-card:visible")

    def caption(self, index: int) -> "Locator":
        return self.cards.nth(index).locator("textarea")

    def captions(self) -> list[str]:
        return self.cards.locator("textarea").evaluate_all("(texts) => texts.map((text) => text.value)")

    def edits(self) -> dict[str, dict[str, str]]:
        return json.loads(self.editor.widgets(self.node)["edits"] or "{}")

    def run(self) -> str:
        self.editor.run()
        kind = self.editor.wait_for("execution_success")["kind"]
        if kind == "execution_success":
            self.cards.first.wait_for()
        return kind

    def change(self, operation: str, text: str, replacement: str | None = None) -> None:
        """Enter a change and open its preview."""
        self.root.get_by_label("What to do with all shown captions").select_option(operation)
        self.root.get_by_label("Text", exact=True).fill(text)
        if replacement is not None:
            self.root.get_by_label("Replace with").fill(replacement)
        self.root.get_by_role("button", name="Preview").click()
        self.root.locator(".ltr-preview").wait_for()

    def apply(self) -> None:
        self.root.locator(".ltr-preview .ltw-primary").click()

    def refresh_page(self) -> None:
        """Refresh the page, with edits that were made just before."""
        self.editor.wait_until_kept(self.editor.widgets(self.node)["edits"])
        self.editor.page.reload(wait_until="domcontentloaded")
        self.editor.wait_until(READY)
        self.editor.evaluate(RECORD_EVENTS)
        self.cards.first.wait_for()


@pytest.fixture
def review(editor: Editor) -> Review:
    return Review(editor)


def open_and_run(review: Review, prompt: Prompt) -> None:
    review.editor.open_prompt(prompt)
    review.editor.evaluate(FIT_VIEW)
    assert review.run() == "execution_success"


def test_before_the_first_run_the_widget_says_what_to_do(editor: Editor, review: Review):
    editor.add_node("LoRATrainer_ReviewCaptions")
    review.root.wait_for()
    assert "run once: its images appear here" in review.root.inner_text()
    assert not review.search.is_visible()
    assert editor.complaints() == []
    editor.screenshot("review_fresh")


def test_edits_survive_a_refresh_and_are_used_in_the_training(
    server: ComfyServer, editor: Editor, review: Review, renderer: str
):
    name = f"reviewed-{renderer}"
    open_and_run(review, review_prompt())
    before = review.captions()
    assert len(before) == NUM_IMAGES
    review.caption(0).fill("a hat, not a mushroom")
    review.change("replace", "background", "wall")
    assert review.root.locator(".ltr-change").count() == NUM_IMAGES - 1
    editor.screenshot("review_preview")
    assert len(review.edits()) == 1  # nothing has changed yet
    review.apply()
    after = ["a hat, not a mushroom", *(caption.replace("background", "wall") for caption in before[1:])]
    assert review.captions() == after

    review.refresh_page()
    assert review.captions() == after and len(review.edits()) == NUM_IMAGES
    editor.screenshot("review_refreshed")

    edits = editor.widgets(REVIEW)["edits"]
    editor.open_prompt(training_prompt(name, edits=edits))
    assert review.run() == "execution_success"
    (run,) = (server.base_directory / "output/lora_trainer/runs").glob(f"{name}-*")
    images = json.loads((run / "manifest.json").read_text())["dataset"]["images"]
    assert [image["caption"] for image in images.values()] == [f"{TRIGGER_WORD}, {after[0]}", *after[1:]]
    assert editor.complaints() == []


def test_a_change_of_many_captions_is_undone_at_once(editor: Editor, review: Review):
    open_and_run(review, review_prompt())
    before = review.captions()
    review.search.fill("black")
    assert 0 < review.cards.count() < NUM_IMAGES
    review.change("add at the end", "night")
    review.apply()
    assert all(caption.endswith(", night") for caption in review.captions())
    review.search.fill("")
    assert sum(caption.endswith(", night") for caption in review.captions()) == sum(
        "black" in caption for caption in before
    )
    review.undo.click()
    assert review.captions() == before and review.edits() == {} and not review.undo.is_visible()


def test_marks_name_empty_captions_missing_trigger_words_and_long_captions(editor: Editor, review: Review):
    open_and_run(review, review_prompt())
    review.caption(0).fill("")
    review.caption(1).fill("only a mushroom")
    review.caption(2).fill(f"{TRIGGER_WORD} " + "word " * 80)
    review.cards.nth(1).get_by_text("no trigger word").wait_for()
    assert review.cards.nth(0).get_by_text("empty").is_visible()
    assert review.cards.nth(2).locator(".ltr-tokens").text_content().endswith("/ 150")
    editor.screenshot("review_marks")
    for chosen, index in (("empty", 0), ("noTriggerWord", 1), ("long", 2), ("edited", 0)):
        review.filter.select_option(chosen)
        assert review.cards.count() == (3 if chosen == "edited" else 1), chosen
        assert review.cards.first.locator(".ltr-name").text_content().startswith(f"0{index + 1}")
    review.filter.select_option("all")
    review.cards.nth(1).get_by_role("button", name="Revert").click()
    assert len(review.edits()) == 2


def test_the_widget_can_be_used_with_the_keyboard_alone(editor: Editor, review: Review):
    open_and_run(review, review_prompt())
    keyboard = editor.page.keyboard
    review.caption(0).click()
    editor.evaluate("() => { window.recorded.length = 0 }")
    keyboard.press("Control+Enter")
    keyboard.type("x")
    keyboard.press("Tab")  # to Revert, which an edited caption has
    keyboard.press("Tab")
    keyboard.type("y")
    keyboard.press("Shift+Tab")
    keyboard.press("Shift+Tab")
    keyboard.press("Shift+Tab")
    keyboard.type("z")
    assert ["x" in review.captions()[1][-1], "y" in review.captions()[2], "z" in review.captions()[0]] == [
        True,
        True,
        True,
    ]
    keyboard.press("Control+f")
    keyboard.type("black")
    assert 0 < review.cards.count() < NUM_IMAGES
    keyboard.press("Escape")
    assert review.cards.count() == NUM_IMAGES
    assert review.caption(0).evaluate("(text) => text === document.activeElement")
    assert editor.evaluate("() => window.recorded.length") == 0, "Ctrl+Enter has queued the prompt"


def read_focus(editor: Editor) -> str:
    """Return the label or the text of the focused element."""
    return editor.evaluate("() => document.activeElement.ariaLabel ?? document.activeElement.textContent")


def test_the_keyboard_reverts_a_caption(editor: Editor, review: Review):
    open_and_run(review, review_prompt())
    before = review.captions()
    review.caption(0).focus()
    editor.page.keyboard.type("x")
    editor.page.keyboard.press("Tab")
    assert read_focus(editor) == "Revert"
    editor.screenshot("review_revert_focused")
    editor.page.keyboard.press("Enter")
    assert review.captions() == before and review.edits() == {}
    assert read_focus(editor) == "Caption of 01.png"


def test_the_preview_is_a_dialog_that_keeps_the_focus_until_it_closes(editor: Editor, review: Review):
    open_and_run(review, review_prompt())
    keyboard = editor.page.keyboard
    review.root.get_by_label("Text", exact=True).fill("night")
    keyboard.press("Enter")
    dialog = review.root.get_by_role("dialog", name="Add “night” in front. 12 of 12 shown captions would change")
    dialog.wait_for()
    assert dialog.get_attribute("aria-modal") == "true"
    stops = []
    for _ in range(4):
        stops.append(read_focus(editor))
        keyboard.press("Tab")
    assert stops == ["Change 12 captions", "Changes", "Cancel", "Change 12 captions"]
    for _ in range(3):
        keyboard.press("Shift+Tab")
    assert read_focus(editor) == "Changes"
    keyboard.press("Delete")  # ComfyUI's shortcut for the selected node
    keyboard.press("Escape")
    assert not dialog.is_visible() and read_focus(editor) == "Text" and review.edits() == {}


def test_screen_readers_get_labels_of_fields_and_changes_of_the_status(editor: Editor, review: Review):
    open_and_run(review, review_prompt())
    review.caption(0).fill("")
    unlabelled = "(fields) => fields.filter((field) => !field.ariaLabel).map((field) => field.outerHTML)"
    assert review.root.locator("input, select, textarea").evaluate_all(unlabelled) == []
    status = review.root.get_by_role("status").filter(has_text="12 images · 1 edited")
    assert status.get_attribute("aria-live") == "polite"
    described = "(text) => text.ariaDescribedByElements?.map((element) => element.textContent).join(' ')"
    assert review.caption(0).evaluate(described).startswith("emptyedited")


@pytest.mark.parametrize("text", ['{"01.png": "half a', '{"version": 2, "edits": {"01.png": "new"}}'])
def test_edits_that_cannot_be_read_are_kept_until_the_user_discards_them(editor: Editor, review: Review, text: str):
    open_and_run(review, review_prompt())
    editor.set_widgets(REVIEW, edits=text)
    editor.evaluate("(id) => app.graph.getNodeById(id).onConfigure()", REVIEW)
    review.root.get_by_text("cannot be read").wait_for()
    editor.screenshot("review_unreadable")
    assert review.caption(0).evaluate("(text) => text.readOnly") and review.undo.is_hidden()
    review.root.get_by_label("Text", exact=True).fill("night")
    assert review.root.get_by_role("button", name="Preview").is_disabled()
    assert editor.widgets(REVIEW)["edits"] == text
    review.root.get_by_role("button", name="Discard the edits").click()
    review.caption(0).fill("mine")
    (edit,) = review.edits().values()
    assert edit["caption"] == "mine" and not review.root.get_by_text("cannot be read").count()


def test_the_widget_uses_the_language_of_the_settings(editor: Editor, review: Review):
    open_and_run(review, review_prompt(edits=json.dumps({"01.png": "mine", "gone.png": "one"})))
    set_locale = "(locale) => app.extensionManager.setting.set('Comfy.Locale', locale)"
    try:
        editor.evaluate(set_locale, "fr")  # the front end opens the workflow again
        review.root.get_by_role("button", name="Rétablir").wait_for()
        editor.screenshot("review_french")
        assert "12 images · 1 modifiée" in review.root.inner_text()
        assert review.root.get_by_role("button", name="Oublier 1 correction d’une autre image").is_visible()
        assert review.root.get_by_placeholder("Chercher").is_visible()
    finally:
        editor.evaluate(set_locale, "en")
    review.root.get_by_role("button", name="Revert").wait_for()


def test_a_caption_is_never_read_as_html(server: ComfyServer, editor: Editor, review: Review):
    folder = server.base_directory / "input" / "hostile"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (96, 64), "navy").save(folder / "a.png")
    hostile = "<img src=x onerror=\"window.owned = 1\"> {{constructor}} '); alert(1); ('"
    (folder / "a.txt").write_text(hostile)
    open_and_run(review, review_prompt("hostile"))
    review.change("add at the end", "<script>window.owned = 1</script>")
    assert review.root.locator("script, .ltr-change img[onerror]").count() == 0
    assert hostile.split()[0] in (review.root.locator(".ltr-change").text_content() or "")
    review.apply()
    assert "<script>" in review.captions()[0] and editor.evaluate("() => window.owned") is None


def test_a_caption_that_changed_after_its_edit_is_shown_next_to_the_edit(
    server: ComfyServer, editor: Editor, review: Review, renderer: str
):
    folder = server.base_directory / "input" / f"changing-{renderer}"
    shutil.copytree(server.base_directory / "input" / "toadstools", folder, dirs_exist_ok=True)
    open_and_run(review, review_prompt(folder.name))
    review.caption(0).fill("mine")
    review.caption(1).fill("mine too")
    (folder / "01.txt").write_text(f"{TRIGGER_WORD}, new one")
    (folder / "02.txt").write_text(f"{TRIGGER_WORD}, new two")
    review.run()
    review.root.get_by_role("button", name="Keep my edit").nth(1).wait_for()
    editor.screenshot("review_conflict")
    review.cards.nth(0).get_by_role("button", name="Take the new one").click()
    review.cards.nth(1).get_by_role("button", name="Keep my edit").click()
    assert review.captions()[:2] == [f"{TRIGGER_WORD}, new one", "mine too"]
    assert not review.root.locator(".ltr-conflict:visible").count()
    assert [edit["incoming"] for edit in review.edits().values()] == [f"{TRIGGER_WORD}, new two"]


def test_the_training_waits_for_the_review_when_asked(
    server: ComfyServer, editor: Editor, review: Review, renderer: str
):
    name = f"waited-{renderer}"
    runs = server.base_directory / "output/lora_trainer/runs"
    editor.open_prompt(training_prompt(name, wait_for_review=True))
    editor.evaluate(FIT_VIEW)
    for _ in range(2):  # the second time, most of it comes from the cache
        assert review.run() == "execution_success"
        (message,) = editor.complaints()
        assert "The captions wait for your review" in message
        editor.screenshot("review_waits")
        editor.close_messages()
    assert not list(runs.glob(f"{name}-*"))
    review.caption(0).fill("a reviewed caption")
    editor.forget_events()
    review.root.get_by_role("button", name="Use these captions and run").click()
    assert editor.wait_for("execution_success")["kind"] == "execution_success"
    editor.screenshot("review_waited")
    assert editor.complaints() == []
    (run,) = runs.glob(f"{name}-*")
    assert f"{TRIGGER_WORD}, a reviewed caption" in (run / "manifest.json").read_text()


def test_in_the_example_captions_of_a_model_are_edited_and_trained_on(
    server: ComfyServer, editor: Editor, renderer: str
):
    name, review = f"captioned-{renderer}", Review(editor, node=EXAMPLE_REVIEW)
    write_colours(server.base_directory / "input" / "colours")
    editor.open_workflow(json.loads(EXAMPLE.read_text(encoding="utf-8")))
    editor.wait_until("() => app.graph.getNodeById(1).has_errors")  # the example's checkpoint is missing
    editor.close_messages()
    editor.set_widgets(1, ckpt_name="embedded_base.safetensors")
    editor.set_widgets(2, folder="colours")
    editor.set_widgets(EXAMPLE_TRAINER, **SMALL_RUN, output_name=name)
    editor.set_widgets(EXAMPLE_CAPTIONER, model="LLM/tiny_florence2", task="detailed_caption")
    editor.set_widgets(
        EXAMPLE_CHECK, **{key: value for key, value in SMALL_RUN.items() if key != "alpha"}, stop_at="never"
    )

    assert review.run() == "execution_success"
    assert review.captions() == [f"{TRIGGER_WORD}, A {colour} square." for colour in COLOURS]
    review.caption(0).fill("a red thing")
    review.change("replace", "square", "tile")
    review.apply()
    after = ["a red thing", *(f"{TRIGGER_WORD}, A {colour} tile." for colour in list(COLOURS)[1:])]
    assert review.captions() == after
    review.refresh_page()
    assert review.captions() == after
    editor.screenshot("example_reviewed")

    review.root.get_by_role("button", name="Use these captions and run").click()
    assert editor.wait_for("execution_success")["kind"] == "execution_success"
    (run,) = (server.base_directory / "output/lora_trainer/runs").glob(f"{name}-*")
    images = json.loads((run / "manifest.json").read_text())["dataset"]["images"]
    assert [image["caption"] for image in images.values()] == [f"{TRIGGER_WORD}, {after[0]}", *after[1:]]
    editor.page.wait_for_timeout(1000)
    editor.screenshot("example_trained")
    assert editor.complaints() == []
    editor.show_node(EXAMPLE_CHECK)
    editor.screenshot("flight_check")


def write_colours(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, colour in enumerate(COLOURS):
        plain_image(colour, seed=700 + number, size_hw=(96, 96)).save(folder / f"{number}.png")


def test_two_hundred_images_do_not_change_the_nodes_size(server: ComfyServer, editor: Editor, review: Review):
    write_many_images(server.base_directory / "input" / "many", 200)
    open_and_run(review, review_prompt("many"))
    assert review.cards.count() == 200
    assert editor.height(REVIEW) < 900
    editor.page.wait_for_timeout(500)  # the token counts have arrived
    editor.screenshot("review_many")
    editor.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", REVIEW)
    editor.wait_until("() => document.querySelectorAll('.ltr').length === 0")


COUNT_WORK = """([field, text]) => {
    const observer = new MutationObserver(() => {});
    const list = document.querySelector(".ltr-list");
    observer.observe(list, { subtree: true, childList: true, characterData: true, attributeFilter: ["class"] });
    const parse = JSON.parse;
    let numParses = 0;
    JSON.parse = (...values) => { numParses += 1; return parse(...values) };
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    JSON.parse = parse;
    const elements = observer.takeRecords().map(({ target }) => target.nodeType === 1 ? target : target.parentElement);
    observer.disconnect();
    return { rows: new Set(elements.map((element) => element.closest(".ltr-card"))).size, parses: numParses };
}"""


def test_a_key_redraws_at_most_one_row_and_parses_nothing(server: ComfyServer, editor: Editor, review: Review):
    write_many_images(server.base_directory / "input" / "many", 200)
    open_and_run(review, review_prompt("many"))
    review.change("add at the end", "night")
    review.apply()
    assert len(review.edits()) == 200
    for field, text, rows in ((review.caption(100), "typed", 1), (review.search, "7", 0)):
        work = editor.evaluate(COUNT_WORK, [field.element_handle(), text])
        assert work == {"rows": rows, "parses": 0}
    assert "typed" in [edit["caption"] for edit in review.edits().values()]


def write_many_images(folder: Path, count: int) -> None:
    if folder.is_dir():
        return
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 255, (8, 12, 3), dtype=np.uint8)).resize((96, 64)).save(
            folder / f"{number:03}.png"
        )
        (folder / f"{number:03}.txt").write_text(f"{TRIGGER_WORD}, image {number}")
