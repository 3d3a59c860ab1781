"""Images from other programs are stored as files that `scan_folder` reads back pixel for pixel:
once per content, and completely or not at all.
"""

import numpy as np
import pytest
from PIL import Image

from trainers.dataset.config import DatasetConfig
from trainers.dataset.given_images import store_images
from trainers.dataset.scan import scan_folder
from trainers.training.events import Interrupted


def make_photo(seed: int, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels)


def scan(folder, **settings):
    return scan_folder(DatasetConfig(images=str(folder), **settings)).images


def test_images_and_captions_come_back_in_order(tmp_path):
    photos = [make_photo(seed, size) for seed, size in enumerate([(8, 6), (5, 9), (8, 6)] * 4)]
    captions = [f"caption {number}" for number in range(12)]
    images = scan(store_images(photos, captions, tmp_path))
    assert [image.caption for image in images] == captions
    assert all(np.array_equal(image.read(), given) for image, given in zip(images, photos, strict=True))


def test_one_caption_is_used_for_all_images_and_no_caption_leaves_the_fallback(tmp_path):
    photos = [make_photo(0), make_photo(1)]
    assert [image.caption for image in scan(store_images(photos, ["a cat"], tmp_path))] == ["a cat", "a cat"]
    assert [image.caption for image in scan(store_images(photos, [], tmp_path), fallback_caption="a dog")] == [
        "a dog",
        "a dog",
    ]


def test_an_empty_caption_among_others_leaves_the_fallback(tmp_path):
    folder = store_images([make_photo(0), make_photo(1)], ["un café", "  "], tmp_path)
    assert [image.caption for image in scan(folder, fallback_caption="a dog")] == ["un café", "a dog"]


@pytest.mark.parametrize(("num_images", "num_captions"), [(3, 2), (1, 2), (2, 3)])
def test_a_wrong_number_of_captions_is_an_error_with_both_counts(tmp_path, num_images, num_captions):
    with pytest.raises(
        ValueError,
        match=rf"got {num_images} images?, but {num_captions} captions\. Give one caption per image.*or one for all",
    ):
        store_images([make_photo(seed) for seed in range(num_images)], ["x"] * num_captions, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_transparency_is_kept(tmp_path):
    given = make_photo(0, mode="RGBA")
    (image,) = scan(store_images([given], ["x"], tmp_path))
    assert np.array_equal(image.read_alpha(), given.getchannel("A"))


def test_the_same_images_are_stored_once(tmp_path):
    photos = [make_photo(0), make_photo(1)]
    first = store_images(photos, ["x"], tmp_path)
    written_at = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    again = store_images([image.copy() for image in photos], ["x", "x"], tmp_path)
    assert again == first and {path.name: path.stat().st_mtime_ns for path in again.iterdir()} == written_at
    assert list(tmp_path.iterdir()) == [first]


def test_different_pixels_sizes_captions_or_order_give_another_folder(tmp_path):
    one, other = make_photo(0), make_photo(1)
    reshaped = Image.frombytes("RGB", (6, 8), one.tobytes())
    stored = [
        store_images(photos, captions, tmp_path)
        for photos, captions in (
            ([one, other], ["a", "b"]),
            ([other, one], ["a", "b"]),
            ([one, other], ["b", "a"]),
            ([one, other], ["ab", ""]),
            ([one, other], []),
            ([reshaped, other], ["a", "b"]),
            ([one], ["a"]),
        )
    ]
    assert len(set(stored)) == len(stored)


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        store_images([make_photo(seed) for seed in range(3)], [], tmp_path, check_interrupted=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_two_calls_that_store_the_same_images_at_once_both_get_the_folder(tmp_path):
    """The second call finishes while the first is writing."""
    photos = [make_photo(0), make_photo(1)]
    is_first = [True]

    def store_meanwhile() -> None:
        if is_first.pop() if is_first else False:
            store_images(photos, ["x"], tmp_path)

    folder = store_images(photos, ["x"], tmp_path, check_interrupted=store_meanwhile)
    assert len(scan(folder)) == 2 and list(tmp_path.iterdir()) == [folder]
