"""Runs the flight check in the graph, with settings resolved as in Train LoRA and with this
machine's GPU, and shows its image on the node.
"""

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ...trainers.config import select_settings
from ...trainers.dataset.dataset import Dataset
from ...trainers.sdxl.check.config import FlightCheckConfig
from ...trainers.sdxl.check.cost import Surroundings
from ...trainers.sdxl.check.drawing.report_image import draw_flight_check
from ...trainers.sdxl.check.flight_check import check_flight
from ...trainers.sdxl.check.report import FlightReport
from ...trainers.sdxl.config import SDXLConfig
from ...trainers.training.run_settings import RunSettings
from ..open_settings import list_choices
from . import folders
from .progress import ComfyHost, cancellable
from .settings import resolve_settings


@dataclass(frozen=True)
class CheckedInGraph:
    """The outputs of the node. image: IMAGE [1, height, width, 3] in 0..1."""

    text: str
    image: torch.Tensor
    facts: dict[str, Any]

    def preview(self, node: type[io.ComfyNode]) -> dict[str, Any]:
        return {"images": ui.PreviewImage(self.image, cls=node).as_dict()["images"]}


def check_in_graph(dataset: Dataset, *, goal: str, memory: str, settings: dict[str, Any]) -> CheckedInGraph:
    """Check the dataset and show the report on the node.

    Raises:
        ValueError: the check refuses; the message is its report.
        InterruptProcessingException: the user cancelled.
    """
    host = ComfyHost()
    with cancellable():
        run_settings = resolve_settings(settings, goal=goal, memory=memory, dataset=dataset)
        report = _check(dataset, host, run_settings, FlightCheckConfig(**select_settings(FlightCheckConfig, settings)))
    image = draw_flight_check(report)
    if report.is_refused:
        _show(image)
    host.send_text(report.text())
    report.require_clear()
    presets = list_choices(settings, run_settings.to_dict(), goal=goal, memory=memory)
    facts = {**report.to_dict(), "presets": presets}
    return CheckedInGraph(report.text(), torch.from_numpy(np.array(image)).float().div(255)[None], facts)


def _check(
    dataset: Dataset, host: ComfyHost, run_settings: RunSettings[SDXLConfig], check: FlightCheckConfig
) -> FlightReport:
    surroundings = Surroundings(run_settings.training.mixed_precision, _get_device_bytes(), folders.get_work_folder())
    return check_flight(
        dataset,
        run_settings,
        check,
        surroundings,
        check_interrupted=host.check_interrupted,
        on_progress=host.make_counter("looking at images"),
    )


def _get_device_bytes() -> int | None:
    device = comfy.model_management.get_torch_device()
    return None if comfy.model_management.is_device_cpu(device) else comfy.model_management.get_total_memory(device)


def _show(image: Image.Image) -> None:
    """Show the image as a preview now: a node that fails shows no image output."""
    comfy.utils.ProgressBar(1).update_absolute(1, 1, ("PNG", image, image.width))
