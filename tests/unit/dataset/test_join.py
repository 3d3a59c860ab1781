"""Joining several datasets into one."""

import pytest

from tests.unit.dataset.folders import list_reasons, scan, write_photo
from trainers.dataset.join import join_datasets
from trainers.dataset.report import Remark


def test_joined_datasets_keep_repeats_weights_and_trigger_words(tmp_path):
    for name, colour in (("toys", 1), ("dogs", 2)):
        write_photo(tmp_path / name / "a.png", colour=(colour, 0, 0), caption="a thing")
        write_photo(tmp_path / name / "b.gif")
    toys = scan(tmp_path / "toys", trigger_word="zwx", num_repeats=3, strict=False)
    dogs = scan(tmp_path / "dogs", is_regularization=True, loss_weight=0.5)
    joined = join_datasets([toys, dogs])
    assert [
        (image.name, image.num_repeats, image.loss_weight, image.is_regularization, image.caption)
        for image in joined.images
    ] == [
        ("toys/a.png", 3, 1.0, False, "zwx, a thing"),
        ("dogs/a.png", 1, 0.5, True, "a thing"),
    ]
    assert (joined.num_repeats, joined.trigger_word, joined.folder_name) == (1, "zwx", "toys + dogs")
    assert joined.report.summary == ["toys: 1 image, 3 repeats each", "dogs: 1 regularization image, loss weight 0.5"]
    assert list(list_reasons(joined)) == ["toys/b.gif", "dogs/b.gif"]
    assert [image.caption for image in joined.with_captions(["red", "blue"]).images] == ["zwx, red", "blue"]


def test_joined_datasets_with_equal_names_or_images_are_told_apart(tmp_path):
    for parent in ("one", "two"):
        write_photo(tmp_path / parent / "toys" / "a.png")
    one, two = (
        scan(tmp_path / parent / "toys", trigger_word=word) for parent, word in (("one", "zwx"), ("two", "qvy"))
    )
    joined = join_datasets([one, two])
    assert [image.name for image in joined.images] == ["toys/a.png", "toys (2)/a.png"]
    assert joined.trigger_word == "zwx, qvy" and [joined.get_trigger_word(image) for image in joined.images] == [
        "zwx",
        "qvy",
    ]
    assert joined.report.notes == [Remark("toys (2)/a.png", "it is the same file as toys/a.png; both are used")]


def test_joining_one_dataset_changes_nothing_and_joining_none_is_an_error(tmp_path):
    write_photo(tmp_path / "a.png")
    dataset = scan(tmp_path)
    assert join_datasets([dataset]) is dataset
    with pytest.raises(ValueError, match="no dataset to join"):
        join_datasets([])
