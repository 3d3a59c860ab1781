"""The memory presets of flow trainings: for every family at full size, settings whose estimate
fits, or a sentence that says what would. Without data, on the meta device.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers.check.memory_estimate import MemoryEstimate
from trainers.flow.families import FAMILIES, FlowFamilyRow
from trainers.flow.presets import LOWER_RESOLUTIONS, choose_resolution, describe_need
from trainers.training.presets import MEMORY_PRESETS, get_device_bytes

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "flow_presets.py"
USUAL = "12 GB"  # from here on every family fits whose step can be counted
ROUGH = {"HiDream"}  # its step depends on values: tokens are routed to experts


@pytest.fixture(scope="module")
def lines(run_in_comfyui: Callable[..., str]) -> list[dict[str, Any]]:
    output = run_in_comfyui(SCRIPT.read_text(encoding="utf-8"), PACK)
    found = [line.removeprefix("RESULT") for line in output.splitlines() if line.startswith("RESULT")]
    return [json.loads(line) for line in found]


@pytest.fixture(scope="module")
def estimates(lines: list[dict[str, Any]]) -> dict[str, tuple[FlowFamilyRow, dict[int, MemoryEstimate]]]:
    rows = {row.name: row for row in FAMILIES}
    return {
        line["name"]: (
            rows[line["family"]],
            {int(resolution): MemoryEstimate(**parts) for resolution, parts in line["estimates"].items()},
        )
        for line in lines
        if "name" in line
    }


def test_every_family_is_estimated_at_full_size(estimates):
    assert {row.name for row, _ in estimates.values()} == {row.name for row in FAMILIES}
    assert {row.name for row, found in estimates.values() if any(each.is_rough for each in found.values())} == ROUGH


@pytest.mark.parametrize("memory", MEMORY_PRESETS)
def test_every_preset_gives_settings_that_fit_or_says_what_does(estimates, memory):
    device_bytes = get_device_bytes(memory)
    for name, (row, found) in estimates.items():
        highest = min(MEMORY_PRESETS[memory].resolution, row.resolution)
        resolution, needed = choose_resolution(highest, found.__getitem__, device_bytes)
        fits = needed.total_bytes <= 0.9 * device_bytes
        assert describe_need(needed, resolution, row, device_bytes).startswith("" if fits else row.name)
        if row.name in ROUGH:
            continue
        assert fits or resolution == min([*found, *LOWER_RESOLUTIONS]), name
        assert fits or get_device_bytes(memory) < get_device_bytes(USUAL), name
        larger = [each for each in found if resolution < each <= highest]
        assert all(found[each].total_bytes > 0.9 * device_bytes for each in larger), f"{name}: too careful"


def test_the_resolution_is_lowered_only_where_it_is_open(lines):
    """Z-Image needs 4.1 GB at 1024 pixels, 3.3 GB at 768. On a CPU nothing needs to fit."""
    lowered, given, on_cpu = lines[0]["fitted"]
    assert lowered == [768, ""] and given == [1024, ""] and on_cpu == [1024, ""]


def test_caching_counts_the_text_encoder_and_the_vae_with_an_image_in_what_is_free(lines):
    found = lines[0]["caching"]
    assert found["on_cpu"] == 0
    assert found["with_image"] == 2**20 + 900 * 64 * 32 * 4  # in one frame, float32
    assert found["with_text"] == 2**30
    assert found["in_room"] == 100_000  # with the twentieth that an allocator wastes
