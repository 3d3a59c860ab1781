"""One SDXL training in the graph: resolves the settings, frees memory, trains on the borrowed
weights, applies the LoRA and verifies it.
"""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management

from ...trainers.dataset.dataset import Dataset
from ...trainers.files.tensor_cache import TensorCache
from ...trainers.sdxl.config import SDXLConfig
from ...trainers.sdxl.family import SDXLFamily
from ...trainers.sdxl.model.sdxl_model import SDXLModel, header_states_v_prediction
from ...trainers.training.events import RunDescribed
from ...trainers.training.host import Host
from ...trainers.training.loop import train_lora
from ...trainers.training.plan import TrainingPlan, plan_training
from ...trainers.training.presets import describe
from ...trainers.training.run_folder import RunFolder
from ...trainers.training.run_settings import RunSettings
from ...trainers.training.trained_lora import TrainedLora
from ..open_settings import list_choices
from . import folders
from .lora import GraphLora, apply_lora
from .memory_budget import MemoryBudget
from .progress import ComfyHost, cancellable
from .prompt_queue import describe_origin
from .settings import resolve_settings
from .weights import (
    GraphModel,
    borrow_model,
    find_checkpoint,
    find_ignored_patches,
    get_unet_dtype,
    predicts_v,
    training_mode,
)


@dataclass(frozen=True)
class TrainedInGraph:
    """The outputs of the node: MODEL and CLIP with the LoRA, the LoRA itself, and facts about the
    training.
    """

    model: Any
    clip: Any
    lora: GraphLora
    result: TrainedLora
    run_folder: Path
    settings: str
    presets: dict[str, Any]

    @property
    def summary(self) -> str:
        """Return the result, the most important lines first: the canvas shows two."""
        last = sum(self.result.losses[-100:]) / max(1, len(self.result.losses[-100:]))
        count = self.lora.num_modules
        return (
            f"{_describe_end(self.result)}, average loss {last:.4f}; {count}/{count} modules "
            f"load.\n{self.result.path}.\n{self.settings}"
        )

    def facts(self) -> dict[str, Any]:
        """Return facts for API clients, in the history; finite numbers only."""
        return {
            "path": str(self.result.path),
            "steps": self.result.steps,
            "loss": [round(loss, 6) for loss in self.result.losses],
            "loss_plot": folders.describe_output(self.run_folder / "loss.png"),
            "checkpoints": [str(path) for path in self.result.checkpoints],
            "modules": self.lora.num_modules,
            "run": self.run_folder.name,
            "finished_early": self.result.finished_early,
            "loaded": self.result.was_loaded,
            "ema_path": str(self.result.ema_path) if self.result.ema_path else None,
            "presets": self.presets,
        }


def _describe_end(result: TrainedLora) -> str:
    early = " (finished early)" if result.finished_early else ""
    how = "Loaded the finished run of" if result.was_loaded else "Trained"
    return f"{how} {result.steps} steps{early}"


def train_sdxl(
    base: GraphModel,
    dataset: Dataset,
    *,
    goal: str,
    memory: str,
    output_name: str,
    settings: dict[str, Any],
    resume: str,
    is_polite: bool,
) -> TrainedInGraph:
    """Train on the graph's weights, go on with a run that was stopped, or load a finished one.

    Raises:
        ValueError: a setting, the dataset or a model cannot be used; nothing was written.
        InterruptProcessingException: the user cancelled or paused; the same prompt goes on.
        RunInUse: another process trains the same.
        RuntimeError: memory ran out (the message names the next setting to try), or the training
            went wrong.
    """
    settings = {**settings, **_find_network_weights(settings.get("network_weights", folders.NONE))}
    run_settings = resolve_settings(
        settings, goal=goal, memory=memory, dataset=dataset, weight_dtype=get_unet_dtype(base.model)
    )
    text, host = _describe(run_settings, base.model), ComfyHost(is_polite=is_polite)
    run_folder = RunFolder(folders.get_work_folder(), output_name, keep_inside=True, origin=describe_origin())
    try:
        with cancellable(host), training_mode():
            result = _train(base, plan_training(dataset, run_settings), run_folder, host, text, resume)
    finally:
        gc.collect()  # modules and their hooks refer to each other
        comfy.model_management.soft_empty_cache()
    model, clip, loaded = apply_lora(base.model, base.clip, result.state_dict, strength_model=1.0, strength_clip=1.0)
    num_modules = sum(name.endswith(".lora_up.weight") for name in result.state_dict)
    if loaded.num_modules != num_modules:
        raise RuntimeError(
            f"{result.path}: ComfyUI loads {loaded.num_modules} of {num_modules} modules; not "
            f"{', '.join(loaded.unknown[:3])}"
        )
    lora = GraphLora(result.state_dict, metadata=result.metadata, num_modules=num_modules)
    presets = list_choices(settings, run_settings.to_dict(), goal=goal, memory=memory)
    trained = TrainedInGraph(model, clip, lora, result, run_folder.path, text, presets)
    host.finish(trained.summary)
    return trained


def _find_network_weights(file_name: str) -> dict[str, str]:
    """The widget names a file among the LoRAs, the config a path; no file is the empty path."""
    return {"network_weights": "" if file_name == folders.NONE else str(folders.find_starting_point(file_name))}


def _describe(settings: RunSettings[SDXLConfig], model: Any) -> str:
    ignored = find_ignored_patches(model)
    warning = (
        f"\nMODEL carries {', '.join(ignored)}, which only act when sampling: the training does not see them."
        if ignored
        else ""
    )
    return describe(settings) + warning + _describe_prediction(model)


def _describe_prediction(model: Any) -> str:
    """The graph decides what is trained; a header that says something else is worth a line."""
    path = find_checkpoint(model)
    if path is None or path.suffix != ".safetensors" or not path.is_file() or predicts_v(model):
        return ""
    if not header_states_v_prediction(path):
        return ""
    return (
        f"\nThe header of {path.name} says that it predicts v, but the graph samples it by epsilon, and so it is "
        "trained. If the header is right, put ModelSamplingDiscrete with v_prediction behind the loader."
    )


def _train(
    base: GraphModel,
    plan: TrainingPlan[SDXLConfig],
    run_folder: RunFolder,
    host: ComfyHost,
    settings_text: str,
    resume: str,
) -> TrainedLora:
    """Borrow the weights, report the memory budget, and train. If memory runs out, the error names
    settings that need less.
    """
    loader = _BudgetedLoader(base, plan, settings_text)
    try:
        cache = TensorCache(folders.get_cache_folder())
        return train_lora(SDXLFamily(loader.load), plan, host, run_folder=run_folder, cache=cache, resume=resume)
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
        self.budget = MemoryBudget.of(weights, self.plan)
        message = f"{self.settings_text}\n{self.budget.text()}"
        host.report(RunDescribed(message, self.settings_text, self.budget.free_bytes))
        return weights
