"""Translations and help pages among themselves; tests/host/test_locales.py compares them with the nodes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainers.sdxl.presets import GOALS, MEMORY_PRESETS, Goal, MemoryPreset

ROOT = Path(__file__).parents[2]
LANGUAGES = ("fr", "ja", "zh")
SCRIPTS = {"fr": "[a-zàâçéèêëîïôûœ]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "zh": "[\u4e00-\u9fff]"}
PAGES = sorted((ROOT / "web" / "docs").rglob("*.md"))
TRAINER_PAGES = [page for page in PAGES if "LoRATrainSDXL" in str(page)]


def translation(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_the_settings_panel_is_translated_whole() -> None:
    script = (ROOT / "web" / "musubi_settings.js").read_text(encoding="utf-8")
    settings = {f"LoRATrainer_Musubi_{name}" for name in re.findall(r'setting\("(\w+)"', script)}
    for language in LANGUAGES:
        translated = json.loads((ROOT / "locales" / language / "settings.json").read_text(encoding="utf-8"))
        assert settings == set(translated)
        assert all(re.search(SCRIPTS[language], text) for text_of_setting in translated.values() for text in text_of_setting.values())


def texts(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text with its path, such as LoRATrainer_SaveLoRA/inputs/lora/tooltip."""
    if isinstance(tree, str):
        yield path, tree
        return
    for key, branch in tree.items():
        yield from texts(branch, f"{path}/{key}" if path else key)


def test_english_has_no_second_place_beside_the_schema() -> None:
    assert sorted(folder.name for folder in (ROOT / "locales").iterdir() if folder.is_dir()) == list(LANGUAGES)


def test_all_languages_translate_the_same_texts() -> None:
    first, *others = ([path for path, _ in texts(translation(language))] for language in LANGUAGES)
    for other in others:
        assert other == first


def test_no_text_is_the_same_in_two_languages_but_names_of_the_field() -> None:
    sentences = [{text for path, text in texts(translation(language)) if not path.endswith("/name")} for language in LANGUAGES]
    assert len(set().union(*sentences)) == sum(map(len, sentences))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_can_be_shown(language: str) -> None:
    for path, text in texts(translation(language)):
        assert text.strip() == text and text, path
        assert not re.search(r"[{}@|]", text), f"{path}: the front end reads {text!r} as a pattern, not as text"


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_in_the_script_of_their_language(language: str) -> None:
    for path, text in texts(translation(language)):
        if not path.endswith("/name"):
            assert re.search(SCRIPTS[language], text.partition("：")[2] or text), f"{path}: {text!r}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_tooltip_begins_with_the_id_that_errors_and_prompts_use(language: str) -> None:
    separator = " : " if language == "fr" else "："
    for node in translation(language).values():
        for name, texts_of_input in node["inputs"].items():
            id = re.sub("^architecture_", "architecture.", name)  # the front end looks its translation up without the dot
            assert texts_of_input["tooltip"].startswith(id + separator)


def test_every_node_has_a_help_page_in_every_language() -> None:
    docs = ROOT / "web" / "docs"
    expected = {docs / path for node in translation("fr") for path in (f"{node}.md", *(f"{node}/{language}.md" for language in LANGUAGES))}
    assert set(PAGES) == expected


@pytest.mark.parametrize("page", TRAINER_PAGES, ids=lambda page: page.name)
def test_help_pages_of_the_trainer_have_the_presets_numbers(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = [*(_goal_row(name, goal) for name, goal in GOALS.items()), *(_memory_row(name, preset) for name, preset in MEMORY_PRESETS.items())]
    missing = "\n".join(row for row in rows if row not in lines)
    assert not missing, f"the page lacks or has outdated rows of trainers/sdxl/presets.py:\n{missing}"


def _goal_row(name: str, goal: Goal) -> str:
    low, high = goal.num_samples
    return f"| {name} | {goal.rank} | {goal.rank * goal.alpha_per_rank:g} | {goal.learning_rate:g} | {goal.samples_per_picture} | {low}–{high} |"


def _memory_row(name: str, preset: MemoryPreset) -> str:
    checkpointing = "on" if preset.gradient_checkpointing else "off"
    batch = f"{preset.train_batch_size} | {preset.gradient_accumulation_steps}"
    return f"| {name} | {preset.resolution} | {batch} | {checkpointing} | {preset.optimizer} |"
