"""One SDXL training in the graph: resolves the settings, borrows the weights and compares the
memory that it needs with what is free.
"""

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ...trainers.check.memory_estimate import MemoryEstimate
from ...trainers.check.smaller_settings import smaller_settings
from ...trainers.dataset.bucket_sizes import Size
from ...trainers.files.tensor_cache import TensorCache
from ...trainers.sdxl.config import SDXLConfig
from ...trainers.sdxl.family import SDXLFamily
from ...trainers.sdxl.memory import estimate_memory
from ...trainers.sdxl.model.sdxl_model import SDXLModel, header_states_v_prediction
from ...trainers.sdxl.slider.config import SliderConfig
from ...trainers.sdxl.slider.family import SliderFamily
from ...trainers.sdxl.slider.plan import plan_slider
from ...trainers.sdxl.streaming import describe_blocks_to_swap, resolve_blocks_to_swap
from ...trainers.sdxl.text_encoder_shapes import text_encoder_shapes
from ...trainers.training.events import RunDescribed
from ...trainers.training.host import Host
from ...trainers.training.loop import train_lora
from ...trainers.training.plan import TrainingPlan
from ...trainers.training.presets import describe
from ...trainers.training.quantized_linear import describe_quantized
from ...trainers.training.run_folder import RunFolder
from ...trainers.training.run_settings import RunSettings
from ...trainers.training.trained_lora import TrainedLora
from . import folders
from .graph_training import (
    TrainedInGraph,
    TrainingRequest,
    describe_ignored_patches,
    find_network_weights,
    run_in_graph,
)
from .memory_budget import MemoryBudget, can_step_here
from .progress import ComfyHost
from .sdxl_samples import SDXLDrawer
from .settings import choose_precision, resolve_settings, resolve_slider_settings
from .training_samples import check_sampler
from .weights import GraphModel, borrow_model, find_checkpoint, get_unet_dtype, is_sdxl, predicts_v


def train_sdxl(request: TrainingRequest, *, remarks: list[str] | None = None) -> TrainedInGraph:
    """Train on the graph's weights, go on with a run that was stopped, or load a finished one.
    `remarks` are shown with the settings.

    Raises:
        ValueError: a setting, the dataset or a model cannot be used; nothing was written.
        InterruptProcessingException: the user cancelled or paused; the same prompt goes on.
        RunInUse: another process trains the same.
        RuntimeError: memory ran out (the message names the next setting to try), or the training
            went wrong.
    """
    base = request.base
    settings = resolve_settings(
        {**request.settings, **find_network_weights(request.settings)},
        goal=request.goal,
        memory=request.memory,
        dataset=request.require_dataset(),
        weight_dtype=get_unet_dtype(base.model),
    )
    check_sampler(settings.training)
    text = _describe(settings, base.model, remarks or [])

    def train(plan: TrainingPlan[SDXLConfig], host: ComfyHost, run_folder: RunFolder) -> TrainedLora:
        return _train(base, plan, run_folder, host, text, request.resume)

    return run_in_graph(request, settings, text, train)


def train_slider(request: TrainingRequest) -> TrainedInGraph:
    """Train a slider as train_sdxl trains a LoRA, with the same errors."""
    base = request.base
    if not is_sdxl(base.model):
        raise ValueError(
            "MODEL is not SDXL, and sliders are trained on SDXL only. Load an SDXL checkpoint; for other models there "
            "is Train LoRA, with images"
        )
    settings = resolve_slider_settings(
        {**request.settings, **find_network_weights(request.settings)},
        memory=request.memory,
        weight_dtype=get_unet_dtype(base.model),
    )
    check_sampler(settings.training)
    text = _describe(settings, base.model, [])

    def train(plan: TrainingPlan[SliderConfig], host: ComfyHost, run_folder: RunFolder) -> TrainedLora:
        return _train(base, plan, run_folder, host, text, request.resume, family=SliderFamily)

    return run_in_graph(request, settings, text, train, make_plan=plan_slider)


def _describe(settings: RunSettings, model: Any, remarks: list[str]) -> str:
    lines = [describe(settings), describe_ignored_patches(model), _describe_prediction(model), *remarks]
    return "\n".join(line for line in lines if line)


def _describe_prediction(model: Any) -> str:
    """The graph decides what is trained; a header that says something else is worth a line."""
    path = find_checkpoint(model)
    if path is None or path.suffix != ".safetensors" or not path.is_file() or predicts_v(model):
        return ""
    if not header_states_v_prediction(path):
        return ""
    return (
        f"The header of {path.name} says that it predicts v, but the graph samples it by epsilon, and so it is "
        "trained. If the header is right, put ModelSamplingDiscrete with v_prediction behind the loader."
    )


def _train(
    base: GraphModel,
    plan: TrainingPlan,
    run_folder: RunFolder,
    host: ComfyHost,
    settings_text: str,
    resume: str,
    *,
    family: type[SDXLFamily] = SDXLFamily,
) -> TrainedLora:
    """Borrow the weights, report the memory budget, and train. If memory runs out, the error names
    settings that need less.
    """
    loader = _BudgetedLoader(base, plan, settings_text)
    try:
        cache = TensorCache(folders.get_cache_folder())
        made = family(loader.load, drawer=SDXLDrawer(base))
        return train_lora(made, plan, host, run_folder=run_folder, cache=cache, resume=resume)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if loader.budget is None or not comfy.model_management.is_oom(error):
            raise
    # Raised outside of the except block: the first error's traceback would keep the training's
    # tensors alive.
    raise RuntimeError(loader.budget.remedy())


@dataclass
class _BudgetedLoader:
    """Borrows the graph's weights when the training asks for them, and computes and reports the
    memory budget.
    """

    base: GraphModel
    plan: TrainingPlan[SDXLConfig]
    settings_text: str
    budget: MemoryBudget | None = None

    def load(self, host: Host) -> SDXLModel:
        weights = borrow_model(self.base)
        self.budget = _compare_memory(weights, self.plan)
        message = f"{self.settings_text}\n{self.budget.text()}"
        host.report(RunDescribed(message, self.budget.free_bytes))
        return weights


def _compare_memory(base: SDXLModel, plan: TrainingPlan[SDXLConfig]) -> MemoryBudget:
    config, size_hw = plan.settings.training, plan.crops.largest_hw

    def estimate(changed: SDXLConfig, largest_hw: Size) -> MemoryEstimate:
        precision = choose_precision(torch.float16) if changed.mixed_precision == "auto" else changed.mixed_precision
        return estimate_memory(
            base.unet, changed, size_hw=largest_hw, precision=precision, text_encoders=text_encoder_shapes(base)
        )

    free_bytes = comfy.model_management.get_free_memory()
    device = comfy.model_management.get_torch_device()
    config = resolve_blocks_to_swap(
        config,
        base.unet,
        lambda changed: estimate(changed, size_hw),
        free_bytes=None if comfy.model_management.is_device_cpu(device) else free_bytes,
    )
    needed = estimate(config, size_hw)
    # now, as the training changes the borrowed model, and is to leave nothing of it
    smaller = smaller_settings(config, size_hw, estimate, works=can_step_here)
    notes = (*describe_quantized(base.unet), *describe_blocks_to_swap(config, base.unet))
    return MemoryBudget.of(needed, lambda: smaller, free_bytes=free_bytes, notes=notes)
