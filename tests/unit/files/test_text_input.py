"""JSON and text from outside: what Python would fail on is a ValueError in words."""

import pytest

from trainers.captions.captioning import CaptionerConfig
from trainers.captions.edits import parse_edits
from trainers.dataset.config import DatasetConfig
from trainers.files.text_input import parse_json, require_characters
from trainers.musubi.dataset_toml import list_paths, read_toml


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_endless_nesting_is_an_error_in_words(text: str):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)
    with pytest.raises(ValueError, match="edits: it is nested too deeply"):
        parse_edits(text)


def test_a_nested_edit_is_refused_whatever_its_depth():
    for depth in (10, 400, 900):
        with pytest.raises(ValueError, match=r"edits: (x must be a caption|it is nested)"):
            parse_edits('{"x": ' + "[" * depth + "]" * depth + "}")


def test_half_characters_are_named():
    assert require_characters("a 🍄 é", "caption") == "a 🍄 é"
    with pytest.raises(ValueError, match=r"caption has U\+D83C at position 3, which is half of a character"):
        require_characters("a \ud83c", "caption")
    with pytest.raises(ValueError, match="edits: the caption of 'x' has U"):
        parse_edits('{"x": "\\ud83c"}')
    with pytest.raises(ValueError, match=r"trigger_word has U\+D83C"):
        DatasetConfig(images="x", trigger_word="\ud83c")
    with pytest.raises(ValueError, match=r"prompt has U\+D83C"):
        CaptionerConfig(prompt="\ud83c")


def test_a_nested_dataset_toml_is_an_error_in_words():
    text = "a = " + "[" * 50_000
    _, (problem, *_) = read_toml(text, resolution_step=16)
    assert "nested too deeply" in problem or "not valid TOML" in problem
    assert list_paths(text) == []


def test_every_path_of_a_dataset_toml_is_found():
    text = """
    [general]
    cache_directory = "/c"
    [[datasets]]
    image_directory = "/a"
    control_directory = "/b"
    [[datasets]]
    image_jsonl_file = "/d.jsonl"
    """
    assert [value for _, value in list_paths(text)] == ["/c", "/a", "/b", "/d.jsonl"]
