"""A second model family, as small as possible: velocity matching with one linear layer.

It shows what a family must implement, and that the loop, its files and its settings do not depend
on SDXL.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from trainers.dataset.crop_pixels import read_crop
from trainers.dataset.crop_plan import TrainingItem
from trainers.files.tensor_cache import TensorCache
from trainers.lora.modules import ModuleNames
from trainers.training.adapter_shapes import AdapterSettings
from trainers.training.adapters import AdaptedComponent, AdaptedModel, attach_adapters
from trainers.training.distributed import World
from trainers.training.evaluation import evaluating
from trainers.training.family import Progress
from trainers.training.generators import generator_for
from trainers.training.host import Host
from trainers.training.metadata import lora_metadata
from trainers.training.optimizers import ParameterGroup
from trainers.training.plan import TrainingPlan
from trainers.training.validation_plan import ValidationDraw

WIDTH = 12


class ToyFamily:
    """A transformer of one layer. Its latents are the mean colours of an image."""

    def identify(self, plan: TrainingPlan, host: Host) -> dict[str, str]:
        return {"transformer": "the identity"}

    def prepare(self, plan: TrainingPlan, host: Host, *, cache: TensorCache, world: World) -> "PreparedToy":
        return PreparedToy(plan, host)


class PreparedToy:
    precision = "no"

    def __init__(self, plan: TrainingPlan, host: Host) -> None:
        config = plan.settings.training
        self._plan, self._device = plan, host.device
        self.transformer = nn.Sequential(nn.Linear(WIDTH, WIDTH)).to(host.device)
        with torch.no_grad():
            self.transformer[0].weight.copy_(torch.eye(WIDTH))
            self.transformer[0].bias.zero_()
        parameters = attach_adapters(self.transformer, ["0"], AdapterSettings.of(config), component="transformer")
        component = AdaptedComponent(
            self.transformer, [ParameterGroup("transformer", parameters, config.learning_rate)]
        )
        key = ("transformer", "0")
        names = ModuleNames({key: "diffusion_model_0"}, [("diffusion_model_0", key)], main_component="transformer")
        self.adapted = AdaptedModel({"transformer": component}, names)
        self._latents = {item.index: self._encode(item) for item in plan.all_items}

    def _encode(self, item: TrainingItem) -> Tensor:
        colours = read_crop(item).resize((2, 2)).tobytes()
        return torch.tensor(list(colours), device=self._device).float() / 127.5 - 1

    def loss_terms(self, items: Sequence[TrainingItem], step: int) -> Iterator[Tensor]:
        latents = torch.stack([self._latents[item.index] for item in items])
        draws = [generator_for(self._plan.settings.training.seed, "noise", step, item.index) for item in items]
        noise = torch.stack([torch.randn(WIDTH, generator=draw) for draw in draws]).to(self._device)
        sigmas = torch.stack([torch.rand(1, generator=draw) for draw in draws]).to(self._device)
        velocity = self.transformer((1 - sigmas) * latents + sigmas * noise)
        yield (velocity - (noise - latents)).square().mean(dim=1)

    @torch.no_grad()
    def validation_losses(self, draws: Sequence[ValidationDraw]) -> Tensor:
        latents = torch.stack([self._latents[draw.item.index] for draw in draws])
        seed = self._plan.settings.training.seed
        noise = torch.stack(
            [torch.randn(WIDTH, generator=generator_for(seed, "validation noise", draw.index)) for draw in draws]
        ).to(self._device)
        sigmas = torch.tensor([[draw.noise_level] for draw in draws], device=self._device)
        with evaluating(self.transformer):
            velocity = self.transformer((1 - sigmas) * latents + sigmas * noise)
        return (velocity - (noise - latents)).square().mean(dim=1)

    def enable_gradient_checkpointing(self) -> bool:
        return False

    def stream_more_weights(self) -> int:
        return 0

    def draw_samples(self) -> list[list[Image.Image]]:
        return [[self._draw(seed) for seed in sample.seeds] for sample in self._plan.texts.samples]

    @torch.no_grad()
    def _draw(self, seed: int) -> Image.Image:
        colours = self.transformer(torch.full((1, WIDTH), seed / 10, device=self._device))
        return Image.frombytes("RGB", (2, 2), bytes(((colours[0].clamp(-1, 1) + 1) * 127.5).byte().tolist()))

    def metadata(self, progress: Progress) -> dict[str, str]:
        return lora_metadata(
            self._plan, progress, base_model_version="toy", architecture="toy/lora", implementation="none"
        )

    def facts(self) -> dict[str, Any]:
        return {"base_model": {"name": "toy"}}
