"""Translations and help pages, compared with each other and with the nodes' schemas.

tests/host/test_locales.py compares them with a real server.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.schemas import DYNAMIC_COMBO, read_schemas

ROOT = Path(__file__).parents[2]
LANGUAGES = ("fr", "ja", "zh")
SCRIPTS = {"fr": "[a-zàâçéèêëîïôûœ]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "zh": "[\u4e00-\u9fff]"}
PAGES = sorted((ROOT / "web" / "docs").rglob("*.md"))


def read_translation(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def walk_texts(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text with its path, such as LoRATrainer_SaveLoRA/inputs/lora/tooltip."""
    if isinstance(tree, str):
        yield path, tree
        return
    for key, branch in tree.items():
        yield from walk_texts(branch, f"{path}/{key}" if path else key)


def test_english_texts_are_only_in_the_schema() -> None:
    assert sorted(folder.name for folder in (ROOT / "locales").iterdir() if folder.is_dir()) == list(LANGUAGES)


def test_all_languages_translate_the_same_texts() -> None:
    first, *others = ([path for path, _ in walk_texts(read_translation(language))] for language in LANGUAGES)
    for other in others:
        assert other == first


def test_only_technical_names_are_the_same_in_two_languages() -> None:
    sentences = [
        {text for path, text in walk_texts(read_translation(language)) if not path.endswith("/name")}
        for language in LANGUAGES
    ]
    assert len(set().union(*sentences)) == sum(map(len, sentences))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_can_be_shown(language: str) -> None:
    for path, text in walk_texts(read_translation(language)):
        assert text.strip() == text and text, path
        assert not re.search(r"[{}@|]", text), f"{path}: the front end reads {text!r} as a pattern, not as text"


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_in_the_script_of_their_language(language: str) -> None:
    for path, text in walk_texts(read_translation(language)):
        if not path.endswith("/name"):
            assert re.search(SCRIPTS[language], text.partition("：")[2] or text), f"{path}: {text!r}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_tooltip_begins_with_the_id_that_errors_and_prompts_use(language: str) -> None:
    separator = " : " if language == "fr" else "："
    for node in read_translation(language).values():
        for name, texts_of_input in node["inputs"].items():
            # the front end looks its read_translation up without the dot
            id = re.sub("^architecture_", "architecture.", name)
            assert texts_of_input["tooltip"].startswith(id + separator)


# What programs and users look up on a page, by the English sentence that has it.
LOOKED_UP = (
    r"The node's entry in the history .*?\.\n",
    r"To continue from a checkpoint.*?\)",
    r"\| `run\.log` \|[^\n]*\n",
)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_names_the_keys_and_files_that_the_english_one_names(language: str) -> None:
    for page in PAGES:
        if page.parent.name != "docs":
            continue
        english, translated = page.read_text("utf-8"), (page.with_suffix("") / f"{language}.md").read_text("utf-8")
        sentences = [sentence for pattern in LOOKED_UP for sentence in re.findall(pattern, english, re.DOTALL)]
        names = {name for sentence in sentences for name in re.findall(r"`[^`]+`", sentence)}
        missing = sorted(name for name in names if name not in translated)
        assert not missing, f"{page.stem}/{language}.md lacks {', '.join(missing)}"


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    return {schema.node_id: schema for schema in read_schemas()}


def list_translated_inputs(schema: Any) -> dict[str, Any]:
    """Return inputs by the name of their translation, which is architecture_rank for the input rank
    of an architecture.
    """
    found = {}
    for entry in schema.inputs:
        found[entry.id] = entry
        for option in entry.options if entry.io_type == DYNAMIC_COMBO else []:
            found |= {f"{entry.id}_{inner.id}": inner for inner in option.inputs}
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_exactly_the_nodes_inputs_and_outputs(schemas: dict[str, Any], language: str) -> None:
    translated = read_translation(language)
    problems = [f"{node_id} lacks everything" for node_id in schemas if node_id not in translated]
    for node_id, texts_of_node in translated.items():
        schema = schemas[node_id]
        here, there = list(list_translated_inputs(schema)), list(texts_of_node["inputs"])
        problems += [f"{node_id} lacks {name}" for name in here if name not in there]
        problems += [f"{node_id} has {name}, which the node does not have" for name in there if name not in here]
        if list(texts_of_node["outputs"]) != [str(index) for index in range(len(schema.outputs))]:
            problems.append(f"{node_id} must have its {len(schema.outputs)} outputs")
    assert not problems, f"locales/{language}/nodeDefs.json: {'; '.join(problems)}"


def test_the_front_end_reads_no_english_text_as_a_pattern(schemas: dict[str, Any]) -> None:
    for schema in schemas.values():
        for entry in [*list_translated_inputs(schema).values(), *schema.outputs]:
            assert entry.tooltip and not re.search(r"[{}@|]", entry.tooltip), (
                f"{schema.node_id} {entry.id}: {entry.tooltip!r}"
            )


def test_every_node_has_a_help_page_in_every_language(schemas: dict[str, Any]) -> None:
    docs = ROOT / "web" / "docs"
    expected = {docs / f"{node}.md" for node in schemas}
    expected |= {docs / node / f"{language}.md" for node in schemas for language in LANGUAGES}
    assert set(PAGES) == expected
