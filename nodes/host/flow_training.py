"""One training in the graph on a model of any other family than SDXL."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management

from ...trainers.dataset.dataset import Dataset
from ...trainers.files.tensor_cache import TensorCache
from ...trainers.flow.base_model import Conditions
from ...trainers.flow.config import FlowConfig
from ...trainers.flow.families import FlowFamilyRow, find_family
from ...trainers.flow.family import FlowFamily
from ...trainers.training.config import MAX_TIMESTEP
from ...trainers.training.events import Notice, RunDescribed
from ...trainers.training.host import Host
from ...trainers.training.loop import train_lora
from ...trainers.training.plan import TrainingPlan
from ...trainers.training.presets import describe
from ...trainers.training.run_folder import RunFolder
from ...trainers.training.run_settings import RunSettings
from ...trainers.training.trained_lora import TrainedLora
from . import folders
from .flow_memory import GraphMemory
from .flow_model import GraphFlowModel
from .graph_training import (
    TrainedInGraph,
    TrainingRequest,
    describe_ignored_patches,
    find_network_weights,
    run_in_graph,
)
from .memory_budget import MemoryBudget
from .progress import ComfyHost
from .settings import resolve_flow_settings
from .training_samples import check_sampler
from .weights import GraphModel


def train_flow(request: TrainingRequest, *, remarks: list[str] | None = None) -> TrainedInGraph:
    """Train on the graph's weights, go on with a run that was stopped, or load a finished one.
    `remarks` are told to the user when the run begins.

    Raises:
        ValueError: a setting, the dataset or a model cannot be used; nothing was written.
        InterruptProcessingException: the user cancelled or paused; the same prompt goes on.
        RunInUse: another process trains the same.
        RuntimeError: memory ran out (the message names the next settings to try), or the training
            went wrong.
    """
    model = request.base.model
    family = choose_family(model)
    given = {**request.settings, **find_network_weights(request.settings)}
    settings = resolve_flow_settings(
        given, family, goal=request.goal, memory=request.memory, dataset=request.require_dataset()
    )
    settings, need = GraphMemory(model, family).fit_resolution(settings, given, request.memory)
    check_sampler(settings.training)
    text = _describe(settings, family)
    notices = [*(remarks or []), *list_notices(model, family, request.require_dataset()), *filter(None, [need])]

    def train(plan: TrainingPlan[FlowConfig], host: ComfyHost, run_folder: RunFolder) -> TrainedLora:
        return _train(FlowLoader(request.base, family, plan, text, notices), run_folder, host, request.resume)

    return run_in_graph(request, settings, text, train)


def list_notices(model: Any, family: FlowFamilyRow, dataset: Dataset) -> list[str]:
    """What the user should know of the MODEL before it is trained on this dataset."""
    found = (
        describe_ignored_patches(model),
        _warn_unknown(family),
        _warn_distilled(model, family),
        _warn_control_images(model, family, dataset),
    )
    return [notice for notice in found if notice]


def choose_family(model: Any) -> FlowFamilyRow:
    """Return the table's row for the MODEL; without one, defaults under the name of its class. A
    ModelSampling node on it decides the shift.
    """
    class_name = type(model.model.model_config).__name__
    family = find_family(class_name)
    family = FlowFamilyRow(name=class_name) if family is None else family.for_file(_find_file_name(model))
    return family.with_models_own_shift() if "model_sampling" in model.object_patches else family


def _find_file_name(model: Any) -> str:
    """Return the name of the file that the MODEL was loaded from, LoRAs on it or not; "" if it is
    unknown.
    """
    loaded_with = getattr(model, "cached_patcher_init", None)
    if not loaded_with or not loaded_with[1] or not isinstance(loaded_with[1][0], str):
        return ""
    return Path(loaded_with[1][0]).stem


def _describe(settings: RunSettings[FlowConfig], family: FlowFamilyRow) -> str:
    config = settings.training
    own = "a shift by the size of the image" if family.has_shift_by_size else "the model's own shift"
    shift = f"shift {config.discrete_flow_shift:g}" if config.discrete_flow_shift else own
    timesteps = "" if config.timesteps == (0, MAX_TIMESTEP) else " timesteps {} to {},".format(*config.timesteps)
    return f"{describe(settings)}\n{family.name}: noise levels {config.timestep_sampling},{timesteps} {shift}."


def _warn_unknown(family: FlowFamilyRow) -> str:
    if family.configs:
        return ""
    return (
        f"{family.name} is not among the models that this trainer knows: it trains attention and MLP of every block "
        "with general settings. Look at samples early"
    )


def _warn_distilled(model: Any, family: FlowFamilyRow) -> str:
    """A training adapter is a LoRA on the MODEL."""
    file_name = _find_file_name(model)
    if model.patches or not family.is_distilled(file_name):
        return ""
    return f"{file_name} is distilled: plain training soon breaks what makes it fast. {family.remedy}"


def _warn_control_images(model: Any, family: FlowFamilyRow, dataset: Dataset) -> str:
    """File names tell edit models only where users keep them."""
    file_name = _find_file_name(model)
    has_controls = any(image.control_images for image in dataset.images)
    if family.control_images is None or has_controls == family.is_edit_model(file_name):
        return ""
    if has_controls:
        return (
            f"{file_name or 'MODEL'} is no edit model by its name: that would have {family.control_images.marker!r} "
            "in it. It is trained with the control images all the same"
        )
    if not family.control_images.marker:  # the family draws from a caption alone too
        return ""
    return f"{file_name} is an edit model, but the dataset has no control images: it is trained from captions alone"


def _train(loader: "FlowLoader", run_folder: RunFolder, host: ComfyHost, resume: str) -> TrainedLora:
    """Train. If memory runs out, the error names settings that need less."""
    try:
        cache = TensorCache(folders.get_cache_folder())
        family = FlowFamily(loader.load, loader.plan_memory)
        return train_lora(family, loader.plan, host, run_folder=run_folder, cache=cache, resume=resume)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if loader.budget is None or not comfy.model_management.is_oom(error):
            raise
    # Raised outside of the except block: the first error's traceback would keep the training's
    # tensors alive.
    raise RuntimeError(f"{loader.budget.remedy()}. Or load the model's fp8 file, or a smaller model")


@dataclass
class FlowLoader:
    """Makes the trainer's model on the graph's memory when the training asks for it, decides where
    its weights stay, and tells what is worth knowing of it.
    """

    base: GraphModel
    family: FlowFamilyRow
    plan: TrainingPlan[FlowConfig]
    settings_text: str
    notices: list[str]
    budget: MemoryBudget | None = None
    free_bytes: int = 0  # on the device, before the text encoder comes to it

    def load(self, host: Host) -> GraphFlowModel:
        self.free_bytes = comfy.model_management.get_free_memory()
        model = GraphFlowModel(self.base, self.family)
        for notice in self.notices:
            host.report(Notice(notice))
        return model

    def plan_memory(self, conditions: Conditions, host: Host) -> int:
        """Return how many blocks keep their weights in main memory, with these conditions of the
        prompt that takes most, and tell what the training needs.
        """
        memory = GraphMemory(self.base.model, self.family, self.base.vae, self.base.clip)
        config, size_hw = self.plan.settings.training, self.plan.crops.largest_hw
        self.budget, number = memory.compare(config, size_hw, conditions, free_bytes=self.free_bytes)
        host.report(RunDescribed(f"{self.settings_text}\n{self.budget.text()}", self.free_bytes))
        return number
