"""Control images: which file belongs to which image, that they are checked like images, and how
they are cropped.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.dataset.folders import list_reasons, scan, write_photo
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.control_crop import crop_control_images, show_whole
from trainers.dataset.control_images import refuse_control_images
from trainers.dataset.crop_plan import TrainingItem, plan_crops
from trainers.dataset.dataset import Dataset
from trainers.dataset.join import join_datasets
from trainers.training.config import TrainingConfig
from trainers.training.plan import plan_training
from trainers.training.run_identity import identify_plan
from trainers.training.run_settings import RunSettings


def write(folder: Path, *names: str, size_wh=(96, 64), caption: str | None = "a caption") -> Path:
    """Each image has its own colour."""
    for number, name in enumerate(names):
        write_photo(folder / name, size_wh, colour=(len(folder.name), number, len(name)), caption=caption)
    return folder


def write_controls(folder: Path, *names: str, **settings) -> Path:
    return write(folder, *names, caption=None, **settings)


def list_controls(dataset: Dataset) -> dict[str, list[str]]:
    return {image.name: [control.name for control in image.control_images] for image in dataset.images}


def test_control_images_belong_to_the_image_of_their_name(tmp_path):
    """Several are in the order of their numbers; the format may be another."""
    write(tmp_path / "images", "a.png", "b_1.png", "c.png")
    controls = write_controls(
        tmp_path / "seen", "a.jpg", "b_1_10.png", "b_1_2.png", "b_1_0000.webp", "c_0.png", "c.png"
    )
    dataset = scan(tmp_path / "images", control_images=str(controls))
    assert list_controls(dataset) == {
        "a.png": ["a.jpg"],
        "b_1.png": ["b_1_0000.webp", "b_1_2.png", "b_1_10.png"],
        "c.png": ["c.png", "c_0.png"],
    }
    assert dataset.report.summary == ["images: 3 images, 3 with control images"]
    assert not dataset.report.notes and not dataset.report.left_out


@pytest.mark.parametrize("recursive", [False, True])
def test_a_folder_of_control_images_may_be_in_the_folder_of_the_images(tmp_path, recursive):
    """They are never trained on."""
    write(tmp_path, "a.png", "b.png")
    controls = write_controls(tmp_path / "control", "a.png", "b.png")
    dataset = scan(tmp_path, control_images=str(controls), recursive=recursive)
    assert list_controls(dataset) == {"a.png": ["a.png"], "b.png": ["b.png"]}
    assert not dataset.report.notes


def test_images_in_subfolders_have_control_images_in_subfolders_or_by_their_name_alone(tmp_path):
    write(tmp_path / "images" / "2_dog", "a.png")
    write(tmp_path / "images" / "1_cat", "a.png", "b.png")
    write_controls(tmp_path / "seen" / "2_dog", "a.png")
    write_controls(tmp_path / "seen" / "1_cat", "a.png", "b.png")
    dataset = scan(tmp_path / "images", control_images=str(tmp_path / "seen"))
    assert all(name == controls[0] for name, controls in list_controls(dataset).items())
    write(tmp_path / "distinct" / "2_dog", "a.png")
    flat = scan(tmp_path / "distinct", control_images=str(write_controls(tmp_path / "flat", "a.png")))
    assert list_controls(flat) == {"2_dog/a.png": ["a.png"]}


def test_images_without_a_control_image_are_an_error_that_names_them(tmp_path):
    write(tmp_path / "images", "a.png", "b.png", "c.png")
    controls = write_controls(tmp_path / "seen", "a.png")
    with pytest.raises(ValueError, match=r"seen: no control image for 2 images: b\.png, c\.png\. Give each"):
        scan(tmp_path / "images", control_images=str(controls))


def test_regularization_images_need_none(tmp_path):
    write(tmp_path / "reg", "a.png", "b.png")
    controls = write_controls(tmp_path / "seen", "a.png")
    dataset = scan(tmp_path / "reg", control_images=str(controls), is_regularization=True)
    assert list_controls(dataset) == {"a.png": ["a.png"], "b.png": []}


def test_a_control_image_of_no_image_is_named(tmp_path):
    write(tmp_path / "images", "a.png")
    controls = write_controls(tmp_path / "seen", "a.png", "z.png", "a_x.png")
    notes = scan(tmp_path / "images", control_images=str(controls)).report.notes
    assert [(note.name, note.reason) for note in notes] == [
        (f"seen/{name}", "a control image of no image: it is not used") for name in ("a_x.png", "z.png")
    ]


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def replace_by_text(path: Path) -> None:
    path.write_text("not a picture")


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(break_file, "it is damaged"), (replace_by_text, "it is not a readable image"), (empty_file, "the file is empty")],
)
def test_an_image_with_an_unusable_control_image_is_left_out(tmp_path, damage, reason):
    write(tmp_path / "images", "a.png", "b.png")
    damage(write_controls(tmp_path / "seen", "a.png", "b.png") / "a.png")
    dataset = scan(tmp_path / "images", control_images=str(tmp_path / "seen"))
    assert list_controls(dataset) == {"b.png": ["b.png"]}
    assert list_reasons(dataset)["a.png"].startswith(f"its control image a.png cannot be used: {reason}")


def test_a_control_image_in_a_format_that_is_not_read_is_named(tmp_path):
    write(tmp_path / "images", "a.png", "b.png")
    write_controls(tmp_path / "seen", "a.gif", "b.png")
    dataset = scan(tmp_path / "images", control_images=str(tmp_path / "seen"))
    assert "its control image a.gif cannot be used: .gif files are not read" in list_reasons(dataset)["a.png"]


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("nowhere", FileNotFoundError, "control_images: .*nowhere: there is no such folder"),
        ("empty", ValueError, "control_images: .*empty: no images, it is empty"),
        ("images", ValueError, "control_images: .*images is the folder of the images or above it"),
        (".", ValueError, "is the folder of the images or above it"),
    ],
)
def test_a_wrong_folder_is_an_error(tmp_path, place, error, message):
    write(tmp_path / "images", "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        scan(tmp_path / "images", control_images=str(tmp_path / place))


def test_the_same_image_with_other_control_images_is_no_copy(tmp_path):
    for name in ("a", "b", "c"):
        write_photo(tmp_path / "images" / f"{name}.png")
    write_controls(tmp_path / "seen", "a.png", "b.png")
    (tmp_path / "seen" / "c.png").write_bytes((tmp_path / "seen" / "a.png").read_bytes())
    dataset = scan(tmp_path / "images", control_images=str(tmp_path / "seen"))
    assert [image.name for image in dataset.images] == ["a.png", "b.png"]
    assert list_reasons(dataset) == {"c.png": "it is the same file as a.png"}


def test_joined_datasets_keep_their_control_images(tmp_path):
    write(tmp_path / "images", "a.png")
    write(tmp_path / "others", "a.png")
    controls = write_controls(tmp_path / "seen", "a.png")
    joined = join_datasets([scan(tmp_path / "images", control_images=str(controls)), scan(tmp_path / "others")])
    assert list_controls(joined) == {"images/a.png": ["a.png"], "others/a.png": []}
    assert "images: 1 image, 1 with control images" in joined.report.text()


def test_another_control_image_makes_another_run(tmp_path):
    write(tmp_path / "images", "a.png")
    controls = write_controls(tmp_path / "seen", "a.png")

    def identify(**settings):
        dataset = scan(tmp_path / "images", **settings)
        return identify_plan(plan_training(dataset, RunSettings(TrainingConfig(), BucketConfig(resolution=64))))

    without, before = identify(), identify(control_images=str(controls))
    assert identify(control_images=str(controls)) == before != without
    write_photo(controls / "a.png", colour=(200, 200, 200), caption=None)
    assert identify(control_images=str(controls)) != before


def make_item(
    tmp_path: Path, control_size_wh: tuple[int, int], *, flip: bool = False
) -> tuple[TrainingItem, Image.Image]:
    """The image loses its right and left sixth. Return the item and the pixels of its control
    image.
    """
    write(tmp_path / "images", "a.png", size_wh=(96, 64))
    (tmp_path / "seen").mkdir()
    width, height = control_size_wh
    ramp = np.tile(np.arange(width, dtype=np.uint8)[None, :, None], (height, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "seen" / "a.png")
    dataset = scan(tmp_path / "images", control_images=str(tmp_path / "seen"))
    (item,) = plan_crops(dataset, BucketConfig(resolution=64, resize_mode="center_crop"), seed=0).items
    (control,) = crop_control_images(item, flip=flip)
    return item, control.read()


def test_a_control_image_of_its_images_shape_is_cropped_alike(tmp_path):
    """At its own size."""
    item, pixels = make_item(tmp_path, (192, 128))
    assert item.crop.target_hw == (64, 64) and item.crop.top_left_yx == (0, 16)
    assert np.array_equal(np.asarray(pixels)[0, :, 0], np.arange(32, 160))
    assert pixels.size == (128, 128)


def test_a_control_image_of_another_shape_stays_whole(tmp_path):
    assert make_item(tmp_path, (100, 120))[1].size == (100, 120)


def test_a_control_image_is_mirrored_with_its_image(tmp_path):
    item, pixels = make_item(tmp_path, (192, 128), flip=True)
    assert np.array_equal(np.asarray(pixels)[0, :, 0], np.arange(32, 160)[::-1])
    plain, mirrored = (crop_control_images(item, flip=flip)[0].describe_pixels() for flip in (False, True))
    assert plain != mirrored


def test_samples_show_whole_control_images(tmp_path):
    item, _ = make_item(tmp_path, (192, 128))
    (control,) = show_whole(item.image.control_images)
    assert control.read().size == (192, 128)


def test_a_changed_control_image_is_noticed(tmp_path):
    item, _ = make_item(tmp_path, (192, 128))
    write_photo(tmp_path / "seen" / "a.png", caption=None)
    with pytest.raises(RuntimeError, match="the file has changed since the folder was scanned"):
        crop_control_images(item, flip=False)[0].read()


def test_a_model_without_control_images_refuses_them(tmp_path):
    item, _ = make_item(tmp_path, (192, 128))
    with pytest.raises(ValueError, match="1 image with control images, but SDXL does not look at control images"):
        refuse_control_images([item.image], "SDXL")
    refuse_control_images([replace(item.image, control_images=())], "SDXL")
