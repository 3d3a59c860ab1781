"""Resolves the settings of a training from its presets and this machine, in the same way for the
training and for its flight check.
"""

from typing import Any

import comfy.model_management
import torch

from ...trainers.dataset.dataset import Dataset
from ...trainers.flow.config import FlowConfig
from ...trainers.flow.families import FlowFamilyRow
from ...trainers.flow.presets import resolve_flow
from ...trainers.sdxl.config import SDXLConfig
from ...trainers.sdxl.slider.config import SliderConfig
from ...trainers.training.device import require_supported, usual_precision
from ...trainers.training.optimizer_table import require_listed_optimizer
from ...trainers.training.optimizers import can_step
from ...trainers.training.plan import make_step_counter
from ...trainers.training.presets import choose_memory_preset, get_device_bytes, resolve
from ...trainers.training.run_settings import RunSettings
from ..open_settings import AUTO, drop_open_settings


def resolve_settings(
    settings: dict[str, Any], *, goal: str, memory: str, dataset: Dataset, weight_dtype: torch.dtype = torch.float16
) -> RunSettings[SDXLConfig]:
    """Resolve all settings from the widgets' values. `weight_dtype` is that of the model; the
    default is that of most checkpoints.

    Raises:
        ValueError: a setting is out of its range.
    """
    given = _complete(settings, weight_dtype)
    return resolve(SDXLConfig, given, goal=goal, memory=_choose_memory(memory), **_count_samples(dataset))


def resolve_slider_settings(
    settings: dict[str, Any], *, memory: str, weight_dtype: torch.dtype
) -> RunSettings[SliderConfig]:
    """Resolve all settings of a slider from the widgets' values. It has no goal and no images.

    Raises:
        ValueError: a setting is out of its range.
    """
    given = _complete(settings, weight_dtype)
    return resolve(SliderConfig, given, goal=None, memory=_choose_memory(memory), num_images=0)


def _complete(settings: dict[str, Any], weight_dtype: torch.dtype) -> dict[str, Any]:
    """Drop what was left open, except what this machine decides."""
    given = drop_open_settings(settings)
    if given.get("mixed_precision", AUTO) == AUTO:
        given["mixed_precision"] = choose_precision(weight_dtype)
    return given | _choose_optimizer(given)


def resolve_flow_settings(
    settings: dict[str, Any],
    family: FlowFamilyRow,
    *,
    goal: str,
    memory: str,
    dataset: Dataset,
    num_processes: int = 1,
) -> RunSettings[FlowConfig]:
    """Resolve all settings of a training on any other model from the widgets' values.

    Raises:
        ValueError: a setting is out of its range, or does not suit the model.
    """
    given = drop_open_settings(settings)
    if given.get("mixed_precision", AUTO) != AUTO:
        raise ValueError(
            f"mixed_precision is {given['mixed_precision']}, but this model computes in the data type that the graph "
            "has loaded it in. Set it to auto; the loader's weight_dtype decides"
        )
    given |= _choose_optimizer(given)
    return resolve_flow(
        given, family, goal=goal, memory=_choose_memory(memory), **_count_samples(dataset, num_processes)
    )


def _count_samples(dataset: Dataset, num_processes: int = 1) -> dict[str, Any]:
    return {
        "num_images": dataset.num_training_samples,
        "count_steps": make_step_counter(dataset, num_processes=num_processes),
    }


def _choose_optimizer(given: dict[str, Any]) -> dict[str, Any]:
    """Where AdamW8bit does not work, AdamW takes the place of an open optimizer."""
    device = comfy.model_management.get_torch_device()
    require_supported(device)
    require_listed_optimizer(given.get("optimizer", "AdamW"))
    return {} if "optimizer" in given or can_step("AdamW8bit", device) else {"optimizer": "AdamW"}


def _choose_memory(memory: str) -> str:
    return choose_memory_preset(comfy.model_management.get_total_memory()) if memory == AUTO else memory


def find_device_bytes(memory: str) -> int | None:
    """Return the memory that `memory` is for; None: a CPU's, where nothing needs to fit."""
    if memory != AUTO:
        return get_device_bytes(memory)
    device = comfy.model_management.get_torch_device()
    return None if comfy.model_management.is_device_cpu(device) else comfy.model_management.get_total_memory(device)


def choose_precision(weight_dtype: torch.dtype) -> str:
    """Choose the value for mixed_precision "auto", by the command line's rule for ComfyUI's device.
    On a CPU it is the weights' own dtype, so that they need no copy.

    Raises:
        ValueError: the device is DirectML's.
    """
    device = comfy.model_management.get_torch_device()
    require_supported(device)
    if comfy.model_management.is_device_cpu(device):
        return "bf16" if weight_dtype == torch.bfloat16 else "no"
    return usual_precision(device)
