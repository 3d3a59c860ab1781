"""The generated parts of the documentation are complete and up to date."""

import re

import pytest

from docs.generate import find_outdated_files
from docs.help_pages import PAGES, as_markdown
from docs.schemas import ROOT
from trainers.captions.florence2.tasks import TASKS

TABLES = {
    "LoRATrainer_TrainLoRA": ["families"],
    "LoRATrainer_LoRATrainSDXL": ["goals", "memory"],
    "LoRATrainer_MusubiTrain": ["architectures"],
}


def test_generated_parts_are_up_to_date():
    outdated = [str(path.relative_to(ROOT)) for path in find_outdated_files()]
    assert not outdated, f"run `make docs`, which writes {', '.join(outdated)}"


@pytest.mark.parametrize("path", sorted(PAGES.rglob("*.md")), ids=lambda path: path.relative_to(PAGES).as_posix())
def test_a_help_page_has_its_generated_parts(path):
    is_english = path.parent == PAGES
    node_id = path.stem if is_english else path.parent.name
    text = path.read_text(encoding="utf-8")
    has_inputs = is_english and node_id != "LoRATrainer_MusubiDoctor"
    expected = [*TABLES.get(node_id, []), *(["inputs"] if has_inputs else [])]
    assert re.findall(r"<!-- make docs: (\w+) -->", text) == expected
    assert text.count("<!-- end -->") == len(expected)


@pytest.mark.parametrize("page", [page for page in PAGES.rglob("*.md") if "Florence2Caption" in str(page)])
def test_a_help_page_explains_every_caption_task(page):
    explanation = re.sub("<!-- make docs.*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    missing = [task for task in TASKS if f"`{task}`" not in explanation]
    assert not missing, f"{page.relative_to(ROOT)} does not explain {', '.join(missing)}"


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("0: use num_train_epochs.", "0: use `num_train_epochs`."),
        ("A token such as <MIX_CAPTION>, 2 * 3.", r"A token such as \<`MIX_CAPTION`>, 2 \* 3."),
        ("In output/lora_trainer/runs, as .txt.", "In `output/lora_trainer/runs`, as `.txt`."),
        ("Takes %date:yyyy-MM-dd% and betas=(0.9,0.99).", "Takes `%date:yyyy-MM-dd%` and `betas=(0.9,0.99)`."),
        ("alpha / rank, 1e-4, 0.5", "alpha / rank, 1e-4, 0.5"),
    ],
)
def test_names_files_and_flags_become_code(text, markdown):
    assert as_markdown(text) == markdown
