"""Edited captions: parsing and applying edits, changing many captions, and counting tokens."""

import json
from pathlib import Path

import pytest

from trainers.captions.edits import (
    CaptionEdit,
    apply_edits,
    change_captions,
    compute_review_key,
    inspect_caption,
    parse_edits,
)
from trainers.dataset.dataset import Dataset
from trainers.dataset.image import TrainingImage
from trainers.dataset.report import DatasetReport


def make_image(name: str, caption: str) -> TrainingImage:
    return TrainingImage(name, Path(name), f"sha of {name}", (64, 64), caption, False)


IMAGES = [make_image("a.png", "a red cat"), make_image("b.png", "a dog"), make_image("c.png", "")]


def test_an_empty_text_has_no_edits():
    assert parse_edits("") == parse_edits(" \n") == parse_edits("{}") == {}


def test_an_edit_is_a_caption_or_a_caption_with_its_predecessor():
    text = json.dumps({"x": "one", "y": {"caption": "two", "incoming": "three"}, "z": {"caption": ""}})
    assert parse_edits(text) == {"x": CaptionEdit("one"), "y": CaptionEdit("two", "three"), "z": CaptionEdit("")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"edits is not JSON \(line 1, column 2"),
        ('["a"]', "must be an object such as .* got list"),
        ('{"a.png": 3}', r"a\.png must be a caption, .* got 3"),
        ('{"a.png": {"caption": null}}', r'a\.png must be a caption, .* got \{"caption": null\}'),
        ('{"a.png": {"incoming": "x"}}', r"a\.png must be a caption"),
        ('{"a.png": {"caption": "x", "incoming": 1}}', r"a\.png must be a caption"),
    ],
)
def test_any_other_form_is_refused_and_located(text, message):
    with pytest.raises(ValueError, match=message):
        parse_edits(text)


def test_edits_match_by_hash_or_name_and_the_name_wins():
    edits = {"sha of a.png": CaptionEdit("by hash"), "a.png": CaptionEdit("by name"), "b.png": CaptionEdit("other dog")}
    result = apply_edits(IMAGES, edits)
    assert result.captions == ["by name", "other dog", ""]
    assert result.edited == ["a.png", "b.png"] and result.outdated == [] and result.unknown == []


def test_a_renamed_file_keeps_its_edit():
    renamed = TrainingImage("z.png", Path("z.png"), "sha of a.png", (64, 64), "a red cat", False)
    assert apply_edits([renamed], {"sha of a.png": CaptionEdit("mine")}).captions == ["mine"]


def test_a_caption_that_changed_after_its_edit_is_named_and_the_edit_still_applies():
    result = apply_edits(IMAGES, {"a.png": CaptionEdit("mine", "a cat"), "b.png": CaptionEdit("mine", "a dog")})
    assert result.captions == ["mine", "mine", ""] and result.outdated == ["a.png"]


def test_an_edit_equal_to_the_incoming_caption_is_neither_edited_nor_outdated():
    result = apply_edits(IMAGES, {"a.png": CaptionEdit("a red cat", "an older one")})
    assert result.edited == result.outdated == []


def test_edits_of_unknown_images_are_named():
    assert apply_edits(IMAGES, {"x.png": CaptionEdit("?"), "a.png": CaptionEdit("mine")}).unknown == ["x.png"]


def test_an_edit_can_empty_a_caption():
    result = apply_edits(IMAGES, {"a.png": CaptionEdit("")})
    assert result.captions[0] == "" and result.edited == ["a.png"]


def compute_key(images: list[TrainingImage], trigger_word: str = "") -> str:
    return compute_review_key(Dataset(images, 1, trigger_word, DatasetReport(len(images)), "pictures"))


def test_the_review_key_changes_with_every_image_name_caption_and_trigger_word():
    keys = {compute_key(IMAGES), compute_key(IMAGES, "sks"), compute_key(IMAGES[:2]), compute_key(IMAGES[::-1])}
    keys |= {
        compute_key([make_image("a.png", "another"), *IMAGES[1:]]),
        compute_key([make_image("d.png", "a red cat"), *IMAGES[1:]]),
    }
    assert len(keys) == 6
    assert compute_key(list(IMAGES)) == compute_key(IMAGES)


@pytest.mark.parametrize(
    ("caption", "front", "end"),
    [
        ("a cat", "photo, a cat", "a cat, photo"),
        ("", "photo", "photo"),
        ("a cat, Photo, grass", "a cat, Photo, grass", "a cat, Photo, grass"),
        ("a photograph", "photo, a photograph", "a photograph, photo"),
        ("A cat sits.", "photo, A cat sits.", "A cat sits. photo"),
        ("a cat,", "photo, a cat,", "a cat, photo"),
    ],
)
def test_text_is_added_once_between_commas(caption, front, end):
    assert change_captions([caption], "add in front", " photo ") == [front]
    assert change_captions([caption], "add at the end", "photo") == [end]


@pytest.mark.parametrize(
    ("caption", "text", "changed"),
    [
        ("cat, dog, grass", "dog", "cat, grass"),
        ("dog, grass", "dog", "grass"),
        ("cat, dog", "dog", "cat"),
        ("dog", "dog", ""),
        ("a big dog runs", "big", "a dog runs"),
        ("the dog.", "dog", "the."),
        ("a hotdog", "dog", "a hotdog"),
        ("A Dog", "dog", "A"),
        ("cat (blurry), grass", "(blurry)", "cat, grass"),
        ("über, dog\nsecond dog line", "dog", "über\nsecond line"),
        ("1,000  cats", "dog", "1,000  cats"),
        ("a.b, axb", "a.b", "axb"),
    ],
)
def test_removing_text_removes_its_commas_and_spaces(caption, text, changed):
    assert change_captions([caption], "remove", text) == [changed]


def test_replacing_respects_match_case_and_whole_words():
    captions = ["Cat and category", "cat"]
    assert change_captions(captions, "replace", "cat", "dog") == ["dog and category", "dog"]
    assert change_captions(captions, "replace", "cat", "dog", match_case=True) == ["Cat and category", "dog"]
    assert change_captions(captions, "replace", "cat", "dog", whole_words=False) == ["dog and dogegory", "dog"]
    assert change_captions(["a cat"], "replace", "cat", r"\1 \g<0>") == [r"a \1 \g<0>"]
    assert change_captions(["a cat, grass"], "replace", "a cat", "") == ["grass"]


def test_an_unknown_operation_and_an_empty_text_are_refused():
    with pytest.raises(
        ValueError, match="operation must be one of add in front, add at the end, remove, replace, got shuffle"
    ):
        change_captions(["a"], "shuffle", "x")
    with pytest.raises(ValueError, match="there is no text to remove"):
        change_captions(["a"], "remove", "  ")


def test_tokens_are_counted_as_in_clip():
    facts = [inspect_caption(caption, "") for caption in ("", "a red cat", "cat " * 75, "cat " * 76, "cat " * 151)]
    assert [(fact.num_tokens, fact.num_chunks) for fact in facts] == [(0, 1), (3, 1), (75, 1), (76, 2), (151, 3)]


def test_several_lines_are_counted_together_and_each_needs_the_trigger_word():
    assert inspect_caption("sks cat\nsks red cat", "sks").has_trigger_word
    assert not inspect_caption("sks cat\na red cat", "sks").has_trigger_word
    assert inspect_caption("a cat\na red cat", "").num_tokens == 5


def test_the_trigger_word_counts_as_a_whole_word_anywhere():
    assert [inspect_caption(caption, "sks").has_trigger_word for caption in ("sks cat", "a SKS", "sksy cat", "")] == [
        True,
        True,
        False,
        False,
    ]
    assert inspect_caption("a cat", "").has_trigger_word
