"""The training panel over a real training: what the trainer writes is what the panel shows."""

from pathlib import Path

import pytest

from tests.browser.editor import READY, RECORD_EVENTS, Editor
from tests.browser.test_examples import IMAGES, LOADER, SMALL_RUN, TRAINER
from tests.browser.test_training_panel import Panel, panel  # noqa: F401 (a fixture)
from tests.limits import wait_until

# Far longer than the test, which finishes it by the panel's button. Its validation is as frequent
# as 3 % of the computing allow: every 135 steps.
LONG_RUN = {
    **SMALL_RUN,
    "resolution": 64,
    "max_train_steps": 20_000,
    "validation_share": 0.2,
    "validate_every_n_steps": 1,
    "ema_decay": 0.98,
    "save_every_n_steps": 60,
    "sample_every_n_steps": 60,
    "sample_prompt": "a toadstool",
    "sample_size": "64x64",
    "sample_steps": 2,
    "seed": 71,
}


def test_a_real_training_is_followed_over_a_refresh_and_finished(editor: Editor, panel: Panel):  # noqa: F811
    if editor.renderer == "vue":
        pytest.skip("the panel's element is the same in both renderers")
    before = set(panel.runs_folder.iterdir())
    start_training(editor, panel)
    panel.button("Finish now").wait_for()
    panel.root.locator(".ltp-legend-step").wait_for()  # the first steps
    panel.look_at()
    editor.screenshot("live_begun")
    (folder,) = set(panel.runs_folder.iterdir()) - before

    leave_until_measured(editor, folder, num_rows=2)
    editor.page.locator(".ltp-open").wait_for()
    assert panel.root.locator(".ltp-state").inner_text() == "Training"
    step = int(panel.root.locator(".ltp-step").inner_text().split()[1].replace(",", ""))
    assert step >= 135
    panel.look_at()
    editor.screenshot("live_after_refresh")
    assert_curves_are_shown(panel)

    panel.button("Finish now").click()
    editor.page.locator(".p-toast-message-success", has_text=f"Finished early – {folder.name}").wait_for()
    assert panel.root.locator(".ltp-state").inner_text() == "Finished early"
    panel.root.locator("option", has_text=f"{folder.name} · Finished early").wait_for(state="attached")
    assert_everything_is_listed(panel, folder)
    panel.look_at()
    editor.screenshot("live_finished")
    panel.root.locator("summary").scroll_into_view_if_needed()
    editor.screenshot("live_finished_below")
    assert editor.complaints() == []


def start_training(editor: Editor, panel: Panel) -> None:  # noqa: F811
    panel.open_example()
    editor.wait_until("(id) => app.graph.getNodeById(id).has_errors", LOADER)
    editor.set_widgets(LOADER, ckpt_name="embedded_base.safetensors")
    editor.set_widgets(IMAGES, folder="toadstools")
    editor.set_widgets(TRAINER, **LONG_RUN)
    editor.run()


def leave_until_measured(editor: Editor, folder: Path, *, num_rows: int) -> None:
    """Leave the page, which leaves the machine to the training, and come back."""
    editor.page.wait_for_timeout(1500)  # the editor saves the graph by itself, a moment after a change
    url = editor.page.url
    editor.page.goto("about:blank")
    rows = folder / "validation.csv"
    wait_until(lambda: len(rows.read_text().splitlines()) > num_rows, what="the validation")
    editor.page.goto(url, wait_until="domcontentloaded")
    editor.wait_until(READY)
    editor.evaluate(RECORD_EVENTS)


def assert_curves_are_shown(panel: Panel) -> None:  # noqa: F811
    legend = panel.root.locator(".ltp-legend").inner_text()
    assert "Validation (EMA)" in legend and "Learning rate" in legend
    for name in ("smoothed", "validation", "ema"):
        path = panel.root.locator(f"path.ltp-{name}").get_attribute("d")
        assert "L" in (path or ""), name


def assert_everything_is_listed(panel: Panel, folder: Path) -> None:  # noqa: F811
    names = panel.root.locator(".ltp-lora-name").all_inner_texts()
    assert names[0] == "Result" and "Result, averaged (EMA)" in names and "Step 120" in names
    assert panel.root.locator(".ltp-samples img").count() >= 3
    compared = panel.root.get_by_label("Compare with")
    assert compared.locator("option", has_text=folder.name).count() == 0  # with itself
    assert "20000 steps" in (panel.root.locator("pre").text_content() or "")
    assert "20000 steps" not in panel.root.locator(".ltp-message").inner_text()
    panel.root.get_by_role("button", name="Copy path").first.click()
    panel.wait_for_text("Path copied")
    assert panel.root.locator("code").inner_text() == str(folder / "my_lora.safetensors")
