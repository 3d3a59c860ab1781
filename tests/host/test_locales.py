"""Translations and help pages, compared with the nodes of a running server: a new input without its
texts fails here.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.host.choices import list_stable_choices
from trainers.comfyui.client import OPENER
from trainers.comfyui.server import ComfyServer

ROOT = Path(__file__).parents[2]
LANGUAGES = ("fr", "ja", "zh")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"


@pytest.fixture(scope="module")
def nodes(comfyui_server: ComfyServer) -> dict[str, dict[str, Any]]:
    """Our nodes' entries of /object_info."""
    entries = comfyui_server.client.get("/object_info")
    return {node_id: entry for node_id, entry in entries.items() if node_id.startswith("LoRATrainer_")}


@pytest.fixture(scope="module")
def served(comfyui_server: ComfyServer) -> dict[str, Any]:
    return comfyui_server.client.get("/i18n")


def get_inputs(entry: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return type and options by input id, without hidden inputs."""
    return {name: spec for kind in ("required", "optional") for name, spec in entry["input"].get(kind, {}).items()}


def get_translated_inputs(entry: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the inputs by the names under which the front end looks up translations, such as
    architecture_rank for the input rank of an architecture.
    """
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name, spec in get_inputs(entry).items():
        found[name] = spec
        for option in spec[1]["options"] if spec[0] == DYNAMIC_COMBO else []:
            found |= {
                f"{name}_{inner}": inner_spec for inner, inner_spec in get_inputs({"input": option["inputs"]}).items()
            }
    return found


def test_every_input_and_output_has_a_tooltip(nodes: dict[str, dict[str, Any]]) -> None:
    assert nodes
    for node_id, entry in nodes.items():
        assert entry["description"], node_id
        assert all(entry["output_tooltips"]), node_id
        for name, (_, options) in get_translated_inputs(entry).items():
            assert options.get("tooltip"), f"{node_id} {name}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_server_serves_our_translation(served: dict[str, Any], language: str) -> None:
    ours = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {node_id: served[language]["nodeDefs"].get(node_id) for node_id in ours} == ours
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    assert served[language]["LoRATrainer"] == words["LoRATrainer"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_exactly_the_nodes_inputs_and_outputs(
    nodes: dict[str, dict[str, Any]], served: dict[str, Any], language: str
) -> None:
    translated = {
        node_id: texts for node_id, texts in served[language]["nodeDefs"].items() if node_id.startswith("LoRATrainer_")
    }
    assert set(translated) == set(nodes)
    for node_id, entry in nodes.items():
        assert list(translated[node_id]["inputs"]) == list(get_translated_inputs(entry)), node_id
        assert list(translated[node_id]["outputs"]) == [str(index) for index in range(len(entry["output"]))], node_id


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_is_still_english(nodes: dict[str, dict[str, Any]], served: dict[str, Any], language: str) -> None:
    for node_id, entry in nodes.items():
        translated = served[language]["nodeDefs"][node_id]
        english = {
            entry["display_name"],
            entry["description"],
            *entry["output_tooltips"],
            *(options["tooltip"] for _, options in get_translated_inputs(entry).values()),
        }
        tooltips = [texts["tooltip"] for texts in (*translated["inputs"].values(), *translated["outputs"].values())]
        without_ids = [tooltip.partition("：" if "：" in tooltip else " : ")[2] for tooltip in tooltips]
        assert not english & {translated["display_name"], translated["description"], *tooltips, *without_ids}, node_id


def test_the_server_serves_every_help_page(comfyui_server: ComfyServer, nodes: dict[str, dict[str, Any]]) -> None:
    for node_id, entry in nodes.items():
        folder = entry["python_module"].removeprefix("custom_nodes.")
        for page in (f"{node_id}.md", *(f"{node_id}/{language}.md" for language in LANGUAGES)):
            with OPENER.open(f"{comfyui_server.url}/extensions/{folder}/docs/{page}") as answer:
                assert "html" not in answer.headers["Content-Type"], page  # the front end takes HTML for a missing page
                assert answer.read().decode() == (ROOT / "web" / "docs" / page).read_text(encoding="utf-8")


def test_english_help_pages_have_every_inputs_range_and_default(nodes: dict[str, dict[str, Any]]) -> None:
    for node_id, entry in nodes.items():
        page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
        for name, spec in get_inputs(entry).items():
            line = next((line for line in page.splitlines() if line.startswith(f"- `{name}` (")), "")
            missing = [fact for fact in _describe(name, *spec) if fact not in line.partition("):")[0]]
            assert line and not missing, (
                f"{node_id}.md: the line of {name} must have, in parentheses, {' and '.join(missing)}: {line}"
            )
        for name in entry["output_name"]:
            assert f"`{name}`" in page.partition("## Outputs")[2], f"{node_id}.md: the output {name} is missing"


def _describe(name: str, kind: Any, options: dict[str, Any]) -> list[str]:
    """Return the facts that a help page must state about an input: the socket's type, or the range
    or choices, and the default.
    """
    if kind == DYNAMIC_COMBO:
        return [f"`{option['key']}`" for option in options["options"]]
    if "default" not in options:
        return [str(kind)]
    listed = [f"`{choice}`" for choice in list_stable_choices(name, options)]
    limits = [f"{options['min']:.16g} to {options['max']:.16g}"] if "max" in options else []
    return [*listed, *limits, f"default {_format_default(options['default'])}"]


def _format_default(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, str):
        return f"`{default}`" if default else "empty"
    return f"{default:g}"
