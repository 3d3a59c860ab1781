"""What sample_prompt and its neighbours mean, and the sheet that grows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.training.test_loop import dataset  # noqa: F401 (a fixture)
from tests.unit.training.test_resume import StoppingHost, runs, stop, train
from trainers.training.config import TrainingConfig
from trainers.training.events import SamplesDrawn
from trainers.training.sample_prompts import SamplePrompt, read_sample_prompts
from trainers.training.sample_sheet import CELL, HEAD, LABEL, MAX_COLUMNS, draw_grid, extend_sheet, thin_out


def read(prompt: str, **given: Any) -> tuple[SamplePrompt, ...]:
    return read_sample_prompts(TrainingConfig(sample_prompt=prompt, **given), first_caption="first", trigger_word="zwx")


def test_prompts_are_lines_or_have_bars_between_them():
    assert [sample.prompt for sample in read("a {trigger}\n# no prompt\n\nb|c")] == ["a zwx", "b", "c"]


def test_without_a_prompt_the_first_caption_is_drawn_with_the_settings():
    (sample,) = read("", sample_negative_prompt="{trigger} old", sample_seeds="4 5,6", sample_size="832x1216")
    assert sample == SamplePrompt("first", "zwx old", (4, 5, 6), (1216, 832), 20, 5.0)


def test_a_line_has_the_options_of_sd_scripts():
    (sample,) = read("a cat --n bad -- blurry --w 64 --h 128 --d 7 --s 3 --l 1.5", sample_seeds="0,1")
    assert sample == SamplePrompt("a cat", "bad -- blurry", (7,), (128, 64), 3, 1.5)
    assert read("--d 7")[0].prompt == "first"


@pytest.mark.parametrize(
    ("prompt", "given", "said"),
    [
        ("a --x 3", {}, "unknown option --x"),
        ("a --s many", {}, "--s must be a whole number, got 'many'"),
        ("a --s 900", {}, "--s must be between 1 and 200, got 900"),
        ("a --w 64", {}, "--w and --h belong together"),
        ("a --w 64 --h 100", {}, "multiples of 8 from 64 to 4096, got 64 x 100"),
        ("a", {"sample_size": "big"}, "must be width x height, such as 832x1216, or empty; got 'big'"),
        ("a", {"sample_seeds": "one"}, "sample_seeds must be whole numbers"),
    ],
)
def test_what_is_wrong_is_named(prompt, given, said):
    with pytest.raises(ValueError, match=said):
        read(prompt, **given)


def test_a_trigger_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="has no trigger word"):
        read_sample_prompts(TrainingConfig(sample_prompt="a {trigger}"), first_caption="x", trigger_word="")


def test_the_grid_has_a_row_for_each_prompt():
    red, wide = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (96, 32), "blue")
    grid = draw_grid([[red, red], [wide]])
    assert grid.size == (128, 96)
    assert grid.getpixel((127, 63)) == (255, 0, 0) and grid.getpixel((95, 95)) == (0, 0, 255)
    assert grid.getpixel((96, 64)) == (255, 255, 255)


def colour(step: int) -> Image.Image:
    return Image.new("RGB", (2 * CELL, CELL), (step, 0, 255 - step))


def read_columns(path: Path) -> list[int]:
    """The steps, as the colours of the second row say."""
    pixels = np.asarray(Image.open(path))
    top = HEAD + LABEL + CELL // 2 + LABEL
    return [int(pixels[top + 40, column * CELL + 100, 0]) for column in range(pixels.shape[1] // CELL)]


def test_the_sheet_grows_by_a_column_and_drops_some_of_too_many(tmp_path):
    path = tmp_path / "all.png"
    for step in range(MAX_COLUMNS + 3):
        extend_sheet(path, [[colour(step)], [colour(step)]], labels=["a", "日本"], step=step)
    steps = read_columns(path)
    assert steps == [*range(0, MAX_COLUMNS, 2), 24, 25, 26]
    extend_sheet(path, [[colour(7)], [colour(7)]], labels=["a", "b"], step=26)
    assert read_columns(path) == [*steps[:-1], 7], "drawn again"


def test_other_prompts_or_a_damaged_sheet_begin_a_new_one(tmp_path):
    path = tmp_path / "all.png"
    path.write_bytes(b"no image")
    extend_sheet(path, [[colour(1)], [colour(1)]], labels=["a", "b"], step=1)
    extend_sheet(path, [[colour(2)]], labels=["a"], step=2)
    assert Image.open(path).size == (CELL, HEAD + LABEL + CELL // 2)


def test_the_first_and_the_newest_column_stay():
    steps = thin_out(range(0, 100))
    assert steps[0] == 0 and steps[-1] == 99 and len(steps) == 51
    assert thin_out(range(MAX_COLUMNS)) == list(range(MAX_COLUMNS))


def test_a_run_that_was_stopped_goes_on_with_its_sheet(dataset, tmp_path):  # noqa: F811
    given = {"sample_every_n_steps": 4, "sample_prompt": "a\nb", "sample_seeds": "1,2,3"}
    stop(dataset, tmp_path, 6, **given)
    host = StoppingHost()
    train(dataset, tmp_path, host, **given)
    (run,) = runs(tmp_path)
    assert [event.step for event in host.select(SamplesDrawn)] == [8, 12]
    assert Image.open(run / "samples" / "toy-step00000000.png").size == (6, 4)
    assert Image.open(run / "samples" / "all.png").size[0] == 4 * 2


def test_settings_of_samples_begin_no_new_run(dataset, tmp_path):  # noqa: F811
    stop(dataset, tmp_path, 6)
    train(dataset, tmp_path, sample_every_n_steps=4, sample_size="64x64", sample_steps=3, sample_guidance_scale=2.0)
    assert len(runs(tmp_path)) == 1
