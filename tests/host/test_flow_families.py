"""The table of flow families against ComfyUI's own classes at tiny size."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers.flow.families import FAMILIES

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "flow_families.py"
NOT_TRAINED = re.compile(r"(^|[._])(mod|modulation|ada_?ln|norm|embed|embedder|emb|final)", re.IGNORECASE)


@pytest.fixture(scope="module")
def results(run_in_comfyui: Callable[..., str]) -> dict[str, dict[str, Any]]:
    (line,) = [line for line in run_in_comfyui(SCRIPT.read_text(), PACK).splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


def test_every_row_has_a_tiny_model(results: dict[str, dict[str, Any]]):
    assert {result["family"] for result in results.values()} == {row.name for row in FAMILIES}


def test_every_tiny_model_answers_for_an_image(results: dict[str, dict[str, Any]]):
    for name, result in results.items():
        assert result["shape_is_kept"] and result["is_finite"], name
        assert 0.1 < result["largest"] < 100, name


def test_sides_of_images_are_whole_latents(results: dict[str, dict[str, Any]]):
    assert all(result["resolution_step"] % result["step_of_latents"] == 0 for result in results.values())


def test_targets_are_in_every_block_and_nowhere_else(results: dict[str, dict[str, Any]]):
    for name, result in results.items():
        refiners = ("noise_refiner", "context_refiner")
        counts = {block: count for block, count in result["per_block"].items() if not block.startswith(refiners)}
        assert counts and min(counts.values()) >= 2, (name, counts)
        assert result["outside"] == [], name


def test_modulation_norms_and_embedders_are_left_alone(results: dict[str, dict[str, Any]]):
    for name, result in results.items():
        assert [path for path in result["targets"] if NOT_TRAINED.search(path)] == [], name


def test_layers_of_blocks_that_are_left_out_are_known(results: dict[str, dict[str, Any]]):
    """A new layer in ComfyUI's blocks shows here. HiDream's routed experts see few tokens each."""
    for name, result in results.items():
        inside = [
            path for path in result["other_layers"] if path.startswith(tuple(f"{b}." for b in result["per_block"]))
        ]
        left_out = [
            path for path in inside if not NOT_TRAINED.search(path) and not re.search(r"_mod\.|refiner|experts", path)
        ]
        assert left_out == [], name


def test_every_row_names_a_type_of_comfyuis_clip_loaders(results: dict[str, dict[str, Any]]):
    assert all(result["knows_clip_type"] for result in results.values())
