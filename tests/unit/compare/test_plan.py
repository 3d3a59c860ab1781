"""What a comparison draws: columns, rows, prompts with trigger words, and what is refused."""

import re
from typing import Any

import pytest

from trainers.compare.checkpoints import Checkpoint
from trainers.compare.config import MAX_SEED, CompareConfig, parse_prompts, parse_seeds, parse_strengths
from trainers.compare.plan import Column, ComparePlan, Row, plan_comparison

TWO = [Checkpoint("step 500", trigger_word="zwx"), Checkpoint("step 1000", trigger_word="zwx")]


def plan(checkpoints: list[Checkpoint] = TWO, prompts: tuple[str, ...] = ("a dog",), **settings: Any) -> ComparePlan:
    return plan_comparison(checkpoints, prompts, CompareConfig(**settings))


def test_every_lora_has_a_column_for_every_strength_after_the_one_without_lora():
    assert plan(strengths="0.6, 1").columns == (
        Column(0),
        Column(1, 0.6),
        Column(1, 1.0),
        Column(2, 0.6),
        Column(2, 1.0),
    )


def test_every_prompt_has_a_row_for_every_seed():
    found = plan(prompts=("a dog", "a cat"), seeds="3, 0")
    assert found.rows == (Row("a dog", 3), Row("a dog", 0), Row("a cat", 3), Row("a cat", 0))
    assert (found.num_images, found.num_sampler_steps) == (12, 12 * 25)


def test_strength_0_is_the_column_without_lora_and_is_drawn_once():
    assert plan(strengths="0, 1", show_base=False).columns == (Column(0), Column(1, 1.0), Column(2, 1.0))
    assert plan(strengths="1", show_base=False).columns == (Column(1, 1.0), Column(2, 1.0))
    assert plan(strengths="0").columns == (Column(0),)


def test_the_trigger_word_comes_from_each_lora_and_without_lora_from_the_first():
    found = plan([Checkpoint("a", trigger_word="zwx"), Checkpoint("b", trigger_word="qyv")], ("a {trigger} dog",))
    assert [found.write_prompt(column, "a {trigger} dog") for column in found.columns] == [
        "a zwx dog",
        "a zwx dog",
        "a qyv dog",
    ]
    assert found.show_prompt("a {trigger} dog") == "a {trigger} dog"
    assert plan().show_prompt("a {trigger} dog") == "a zwx dog"


def test_the_choice_is_the_number_in_the_grid_and_0_the_last():
    assert [plan().find_number(choice) for choice in (0, 1, 2)] == [2, 1, 2]
    for choice in (-1, 3):
        with pytest.raises(ValueError, match=rf"1 to 2, or 0 for the last; got {choice}"):
            plan().find_number(choice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoints": []}, "there is no LoRA to compare"),
        (
            {"strengths": "1, 2", "seeds": ", ".join(map(str, range(81)))},
            "5 columns (2 LoRAs, 2 strengths) and 81 rows of prompts and seeds are 405 images; at most 400 are drawn. "
            "Give fewer LoRAs, strengths, prompts or seeds",
        ),
        (
            {"checkpoints": [*TWO, Checkpoint("other")], "prompts": ("a {trigger}",)},
            "other: its header names no trigger word for {trigger}. Write the word into the prompts",
        ),
        ({"width": 100}, "width must be a multiple of 8, got 100"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(**arguments)


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("1", (1.0,)),
        ("0.6, 0.8,1.0", (0.6, 0.8, 1.0)),
        (" 0.6 0.8;1 \n", (0.6, 0.8, 1.0)),
        ("1, 1.0, 0.5, 1", (1.0, 0.5)),
        ("-1, .5,", (-1.0, 0.5)),
    ],
)
def test_strengths_are_numbers_in_their_order_each_once(text: str, strengths: tuple[float, ...]):
    assert parse_strengths(text) == strengths


@pytest.mark.parametrize("text", ["", " , ", "strong", "1, x", "nan", "inf", "101", "1..2"])
def test_other_strengths_are_refused(text: str):
    with pytest.raises(ValueError, match=r"strengths must be numbers between -100 and 100, .*; got '"):
        parse_strengths(text)


def test_seeds_are_whole_numbers():
    assert parse_seeds(f"0, 7 7, {MAX_SEED}") == (0, 7, MAX_SEED)
    for text in ("", "-1", "1.5", str(MAX_SEED + 1), "a"):
        with pytest.raises(ValueError, match="seeds must be whole numbers between 0 and 18446744073709551615"):
            parse_seeds(text)


def test_prompts_are_lines_without_empty_and_repeated_ones():
    assert parse_prompts(["a dog ", "", "  a cat", "a dog"]) == ("a dog", "a cat")
    with pytest.raises(ValueError, match="there is no prompt"):
        parse_prompts(["", " "])
