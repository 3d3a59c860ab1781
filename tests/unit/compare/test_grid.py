"""The grid as an image: places, sizes and labels."""

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.compare.checkpoints import Checkpoint
from trainers.compare.config import CompareConfig
from trainers.compare.grid import MAX_PIXELS, MAX_SIDE, CompareGrid, lay_out_grid
from trainers.compare.plan import ComparePlan, plan_comparison


def plan(num_loras: int = 2, prompts: tuple[str, ...] = ("a dog",), *, size: int = 128, **settings: Any) -> ComparePlan:
    checkpoints = [Checkpoint(f"step {500 * number}") for number in range(1, num_loras + 1)]
    return plan_comparison(checkpoints, prompts, CompareConfig(width=size, height=size, **settings))


def has_ink(image: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return len(np.unique(np.asarray(image.crop(box)).reshape(-1, 3), axis=0)) > 1


def test_every_image_is_in_its_place_as_it_was_drawn():
    grid = CompareGrid(plan(strengths="0.5, 1", seeds="0, 1"))
    rng = np.random.default_rng(0)
    images = {(x, y): rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for x in range(5) for y in range(2)}
    for (x, y), pixels in images.items():
        grid.put(x, y, Image.fromarray(pixels))
    for (x, y), pixels in images.items():
        assert np.array_equal(np.asarray(grid.image.crop(grid.layout.box(x, y))), pixels)


def test_images_do_not_overlap_and_are_inside():
    layout = lay_out_grid(plan(3, ("a", "b"), strengths="0.5, 1", seeds="0, 1"))
    taken = np.zeros(layout.size_hw, dtype=int)
    for x in range(7):
        for y in range(4):
            left, top, right, bottom = layout.box(x, y)
            taken[top:bottom, left:right] += 1
    assert taken.max() == 1 and taken.sum() == 7 * 4 * 128 * 128


def test_every_row_and_column_has_its_label():
    found = plan(strengths="0.5, 1", seeds="0, 1")
    grid = CompareGrid(found)
    layout = grid.layout
    for x in range(len(found.columns)):
        left, top, right, _ = layout.box(x, 0)
        assert has_ink(grid.image, (left, 0, right, top - 6))
    for y in range(len(found.rows)):
        left, top, _, bottom = layout.box(0, y)
        assert has_ink(grid.image, (0, top, left - 1, bottom))


def test_labels_stay_out_of_the_images():
    names = ("a_very_long_name_of_a_lora_" * 5, "名前がとても長いLoRAの名前" * 5)
    prompts = ("a very long prompt with many words, " * 100, "w" * 3000, "a\tb")
    found = plan_comparison([Checkpoint(name) for name in names], prompts, CompareConfig(width=64, height=64))
    grid = CompareGrid(found)
    for x in range(len(found.columns)):
        for y in range(len(found.rows)):
            assert not has_ink(grid.image, grid.layout.box(x, y))


def test_the_labels_of_two_checkpoints_differ_even_in_small_images():
    checkpoints = [Checkpoint(f"my_long_lora_name-step{steps:08d}") for steps in (1000, 2000)]
    found = plan_comparison(checkpoints, ("x",), CompareConfig(width=96, height=96, show_base=False))
    grid = CompareGrid(found)
    second_lines = []
    for x in range(2):
        left, top, right, _ = grid.layout.box(x, 0)
        second_lines.append(np.asarray(grid.image.crop((left, 22, right, top - 6))))
    assert not np.array_equal(*second_lines)


@pytest.mark.parametrize(
    ("num_loras", "num_prompts", "settings"),
    [(10, 12, {"strengths": "0.5, 0.8, 1"}), (199, 2, {}), (3, 100, {}), (1, 1, {"size": 4096})],
)
def test_a_large_grid_is_scaled_down(num_loras: int, num_prompts: int, settings: dict[str, Any]):
    found = plan(num_loras, tuple(map(str, range(num_prompts))), **{"size": 1024, **settings})
    layout = lay_out_grid(found)
    height, width = layout.size_hw
    assert height * width <= MAX_PIXELS and max(height, width) <= MAX_SIDE
    assert layout.cell_hw[0] == layout.cell_hw[1] >= 64
    grid = CompareGrid(found)
    grid.put(0, 0, Image.new("RGB", (found.size_hw[1], found.size_hw[0]), "red"))
    left, top, right, bottom = layout.box(0, 0)
    assert grid.image.getpixel(((left + right) // 2, (top + bottom) // 2)) == (255, 0, 0)


def test_a_grid_in_which_nothing_can_be_seen_is_refused():
    message = "a grid of 400 columns and 1 rows of 1024 x 1024 pixels would show images of less than 64 pixels"
    with pytest.raises(ValueError, match=re.escape(message)):
        lay_out_grid(plan(399, size=1024))
