"""Draws the images of a comparison with an SDXL model in memory. One LoRA at a time is merged into
its weights, and taken out again.
"""

from collections.abc import Mapping

import torch
from PIL import Image
from torch import nn

from ..compare.config import CompareConfig
from ..compare.grid import CompareGrid
from ..compare.plan import Column, ComparePlan
from ..lora.modules import AdapterModule, ModuleKey, ModuleNames, list_weighted_modules
from ..lora.read import read_lora
from ..training.device import COMPUTE_DTYPES, move_module, usual_precision
from ..training.events import StageProgress, StageStarted
from ..training.host import Host
from .merge import find_layers, merged_lora
from .model.float32_compute import float32_compute
from .model.sampling import decode_latents, denoise, make_noise_scheduler
from .model.sdxl_model import SDXLModel
from .model.text import TextEmbeddings, encode_captions
from .names import TEXT_ENCODER, TEXT_ENCODER_2, UNET, kohya_names
from .samples import decode_in_tiles

_CPU = torch.device("cpu")


@torch.no_grad()
def draw_comparison(model: SDXLModel, plan: ComparePlan, config: CompareConfig, host: Host) -> Image.Image:
    """Draw column by column. The model is converted to the device's usual precision for good.

    Raises:
        ValueError: a LoRA cannot be read or is for another model; nothing was drawn.
        Interrupted: the host cancelled.
    """
    drawer = _Drawer(model, plan, config, host)
    drawer.require_fitting_loras()
    grid = CompareGrid(plan)
    host.report(StageStarted("drawing", plan.num_sampler_steps))
    for index, column in enumerate(plan.columns):
        for number, image in enumerate(drawer.draw_column(index, column)):
            grid.put(index, number, image)
    return grid.image


class _Drawer:
    """Keeps the UNet on the device; text encoders and VAE come only while they are needed."""

    def __init__(self, model: SDXLModel, plan: ComparePlan, config: CompareConfig, host: Host) -> None:
        assert model.text_encoder is not None and model.text_encoder_2 is not None and model.vae is not None
        self._model, self._plan, self._config, self._host = model, plan, config, host
        self._encoders = (model.text_encoder, model.text_encoder_2)
        self._vae = model.vae
        self._parts: dict[str, nn.Module] = {
            UNET: model.unet,
            TEXT_ENCODER: model.text_encoder,
            TEXT_ENCODER_2: model.text_encoder_2,
        }
        self._names: ModuleNames = kohya_names(*map(list_weighted_modules, self._parts.values()))
        move_module(model.unet, host.device, COMPUTE_DTYPES[usual_precision(host.device)])
        move_module(model.vae, _CPU, torch.float32)  # SDXL's VAE overflows in fp16
        decode_in_tiles(model.vae)

    def require_fitting_loras(self) -> None:
        for number, checkpoint in enumerate(self._plan.checkpoints, start=1):
            self._host.check_interrupted()
            try:
                find_layers(self._read(number), self._parts)
            except ValueError as error:
                text = str(error)
                raise ValueError(text if checkpoint.source in text else f"{checkpoint.source}: {text}") from error

    def draw_column(self, index: int, column: Column) -> list[Image.Image]:
        modules = self._read(column.number) if column.number else {}
        with merged_lora(modules, self._parts, strength=column.strength):
            embeddings = self._encode(column)
            first = index * len(self._plan.rows)
            latents = [
                self._denoise(first + number, column, embeddings[row.prompt], row.seed)
                for number, row in enumerate(self._plan.rows)
            ]
        return self._decode(latents)

    def _read(self, number: int) -> Mapping[ModuleKey, AdapterModule]:
        path = self._plan.checkpoints[number - 1].path
        assert path is not None
        return read_lora(path, self._names, pass_over=lambda _: None)

    def _encode(self, column: Column) -> dict[str, TextEmbeddings]:
        """The negative prompt's and the prompt's embeddings for each prompt."""
        encoder, encoder_2 = self._encoders
        for part in self._encoders:
            move_module(part, self._host.device)
        with float32_compute(encoder), float32_compute(encoder_2):
            encoded = {
                prompt: encode_captions(
                    encoder, encoder_2, [self._config.negative_prompt, self._plan.write_prompt(column, prompt)]
                )
                for prompt in dict.fromkeys(row.prompt for row in self._plan.rows)
            }
        for part in self._encoders:
            move_module(part, _CPU)
        self._host.release_memory()
        return encoded

    def _denoise(self, image: int, column: Column, embeddings: TextEmbeddings, seed: int) -> torch.Tensor:
        """Draw the latents [1, 4, H, W] of the image with that index."""
        total, done = self._plan.num_sampler_steps, image * self._config.steps

        def on_step() -> None:
            nonlocal done
            done += 1
            self._host.check_interrupted()
            detail = f"image {image + 1}/{self._plan.num_images}, {self._plan.describe_column(column)}"
            self._host.report(StageProgress("drawing", done, total, detail))

        model = self._model
        return denoise(
            model.unet,
            embeddings,
            make_noise_scheduler(model.prediction_type, zero_terminal_snr=model.zero_terminal_snr),
            seeds=[seed],
            size_hw=self._config.size_hw,
            num_steps=self._config.steps,
            guidance_scale=self._config.guidance_scale,
            on_step=on_step,
        )

    def _decode(self, latents: list[torch.Tensor]) -> list[Image.Image]:
        move_module(self._vae, self._host.device)
        images = []
        for latent in latents:
            self._host.check_interrupted()
            images.append(Image.fromarray(decode_latents(self._vae, latent)[0]))
        move_module(self._vae, _CPU)
        self._host.release_memory()
        return images
