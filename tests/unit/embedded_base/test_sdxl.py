"""The embedded SDXL: its size, its two formats, and whether it follows prompts; the checker."""

import numpy as np
import pytest
import torch

from trainers.embedded_base.sdxl import SHIPPED_WEIGHTS, TOKEN_TABLES, write_embedded_checkpoint
from trainers.embedded_base.shared.scenes import BACKGROUNDS, COLOURS, SHAPES, draw_scene, draw_shape, fits, read_image
from trainers.embedded_base.shared.scoring import SCORE_PROMPTS, score_images
from trainers.embedded_base.shared.token_table import draw_token_table
from trainers.sdxl.model.export import write_diffusers_folder
from trainers.sdxl.model.sampling import sample_images
from trainers.sdxl.model.sdxl_model import load_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "embedded_base.safetensors"
    write_embedded_checkpoint(path)
    return path


def test_the_shipped_weights_stay_under_20_megabytes():
    assert SHIPPED_WEIGHTS.stat().st_size < 20_000_000


def test_the_checker_reads_drawn_images_correctly():
    import random

    rng = random.Random(3)
    drawings = [
        drawing
        for drawing in (draw_scene((128, 128), rng) for _ in range(300))
        if " of " not in drawing.caption and " above " not in drawing.caption
    ]
    assert len(drawings) > 200
    assert np.mean([all(fits(drawing.pixels, drawing.caption)) for drawing in drawings]) > 0.99


def test_the_checker_tells_wrong_images_from_right_ones():
    from PIL import Image

    image = Image.new("RGB", (128, 128), BACKGROUNDS["white"])
    draw_shape(image, "star", centre_yx=(64, 64), radius=40, colour=COLOURS["yellow"])
    pixels = np.asarray(image)
    assert fits(pixels, "a yellow star on a white background") == (True, True, True)
    assert fits(pixels, "a red circle on a black background") == (False, False, False)
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    assert read_image(noise).shape not in SHAPES


def test_token_tables_are_the_same_on_every_machine():
    table = draw_token_table(49408, 64, seed=7, std=0.02)
    assert table[49405, :3].tolist() == pytest.approx(
        [-0.00595855712890625, 0.018951416015625, 0.00548553466796875], abs=1e-9
    )


def test_the_diffusers_folder_equals_the_checkpoint(checkpoint, tmp_path):
    single = load_model(checkpoint)
    write_diffusers_folder(single, tmp_path / "folder")
    folder = load_model(tmp_path / "folder")
    for part in ("unet", "text_encoder", "text_encoder_2", "vae"):
        first, second = getattr(single, part).state_dict(), getattr(folder, part).state_dict()
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    images = [
        sample_images(convert_to_float32(model), ["a red circle"], seeds=[0], size_hw=(64, 64), num_steps=2)
        for model in (single, folder)
    ]
    # the weights are equal, but their alignment in memory changes the last bit of a kernel
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def convert_to_float32(model):
    for part in (model.unet, model.text_encoder, model.text_encoder_2, model.vae):
        torch.nn.Module.float(part)
    return model


def test_the_checkpoint_includes_the_token_tables_that_are_not_shipped(checkpoint):
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as file, safe_open(SHIPPED_WEIGHTS, "pt") as shipped:
        assert set(file.keys()) == set(shipped.keys()) | set(TOKEN_TABLES)


def test_it_draws_the_colour_shape_and_background_it_is_asked_for(checkpoint):
    """The model's README has the score of 12 prompts x 8 seeds. This draws 12 x 1, so bounds are
    lower.
    """
    images = sample_images(convert_to_float32(load_model(checkpoint)), SCORE_PROMPTS, seeds=[0], size_hw=(128, 128))
    shares = score_images(images)
    assert shares["colour"] >= 0.9 and shares["shape"] >= 0.75 and shares["background"] >= 0.75
