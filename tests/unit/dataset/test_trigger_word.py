"""The trigger word is added in front of captions, once."""

import pytest

from tests.unit.dataset.folders import scan, write_photo
from trainers.dataset.trigger_word import add_trigger_word


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a toy", "zwx, a toy"),
        ("zwx, a toy", "zwx, a toy"),
        ("a ZWX toy", "a ZWX toy"),
        ("a zwxy toy", "zwx, a zwxy toy"),
        ("a re-zwx'd toy", "a re-zwx'd toy"),
        ("", "zwx"),
    ],
)
def test_the_trigger_word_is_added_in_front_once(caption, expected):
    assert add_trigger_word(caption, "zwx") == expected


def test_the_trigger_word_is_added_in_front_of_every_line(tmp_path):
    write_photo(tmp_path / "a.png", caption="a toy\nthe zwx stands")
    assert scan(tmp_path, trigger_word="zwx").images[0].caption == "zwx, a toy\nthe zwx stands"
