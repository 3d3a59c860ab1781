"""Runs the flight check in the graph, with settings resolved as in Train LoRA and with this
machine's GPU, and shows its image on the node.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui
from diffusers import UNet2DConditionModel
from PIL import Image

from ...trainers.check.config import FlightCheckConfig
from ...trainers.check.cost import Surroundings
from ...trainers.check.drawing.report_image import draw_flight_check
from ...trainers.check.family_check import ConfigT, FamilyCheck
from ...trainers.check.flight_check import check_flight
from ...trainers.check.report import FlightReport
from ...trainers.config import select_settings
from ...trainers.dataset.dataset import Dataset
from ...trainers.flow.check.family_check import FlowCheck, FlowEstimate
from ...trainers.flow.config import FlowConfig
from ...trainers.flow.start import read_start
from ...trainers.flow.targets import find_targets
from ...trainers.sdxl.check.family_check import SDXLCheck
from ...trainers.sdxl.config import SDXLConfig
from ...trainers.training.plan import TrainingPlan
from ...trainers.training.run_settings import RunSettings
from ..open_settings import AUTO, list_choices
from . import folders
from .flow_checks import check_clip, check_parts, count_tokens
from .flow_memory import GraphMemory
from .flow_model import find_precision
from .flow_training import choose_family, list_notices
from .graph_training import find_network_weights
from .progress import ComfyHost, cancellable
from .settings import resolve_flow_settings, resolve_settings
from .weights import check_sdxl, get_unet_dtype, imagine_unet, is_sdxl, name_model

_TARGETS_OF_SDXL = (
    "attention",
    "attention_mlp",
    "b-lora",
    "b-lora-content",
    "b-lora-style",
)  # other families take auto


@dataclass(frozen=True)
class CheckedInGraph:
    """The outputs of the node. image: IMAGE [1, height, width, 3] in 0..1."""

    text: str
    image: torch.Tensor
    facts: dict[str, Any]

    def preview(self, node: type[io.ComfyNode]) -> dict[str, Any]:
        return {"images": ui.PreviewImage(self.image, cls=node).as_dict()["images"]}


@dataclass(frozen=True)
class CheckRequest:
    """What the node asks for. `settings` are its widgets' values; without a MODEL it is SDXL."""

    dataset: Dataset
    goal: str
    memory: str
    settings: dict[str, Any]
    model: Any = None
    clip: Any = None


def check_in_graph(request: CheckRequest) -> CheckedInGraph:
    """Check the dataset for its training on the MODEL, and show the report on the node.

    Raises:
        ValueError: the check refuses; the message is its report.
        InterruptProcessingException: the user cancelled.
    """
    host = ComfyHost()
    with cancellable():
        if request.model is None or is_sdxl(request.model):
            report, used = _check_sdxl(request, host)
        else:
            report, used = _check_flow(request, host)
    image = draw_flight_check(report)
    if report.is_refused:
        _show(image)
    host.send_text(report.text())
    report.require_clear()
    presets = list_choices(request.settings, used.to_dict(), goal=request.goal, memory=request.memory)
    facts = {**report.to_dict(), "presets": presets}
    return CheckedInGraph(report.text(), torch.from_numpy(np.array(image)).float().div(255)[None], facts)


def _check_sdxl(request: CheckRequest, host: ComfyHost) -> tuple[FlightReport, RunSettings[SDXLConfig]]:
    dtype = {} if request.model is None else {"weight_dtype": get_unet_dtype(request.model)}
    settings = resolve_settings(
        {**request.settings, **find_network_weights(request.settings)},
        goal=request.goal,
        memory=request.memory,
        dataset=request.dataset,
        **dtype,
    )
    of_family = SDXLCheck(
        settings.training.mixed_precision,
        _get_device_bytes(),
        check_model=partial(check_sdxl, request.model, request.clip),
        unet=_imagine_unet(request.model),
    )
    return _check(request, host, settings, of_family), settings


def _imagine_unet(model: Any) -> UNet2DConditionModel | None:
    """None without a MODEL, or with one that check_sdxl refuses."""
    try:
        return imagine_unet(model) if model is not None else None
    except ValueError:
        return None


def _check_flow(request: CheckRequest, host: ComfyHost) -> tuple[FlightReport, RunSettings[FlowConfig]]:
    model, family = request.model, choose_family(request.model)
    targets = request.settings.get("target_modules", AUTO)
    given = {
        **request.settings,
        **find_network_weights(request.settings),
        "target_modules": AUTO if targets in _TARGETS_OF_SDXL else targets,
    }
    memory = GraphMemory(model, family, clip=request.clip)

    def check_layers(config: FlowConfig) -> None:
        check_parts(model, request.clip)
        read_start(config, memory.network, find_targets(memory.network, family, config.target_modules))

    def check_model(config: FlowConfig) -> None:
        check_layers(config)
        if request.clip is not None:
            check_clip(request.clip, memory.network, family.name)

    settings = resolve_flow_settings(given, family, goal=request.goal, memory=request.memory, dataset=request.dataset)
    try:
        check_layers(settings.training)
        settings, need = memory.fit_resolution(settings, given, request.memory)
    except ValueError:  # it is a finding of the check
        need = ""

    def estimate(plan: TrainingPlan[FlowConfig], num_tokens: int) -> FlowEstimate:
        return memory.imagine(plan.settings.training, plan.crops.largest_hw, num_tokens)

    of_family = FlowCheck(
        family,
        name=name_model(model),
        precision=find_precision(model),
        latents=memory.describe_latents(),
        estimate_memory=estimate,
        count_tokens=None if request.clip is None else partial(count_tokens, request.clip),
        check_model=check_model,
        notices=tuple(filter(None, [*list_notices(model, family, request.dataset), need])),
    )
    return _check(request, host, settings, of_family), settings


def _check(
    request: CheckRequest, host: ComfyHost, settings: RunSettings[ConfigT], family: FamilyCheck[ConfigT]
) -> FlightReport:
    return check_flight(
        request.dataset,
        settings,
        family,
        FlightCheckConfig(**select_settings(FlightCheckConfig, request.settings)),
        Surroundings(_get_device_bytes(), folders.get_work_folder(), str(comfy.model_management.get_torch_device())),
        check_interrupted=host.check_interrupted,
        on_progress=host.make_counter("looking at images"),
    )


def _get_device_bytes() -> int | None:
    device = comfy.model_management.get_torch_device()
    return None if comfy.model_management.is_device_cpu(device) else comfy.model_management.get_total_memory(device)


def _show(image: Image.Image) -> None:
    """Show the image as a preview now: a node that fails shows no image output."""
    comfy.utils.ProgressBar(1).update_absolute(1, 1, ("PNG", image, image.width))
