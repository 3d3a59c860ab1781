"""Masks from files, the alpha channel or other nodes: never used as images, checked like images,
and of the same size.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.given_images import store_images
from trainers.dataset.image_folder import list_dataset_files
from trainers.dataset.report import Remark
from trainers.dataset.scan import scan_folder


def make_photo(path: Path, colour=(10, 20, 30), size_wh=(96, 64), **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, colour).save(path, **settings)
    return path


def make_mask(path: Path, size_wh=(96, 64), mode="L", **settings) -> Path:
    """Return a mask that is white for x below a third of the width and black elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size_wh)
    image.paste("white", (0, 0, size_wh[0] // 3, size_wh[1]))
    image.save(path, **settings)
    return path


def scan(folder: Path, **settings) -> Dataset:
    return scan_folder(DatasetConfig(images=str(folder), **{"trigger_word": "zwx", **settings}))


@pytest.mark.parametrize(
    "name", ["a-masklabel.png", "a-masklabel.JPG", "mask/a.png", "masks/a.webp", "Mask/a.bmp", "masks/a-masklabel.png"]
)
def test_a_mask_file_is_found_by_its_name_and_is_not_an_image(tmp_path, name):
    make_photo(tmp_path / "a.jpg")
    make_photo(tmp_path / "b.png", colour=(1, 1, 1))
    make_mask(tmp_path / name, mode="RGB")
    for recursive in (False, True):
        dataset = scan(tmp_path, recursive=recursive)
        assert [image.name for image in dataset.images] == ["a.jpg", "b.png"]
        first, second = (image.read_mask() for image in dataset.images)
        assert second is None and first is not None and first.mode == "L" and first.size == (96, 64)
        pixels = np.asarray(first)
        assert pixels[5, 10] >= 250 and pixels[5, 60] <= 5  # JPEG and WebP are not exact
        assert dataset.report.summary == [f"{tmp_path.name}: 2 images, 1 with a mask"]


@pytest.mark.parametrize("name", ["sub/mask/a.png", "mask/sub/a.png", "sub/a-masklabel.png"])
def test_an_image_in_a_subfolder_finds_its_mask_next_to_it_or_at_the_same_path_in_mask(tmp_path, name):
    make_photo(tmp_path / "a.png", colour=(1, 1, 1))
    make_photo(tmp_path / "sub" / "a.png")
    make_mask(tmp_path / name)
    assert [(image.name, image.mask_path) for image in scan(tmp_path, recursive=True).images] == [
        ("a.png", None),
        ("sub/a.png", tmp_path / name),
    ]


def test_kohyas_folders_have_masks_too(tmp_path):
    make_photo(tmp_path / "3_dog" / "a.png")
    make_mask(tmp_path / "3_dog" / "mask" / "a.png")
    (image,) = scan(tmp_path).images
    assert image.num_repeats == 3 and image.mask_path == tmp_path / "3_dog" / "mask" / "a.png"


def test_the_mask_next_to_the_image_comes_first(tmp_path):
    make_photo(tmp_path / "a.png")
    make_mask(tmp_path / "mask" / "a.png")
    beside = make_mask(tmp_path / "a-masklabel.png")
    assert scan(tmp_path).images[0].mask_path == beside


@pytest.mark.parametrize("mask_source", ["off", "alpha"])
def test_unused_mask_files_are_not_images_either(tmp_path, mask_source):
    make_photo(tmp_path / "a.png")
    make_mask(tmp_path / "a-masklabel.png")
    make_mask(tmp_path / "mask" / "a.png")
    (image,) = scan(tmp_path, mask_source=mask_source, recursive=True).images
    assert (image.mask_path, image.mask_sha256, image.read_mask()) == (None, "", None)


def test_the_alpha_channel_is_a_mask_only_on_request(tmp_path):
    rgba = Image.new("RGBA", (96, 64), (200, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 32, 64))
    rgba.save(tmp_path / "a.png")
    assert scan(tmp_path).images[0].read_mask() is None
    (image,) = scan(tmp_path, mask_source="alpha").images
    given = image.read_mask()
    assert given is not None and given.getpixel((5, 5)) == 0 and given.getpixel((90, 5)) == 255
    assert image.mask_sha256 == image.sha256 and image.mask_path is None
    assert image.read().getpixel((5, 5)) == (255, 255, 255)  # flattened all the same


def test_an_image_whose_mask_is_broken_is_left_out_by_name(tmp_path):
    names = ("damaged", "empty", "gif", "good", "none")
    for i, name in enumerate(names):
        make_photo(tmp_path / f"{name}.png", colour=(i, 0, 0))
    make_mask(tmp_path / "good-masklabel.png")
    whole = (tmp_path / "good-masklabel.png").read_bytes()
    (tmp_path / "damaged-masklabel.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty-masklabel.png").write_bytes(b"")
    make_mask(tmp_path / "mask" / "gif.gif")
    dataset = scan(tmp_path)
    assert [image.name for image in dataset.images] == ["good.png", "none.png"]
    reasons = {remark.name: remark.reason for remark in dataset.report.left_out}
    assert reasons["damaged.png"].startswith("its mask damaged-masklabel.png cannot be used: it is damaged")
    assert reasons["empty.png"] == "its mask empty-masklabel.png cannot be used: the file is empty (0 bytes)"
    assert reasons["gif.png"].startswith("its mask mask/gif.gif cannot be used: .gif files are not read")
    with pytest.raises(ValueError, match="strict is on and 3 images cannot be used"):
        scan(tmp_path, strict=True)


def test_a_mask_of_another_size_is_resized_and_a_different_shape_is_reported(tmp_path):
    for name in ("half", "square"):
        make_photo(tmp_path / f"{name}.png", colour=(len(name), 0, 0))
    make_mask(tmp_path / "half-masklabel.png", size_wh=(48, 32))
    make_mask(tmp_path / "square-masklabel.png", size_wh=(64, 64))
    dataset = scan(tmp_path)
    for image in dataset.images:
        given = image.read_mask()
        assert (
            given is not None
            and given.size == (96, 64)
            and given.getpixel((10, 5)) == 255
            and given.getpixel((60, 5)) == 0
        )
    assert dataset.report.notes[-1] == Remark(
        "square.png",
        "its mask square-masklabel.png has a different shape (64 x 64, the image 96 x 64) and is stretched to fit",
    )
    assert not any("shape" in note.reason for note in dataset.report.notes if note.name == "half.png")


def test_masks_and_images_are_upright_each_by_its_own_exif_data(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    make_photo(tmp_path / "a.png", exif=exif)
    make_mask(tmp_path / "a-masklabel.png", size_wh=(64, 96))
    dataset = scan(tmp_path)
    given = dataset.images[0].read_mask()
    assert (
        given is not None and given.size == dataset.images[0].read().size == (64, 96) and given.getpixel((5, 90)) == 255
    )
    assert not any("shape" in note.reason for note in dataset.report.notes)


def test_transparent_areas_of_a_mask_file_are_not_learned(tmp_path):
    make_photo(tmp_path / "a.png")
    rgba = Image.new("RGBA", (96, 64), (255, 255, 255, 0))
    rgba.paste((255, 255, 255, 255), (0, 0, 32, 64))
    rgba.save(tmp_path / "a-masklabel.png")
    given = scan(tmp_path).images[0].read_mask()
    assert given is not None and given.getpixel((5, 5)) == 255 and given.getpixel((60, 5)) == 0


def test_a_black_mask_and_one_without_an_image_are_reported(tmp_path):
    make_photo(tmp_path / "a.png")
    make_photo(tmp_path / "a-masklabel.png", colour="black")
    make_mask(tmp_path / "b-masklabel.png")
    notes = scan(tmp_path).report.notes
    assert Remark("a.png", "its mask a-masklabel.png is black all over: nothing of the image is learned") in notes
    assert Remark("b-masklabel.png", "its name marks it as a mask, but it belongs to no image") in notes


def test_a_mask_that_changed_since_the_scan_is_an_error_that_names_it(tmp_path):
    make_photo(tmp_path / "a.png")
    make_mask(tmp_path / "a-masklabel.png")
    (image,) = scan(tmp_path).images
    make_mask(tmp_path / "a-masklabel.png", size_wh=(30, 30))
    image.read()
    with pytest.raises(RuntimeError, match=r"a-masklabel\.png: the file has changed since the folder was scanned"):
        image.read_mask()


def test_masks_from_other_nodes_are_stored_and_found_again(tmp_path):
    photos = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    masks = [Image.linear_gradient("L").resize((20, 10)), None, Image.new("L", (20, 10), 255)]
    folder = store_images(photos, ["x"], tmp_path, masks=masks)
    dataset = scan(folder)
    assert len(dataset.images) == 3
    for image, given in zip(dataset.images, masks, strict=True):
        stored = image.read_mask()
        assert (stored is None) if given is None else np.array_equal(stored, given)
    assert store_images(photos, ["x"], tmp_path, masks=masks) == folder
    assert store_images(photos, ["x"], tmp_path) != folder
    assert store_images(photos, ["x"], tmp_path, masks=masks[::-1]) != folder


def test_the_number_of_masks_must_match_the_images(tmp_path):
    with pytest.raises(ValueError, match=r"got 2 images, but 1 mask\. Connect one mask per image"):
        store_images([Image.new("RGB", (8, 8))] * 2, [], tmp_path, masks=[Image.new("L", (8, 8))])
    assert list(tmp_path.iterdir()) == []


def test_dataset_files_are_those_that_a_scan_reads(tmp_path):
    make_photo(tmp_path / "5_dog" / "a.png").with_suffix(".txt").write_text("a dog")
    make_mask(tmp_path / "5_dog" / "mask" / "a.png")
    (tmp_path / "metadata.jsonl").write_text("{}")
    (tmp_path / "5_dog" / "notes.md").write_text("x")
    make_photo(tmp_path / "5_dog" / "deeper" / "b.png")
    names = {file.relative_to(tmp_path).as_posix() for file in list_dataset_files(tmp_path, recursive=False).read}
    assert names == {"5_dog/a.png", "5_dog/a.txt", "5_dog/mask/a.png", "metadata.jsonl"}
    assert list_dataset_files(tmp_path / "5_dog" / "mask", recursive=False).read == [
        tmp_path / "5_dog" / "mask" / "a.png"
    ]
