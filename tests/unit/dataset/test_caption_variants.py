"""Variants of a caption: what changes, what stays, and that they depend only on the seed."""

import re
from collections import Counter

import pytest

from trainers.dataset.caption_variants import CaptionConfig, flatten_caption, vary_caption

TAGS = "zwx, red, blue, green, large, small"


def vary(caption: str, *, seed: int = 0, key: str = "a", **settings) -> tuple[str, ...]:
    return vary_caption(caption, CaptionConfig(**settings), seed=seed, key=key)


def test_without_random_options_there_is_one_variant_on_one_line():
    assert vary(TAGS, keep_tokens=1, num_caption_variants=5) == (TAGS,)
    assert vary("a {red|blue} toy, \n  on  grass") == ("a {red|blue} toy, on grass",)
    assert vary("") == ("",)


def test_shuffling_keeps_all_tags_and_the_first_ones_in_front():
    shuffled = vary(TAGS, shuffle_captions=True, keep_tokens=1, num_caption_variants=20)
    assert len(shuffled) == 20 and len(set(shuffled)) > 10
    assert all(
        sorted(variant.split(", ")) == sorted(TAGS.split(", ")) and variant.startswith("zwx, ") for variant in shuffled
    )


def test_without_keep_tokens_the_trigger_word_is_shuffled_too():
    assert any(not variant.startswith("zwx") for variant in vary(TAGS, shuffle_captions=True))


def test_tag_dropout_drops_its_share_keeps_the_order_and_spares_kept_tokens():
    dropped = vary(TAGS, tag_dropout=0.3, keep_tokens=2, num_caption_variants=1000)
    counts = Counter(part for variant in dropped for part in variant.split(", "))
    assert counts["zwx"] == counts["red"] == 1000
    assert all(abs(counts[part] - 700) < 60 for part in ("blue", "green", "large", "small"))  # 4 sigma
    order = TAGS.split(", ")
    assert all(
        [order.index(part) for part in variant.split(", ")] == sorted(order.index(part) for part in variant.split(", "))
        for variant in dropped
    )


def test_all_tags_can_be_dropped():
    assert set(vary(TAGS, tag_dropout=1.0)) == {""}
    assert set(vary(TAGS, tag_dropout=1.0, keep_tokens=1)) == {"zwx"}


def test_a_different_separator_splits_the_tags():
    assert set(vary("a, b; c", shuffle_captions=True, caption_separator=";")) == {"a, b; c", "c; a, b"}


def test_wildcards_choose_one_option_and_double_braces_give_braces():
    chosen = vary("a {red|dark  blue|} toy {{x}} { solo }", use_wildcards=True, num_caption_variants=200)
    assert set(chosen) == {"a red toy {x} solo", "a dark blue toy {x} solo", "a toy {x} solo"}


def test_every_line_is_used():
    lines = [f"line {i}" for i in range(5)]
    assert Counter(vary("\n".join(lines), use_wildcards=True, num_caption_variants=10)) == dict.fromkeys(lines, 2)
    assert sorted(vary("\n".join(lines), use_wildcards=True, num_caption_variants=2)) == lines


def test_a_word_in_front_of_every_line_is_kept_once_when_lines_are_joined():
    assert flatten_caption("zwx, a toy\n zwx,  on grass\n") == "zwx, a toy on grass"
    assert flatten_caption("zwx, a toy\nit is red") == "zwx, a toy it is red"
    assert flatten_caption("zwx, a woman, smile\nzwx, a woman, grass") == "zwx, a woman, smile grass"


def test_variants_depend_only_on_seed_and_key():
    settings = {"shuffle_captions": True, "tag_dropout": 0.2}
    assert vary(TAGS, **settings) == vary(TAGS, **settings)
    assert len({vary(TAGS, seed=seed, key=key, **settings) for seed in (0, 1) for key in ("a", "b")}) == 4


def test_more_variants_or_another_option_do_not_change_the_first_ones():
    few, many = (vary(TAGS, shuffle_captions=True, num_caption_variants=count) for count in (3, 9))
    assert many[:3] == few
    dropped = vary(TAGS, shuffle_captions=True, tag_dropout=0.5, num_caption_variants=9)
    for variant, whole in zip(dropped, many, strict=True):
        rest = iter(whole.split(", "))
        assert all(part in rest for part in variant.split(", ") if part)  # a subsequence: the order is the same


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tag_dropout": 1.5}, "tag_dropout must be between 0.0 and 1.0, got 1.5"),
        ({"keep_tokens": -1}, "keep_tokens must be between 0 and 100, got -1"),
        ({"num_caption_variants": 0}, "num_caption_variants must be between 1 and 1000, got 0"),
        ({"caption_separator": " "}, "caption_separator must contain a character other than a space, got ' '"),
    ],
)
def test_settings_out_of_range_are_an_error(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CaptionConfig(**settings)
