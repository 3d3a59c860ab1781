"""A flow training whose model sees control images: what is encoded, and what the training learns
from it. On the toy model.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.flow.test_training import ListeningHost, assert_equal, train
from tests.unit.flow.toy_base import ToyBase
from trainers.dataset.config import DatasetConfig
from trainers.dataset.control_crop import show_whole
from trainers.dataset.dataset import Dataset
from trainers.dataset.join import join_datasets
from trainers.dataset.scan import scan_folder
from trainers.files.tensor_cache import TensorCache
from trainers.flow.encode import ConditionStore
from trainers.flow.families import ControlImages, FlowFamilyRow, find_family
from trainers.flow.prompt import Prompt
from trainers.training.events import Interrupted
from trainers.training.run_folder import RunFolder

CAPTION = "zwx paint it"
EDITS = FlowFamilyRow("Toy", resolution_step=16, control_images=ControlImages("toy", limit=2))


def make_base(family: FlowFamilyRow = EDITS) -> ToyBase:
    return ToyBase(family=family)


def paint(path: Path, left: tuple[int, int, int], right: tuple[int, int, int], size: int = 64) -> None:
    """An image of two halves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[:, : size // 2], pixels[:, size // 2 :] = left, right
    Image.fromarray(pixels).save(path)


RED, BLUE, GREY = (250, 10, 10), (10, 10, 250), (120, 120, 120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of one caption: only the control images tell them apart."""
    paint(tmp_path / "images" / "0.png", RED, RED)
    paint(tmp_path / "images" / "1.png", BLUE, BLUE)
    paint(tmp_path / "control" / "0.png", RED, GREY, 32)
    paint(tmp_path / "control" / "1.png", BLUE, GREY, 32)
    for number in (0, 1):
        (tmp_path / "images" / f"{number}.txt").write_text(CAPTION)
    return tmp_path


def scan(folder: Path, *, has_controls: bool = True, images: str = "images", **settings) -> Dataset:
    controls = str(folder / "control") if has_controls else ""
    return scan_folder(DatasetConfig(images=str(folder / images), trigger_word="", control_images=controls, **settings))


def test_every_caption_is_encoded_with_the_control_images_of_its_image(folder):
    """The empty caption too: caption dropout keeps them."""
    base = make_base()
    train(scan(folder), folder / "run", base=base, max_train_steps=1, caption_dropout=0.5)
    with_controls = Counter((caption, len(sizes)) for caption, sizes in base.encoded)
    assert with_controls == {(CAPTION, 1): 2, ("", 1): 2, ("", 0): 1}  # the last: does the text encoder fit?
    assert {tuple(size) for _, sizes in base.encoded for size in sizes} == {(32, 32)}


def test_a_mirrored_image_comes_with_mirrored_control_images(folder):
    base = make_base()
    train(scan(folder), folder / "run", base=base, max_train_steps=1, flip=True)
    assert Counter(caption for caption, sizes in base.encoded if sizes) == {CAPTION: 4, "": 4}


def test_mirroring_image_and_control_image_is_the_same_as_mirrored_files(folder):
    """A step that flips sees what a folder of mirrored files shows."""
    flipped = folder / "flipped"
    for path in folder.glob("*/*.png"):
        (flipped / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped / path.parent.name / path.name)
        if path.parent.name == "images":
            (flipped / "images" / f"{path.stem}.txt").write_text(CAPTION)
    with_flips = train(scan(folder), folder / "1", base=make_base(), flip=True, max_train_steps=12)
    unflipped, mirrored = (train(scan(place), place / "2", base=make_base()).losses[0] for place in (folder, flipped))
    assert unflipped != mirrored
    assert with_flips.losses[0] in (unflipped, mirrored)


def test_only_the_control_images_tell_what_to_draw(folder):
    """The same caption: with control images the loss of both comes down; without them it stays
    where their mean is.
    """
    settings = {"max_train_steps": 400, "learning_rate": 2e-2, "rank": 4, "train_batch_size": 2}
    with_controls = train(scan(folder), folder / "1", base=make_base(), **settings)
    without = train(scan(folder, has_controls=False), folder / "2", base=make_base(), **settings)
    seen, blind = (float(np.mean(result.losses[-50:])) for result in (with_controls, without))
    assert seen < 0.6 * blind and seen < 0.5 * with_controls.losses[0]


def test_a_stopped_run_goes_on_bit_for_bit(folder):
    settings = {"flip": True, "caption_dropout": 0.3, "prior_loss_weight": 0.5, "class_prompt": "a thing"}
    whole = train(scan(folder), folder / "whole", base=make_base(), **settings)
    with pytest.raises(Interrupted):
        train(
            scan(folder),
            folder / "parts",
            ListeningHost(cancel_after=3),
            base=make_base(),
            resume="auto",
            **settings,
        )
    assert_equal(train(scan(folder), folder / "parts", base=make_base(), resume="auto", **settings), whole)


def test_another_control_image_makes_another_run(folder):
    first = train(scan(folder), folder / "run", base=make_base(), resume="auto")
    assert train(scan(folder), folder / "run", base=make_base(), resume="auto").was_loaded
    paint(folder / "control" / "0.png", GREY, BLUE, 32)
    RunFolder(folder / "run", "toy").final_path.unlink()
    second = train(scan(folder), folder / "run", base=make_base(), resume="auto")
    assert not second.was_loaded and second.losses != first.losses


def test_conditions_are_cached_by_the_content_of_their_control_images(folder):
    """Each fact makes another entry; a caption without control images keeps its own."""
    cache = TensorCache(folder / "cache")
    image, other = scan(folder).images
    (whole,) = show_whole(image.control_images)
    prompts = [
        Prompt(CAPTION),
        Prompt(CAPTION, (whole,)),
        Prompt(CAPTION, (whole, whole)),
        Prompt(CAPTION, (replace(whole, flip=True),)),
        Prompt(CAPTION, (replace(whole, box=(0, 0, 16, 32)),)),
        Prompt(CAPTION, show_whole(other.control_images)),
        Prompt("", (whole,)),
    ]
    facts = {"vae": "3", "way": "toy"}
    with ListeningHost() as host:
        base = make_base()
        ConditionStore(cache, text_hash="2", control_facts=facts).encode(prompts, base, host)
        assert len(base.encoded) == len(prompts)
        ConditionStore(cache, text_hash="2", control_facts=facts).encode(prompts, base, host)
        assert len(base.encoded) == len(prompts)
        ConditionStore(cache, text_hash="2", control_facts={**facts, "vae": "4"}).encode(prompts, base, host)
        assert len(base.encoded) == 2 * len(prompts) - 1


def test_regularization_images_may_have_none(folder):
    paint(folder / "reg" / "0.png", GREY, BLUE)
    (folder / "reg" / "0.txt").write_text("a thing")
    regularization = scan(folder, has_controls=False, images="reg", is_regularization=True)
    base = make_base()
    train(join_datasets([scan(folder), regularization]), folder / "run", base=base, train_batch_size=2)
    assert ("a thing", []) in base.encoded and {len(sizes) for _, sizes in base.encoded} == {0, 1}


def test_samples_see_the_first_control_images_or_those_that_are_named(folder):
    paint(folder / "control" / "1.png", BLUE, GREY, 48)
    settings = {"sample_every_n_steps": 3, "sample_steps": 1, "sample_prompt": "plain | named --ci 1.png --n bad"}
    base = make_base()
    with_samples = train(scan(folder), folder / "1", base=base, **settings)
    assert_equal(with_samples, train(scan(folder), folder / "2", base=make_base()))
    seen = {caption: [tuple(size) for size in sizes] for caption, sizes in base.encoded}
    assert seen["plain"] == [(32, 32)] and seen["named"] == seen["bad"] == [(48, 48)]


def test_an_unknown_name_of_a_sample_is_an_error(folder):
    message = r"--ci must be the name of an image of the dataset with control images \(0\.png, 1\.png\), got 'x'"
    with pytest.raises(ValueError, match=message):
        train(scan(folder), folder / "1", base=make_base(), sample_every_n_steps=3, sample_prompt="a --ci x")


def test_a_model_that_looks_at_none_refuses_them(folder):
    message = "2 images with control images, but Toy does not look at control images. Choose Qwen-Image-Edit"
    with pytest.raises(ValueError, match=message):
        train(scan(folder), folder / "run", base=ToyBase())


def test_more_than_the_model_takes_are_refused(folder):
    for number in range(2):
        paint(folder / "control" / f"0_{number}.png", RED, BLUE, 32)
    with pytest.raises(ValueError, match=r"0\.png has 3 control images, but this Toy takes 2 per image"):
        train(scan(folder), folder / "run", base=make_base())


@pytest.mark.parametrize(
    ("config", "file_name", "way", "is_edit_model"),
    [
        ("QwenImage", "qwen_image_edit_fp8_e4m3fn", "qwen_image_edit", True),
        ("QwenImage", "qwen_image_edit_2509_bf16", "qwen_image_edit_plus", True),
        ("QwenImage", "Qwen-Image-Edit-2511", "qwen_image_edit_plus", True),
        ("QwenImage", "qwen_image_bf16", "qwen_image_edit_plus", False),
        ("Flux", "flux1-dev-kontext_fp8_scaled", "flux_kontext", True),
        ("Flux", "flux1-dev", "flux_kontext", False),
        ("Flux2", "flux-2-klein-base-4b", "flux_2", True),
    ],
)
def test_the_file_name_tells_how_a_model_looks_at_control_images(config, file_name, way, is_edit_model):
    family = find_family(config)
    assert family is not None
    row = family.for_file(file_name)
    assert row.control_images is not None and row.control_images.way == way
    assert row.is_edit_model(file_name) == is_edit_model


@pytest.mark.parametrize("config", ["ZImage", "Chroma", "SD3", "Lumina2"])
def test_other_families_look_at_none(config):
    family = find_family(config)
    assert family is not None and family.control_images is None and not family.is_edit_model("edit")


def test_captions_without_control_images_keep_their_place_in_the_cache(folder):
    """Caches of earlier versions are still good."""
    keys = {
        store._make_key(Prompt(CAPTION))
        for store in (
            ConditionStore(TensorCache(None), text_hash="2", control_facts={}),
            ConditionStore(TensorCache(None), text_hash="2", control_facts={"vae": "3", "way": "toy"}),
        )
    }
    assert len(keys) == 1
