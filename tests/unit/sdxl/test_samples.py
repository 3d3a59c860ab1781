"""Samples of a running training: decoded in tiles, and ended by an interrupt between two steps."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from trainers.demo.concept import IMAGES
from trainers.embedded_base import write_embedded_checkpoint
from trainers.sdxl.encode import encode_means
from trainers.sdxl.model.sampling import count_sampler_steps, decode_latents, sample_images
from trainers.sdxl.model.sdxl_model import SDXLModel, load_model
from trainers.sdxl.model.text import encode_captions
from trainers.sdxl.samples import DDIMDrawer, decode_in_tiles, draw_samples
from trainers.training.device import DeviceMemory
from trainers.training.events import Event, Interrupted
from trainers.training.sample_prompts import SamplePrompt


class ImpatientHost(DeviceMemory):
    """Cancels at the check with this number."""

    def __init__(self, cancel_at_check: int) -> None:
        super().__init__(torch.device("cpu"))
        self.num_checks, self._cancel_at_check = 0, cancel_at_check

    def report(self, event: Event) -> None: ...

    def take_request(self) -> None:
        return None

    def check_interrupted(self) -> None:
        self.num_checks += 1
        if self.num_checks == self._cancel_at_check:
            raise Interrupted


@pytest.fixture
def model(tmp_path: Path) -> SDXLModel:
    write_embedded_checkpoint(tmp_path / "base.safetensors")
    model = load_model(tmp_path / "base.safetensors")
    for part in (model.unet, model.text_encoder, model.text_encoder_2, model.vae):
        torch.nn.Module.float(part)
    return model


NUM_STEPS = 20
PROMPT = SamplePrompt("a red circle", "", (0, 1), (64, 64), NUM_STEPS, 5.0)


def draw(model: SDXLModel, host: ImpatientHost, *prompts: SamplePrompt) -> list[list[Image.Image]]:
    return draw_samples(
        DDIMDrawer(model.vae, model.prediction_type, model.zero_terminal_snr),
        model,
        lambda captions: encode_captions(model.text_encoder, model.text_encoder_2, captions),
        prompts or (PROMPT,),
        usual_size_hw=(96, 64),
        host=host,
        at_strength=lambda _: nullcontext(),
    )


def test_each_prompt_has_its_own_size_steps_seeds_guidance_and_negative_prompt(model: SDXLModel) -> None:
    usual = replace(PROMPT, size_hw=None, num_steps=2, seeds=(0,))
    small = replace(usual, size_hw=(64, 96), seeds=(0, 1, 2))
    plain, sized, guided, negative = draw(
        model,
        ImpatientHost(0),
        usual,
        small,
        replace(usual, guidance_scale=1.0),
        replace(usual, negative_prompt="a blue square"),
    )
    assert [image.size for image in plain] == [(64, 96)] and [image.size for image in sized] == [(96, 64)] * 3
    assert len({image.tobytes() for image in (*plain, *guided, *negative)}) == 3


def test_at_most_two_images_are_denoised_at_once(model: SDXLModel) -> None:
    sizes: list[int] = []
    model.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    draw(model, ImpatientHost(0), replace(PROMPT, num_steps=1, seeds=(0, 1, 2)))
    assert sizes == [4, 2], "with and without the prompt"


@pytest.mark.parametrize("check", [1, 7, NUM_STEPS + 2])
def test_an_interrupt_ends_the_samples_at_the_next_step_or_image(model: SDXLModel, check: int) -> None:
    calls: list[int] = []
    model.unet.register_forward_hook(lambda *_: calls.append(1))
    host = ImpatientHost(check)
    with pytest.raises(Interrupted):
        draw(model, host)
    assert len(calls) == min(check, NUM_STEPS) and host.num_checks == check


def test_a_vae_decodes_at_most_64_latents_at_once(model: SDXLModel) -> None:
    sizes: set[tuple[int, ...]] = set()
    model.vae.decoder.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[2:])))
    decode_in_tiles(model.vae)
    latents = torch.zeros(1, 4, 104, 152)
    assert decode_latents(model.vae, latents).shape == (1, 832, 1216, 3)
    assert max(max(size) for size in sizes) == 64


def test_a_tiled_image_is_close_to_the_whole_one(model: SDXLModel) -> None:
    """The embedded VAE was trained on 128 x 128 pixels: tiles suit it better than whole images."""
    original = _tile_demo_images(rows=5, columns=6)
    latents = _encode(model.vae, original)
    whole = decode_latents(model.vae, latents)[0].astype(float)
    decode_in_tiles(model.vae)
    tiled = decode_latents(model.vae, latents)[0].astype(float)
    assert np.abs(tiled - whole).mean() < 8
    assert np.abs(tiled - original).mean() <= np.abs(whole - original).mean()


def _tile_demo_images(*, rows: int, columns: int) -> np.ndarray:
    images = [np.asarray(Image.open(path).convert("RGB").resize((128, 128))) for path in sorted(IMAGES.glob("*.png"))]
    chosen = [[images[(row * 5 + column) % len(images)] for column in range(columns)] for row in range(rows)]
    return np.concatenate([np.concatenate(row, axis=1) for row in chosen])


@torch.no_grad()
def _encode(vae: AutoencoderKL, image: np.ndarray) -> Tensor:
    pixel_values = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    return encode_means(vae, pixel_values) * vae.config["scaling_factor"]


def test_a_bar_over_the_sampler_steps_ends_full(model: SDXLModel) -> None:
    calls: list[int] = []
    images = sample_images(
        model,
        ["a", "b", "c"],
        seeds=[0],
        size_hw=(32, 32),
        num_steps=2,
        batch_size=2,
        on_step=lambda: calls.append(1),
    )
    assert len(images) == 3 and len(calls) == count_sampler_steps(3, num_steps=2, batch_size=2) == 4
