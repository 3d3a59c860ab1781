"""Crops that are read on threads."""

import threading

import pytest
from PIL import Image

from tests.unit.dataset.folders import scan_with_trigger_word
from trainers.dataset import read_ahead
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_pixels import read_crop
from trainers.dataset.crop_plan import TrainingItem, plan_crops
from trainers.dataset.read_ahead import read_crops_ahead


@pytest.fixture
def items(tmp_path) -> list[TrainingItem]:
    for number in range(12):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    return plan_crops(scan_with_trigger_word(tmp_path), BucketConfig(resolution=64, bucket_reso_steps=32), seed=0).items


def test_items_come_in_their_order_with_the_crops_that_are_wanted(items):
    read = list(read_crops_ahead(items, lambda item: item.index % 3 != 0))
    assert [item for item, _ in read] == items
    for item, crop in read:
        assert (crop is None) == (item.index % 3 == 0)
        assert crop is None or crop.tobytes() == read_crop(item).tobytes()


def test_the_next_crops_are_read_before_they_are_asked_for(items, monkeypatch):
    has_begun = threading.Event()

    def read(item: TrainingItem) -> Image.Image:
        if item.index == 1:
            has_begun.set()
        return read_crop(item)

    monkeypatch.setattr(read_ahead, "read_crop", read)
    next(read_crops_ahead(items, lambda _: True))
    assert has_begun.wait(60)


def test_only_a_few_are_read_ahead_and_none_after_the_end(items, monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(read_ahead, "read_crop", lambda item: seen.append(item.index))
    crops = read_crops_ahead(items, lambda _: True)
    next(crops)
    crops.close()
    assert len(seen) < len(items)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read crops")]


def test_an_image_that_changed_is_an_error_at_its_turn(items, tmp_path):
    items[2].image.path.write_bytes(b"")
    crops = read_crops_ahead(items, lambda _: True)
    next(crops)
    next(crops)
    with pytest.raises(RuntimeError, match=r"02\.png"):
        next(crops)
