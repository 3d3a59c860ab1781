"""Which images count as looking the same."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

import trainers.dataset.near_duplicates
from tests.unit.dataset.paintings import paint
from trainers.dataset.near_duplicates import fingerprint, group_near_duplicates


def compress(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


COPIES = {
    "resized": lambda image: image.resize((96, 64)),
    "enlarged": lambda image: image.resize((600, 400)),
    "recompressed": lambda image: compress(image, 25),
    "cut at the left and top": lambda image: image.crop((18, 12, 300, 200)),
    "cut at the right": lambda image: image.crop((0, 0, 279, 200)),
    "cut all around": lambda image: image.crop((9, 6, 291, 194)),
    "brighter": lambda image: image.point(lambda value: min(255, round(value * 1.1))),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found(copy: str) -> None:
    for seed in range(10):
        image = paint(seed, (300, 200))
        assert group_near_duplicates([fingerprint(image), fingerprint(COPIES[copy](image))]) == [[0, 1]], seed


def test_different_images_are_not_near_duplicates() -> None:
    assert group_near_duplicates([fingerprint(paint(seed)) for seed in range(60)]) == []


def test_the_same_shapes_in_other_colours_are_a_different_image() -> None:
    red, blue = (Image.new("RGB", (100, 100), "white") for _ in range(2))
    for image, colour in ((red, "#ff0000"), (blue, "#0000ff")):
        ImageDraw.Draw(image).ellipse((10, 10, 90, 90), fill=colour)
    assert group_near_duplicates([fingerprint(red), fingerprint(blue)]) == []
    assert group_near_duplicates([fingerprint(red), fingerprint(red.resize((70, 70)))]) == [[0, 1]]


def test_the_same_thing_on_a_wider_canvas_is_a_different_image() -> None:
    wide, square = Image.new("RGB", (400, 200), "white"), Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(wide).ellipse((20, 10, 380, 190), fill="#ff0000")
    ImageDraw.Draw(square).ellipse((10, 10, 190, 190), fill="#ff0000")
    assert group_near_duplicates([fingerprint(wide), fingerprint(square)]) == []


def test_a_chain_of_copies_is_one_group_and_no_images_give_no_group() -> None:
    first, other = paint(1, (300, 200)), paint(2)
    prints = [fingerprint(image) for image in (other, first, first.resize((150, 100)), paint(3), compress(first, 40))]
    assert group_near_duplicates(prints) == [[1, 2, 4]] and group_near_duplicates([]) == []


def test_one_pair_is_found_among_a_thousand_fingerprints() -> None:
    prints = [fingerprint(paint(seed, (64, 64))) for seed in range(20)]
    rng = np.random.default_rng(0)
    many = [
        trainers.dataset.near_duplicates.Fingerprint(
            1.0, rng.choice([-1, 1], (10, 64)).astype(np.float32), prints[0].colours
        )
        for _ in range(998)
    ]
    assert group_near_duplicates([prints[3], *many, prints[3]]) == [[0, 999]]


def test_a_thousand_copies_are_one_group_and_can_be_cancelled() -> None:
    prints = [fingerprint(paint(1, (64, 64)))] * 1000
    assert group_near_duplicates(prints) == [list(range(1000))]
    looks = iter(range(3))

    def interrupt() -> None:
        if next(looks) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group_near_duplicates(prints, check_interrupted=interrupt)
