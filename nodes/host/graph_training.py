"""What every training in the graph shares: what a node asks for, the run on unloaded models, and
the LoRA applied and counted.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management

from ...trainers.dataset.dataset import Dataset
from ...trainers.training.plan import TrainingPlan, plan_training
from ...trainers.training.run_folder import RunFolder
from ...trainers.training.run_settings import ConfigT, RunSettings
from ...trainers.training.trained_lora import TrainedLora
from ..open_settings import list_choices
from . import folders
from .lora import GraphLora, apply_lora
from .progress import ComfyHost, cancellable
from .prompt_queue import describe_origin
from .weights import GraphModel, find_ignored_patches, training_mode


@dataclass(frozen=True)
class TrainingRequest:
    """What a node asks for. `settings` are its widgets' values.

    `dataset` None: a slider, which has no images. `apply_to` is the MODEL that gets the LoRA; None:
    the one that is trained on.
    """

    base: GraphModel
    dataset: Dataset | None
    goal: str
    memory: str
    output_name: str
    settings: dict[str, Any]
    resume: str
    is_polite: bool
    apply_to: Any = None

    def require_dataset(self) -> Dataset:
        assert self.dataset is not None, "only a slider has no dataset"
        return self.dataset

    def with_settings(self, **changed: Any) -> "TrainingRequest":
        return replace(self, settings={**self.settings, **changed})


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
            f"load.\n{self.result.path}.\n{self._describe_embedding()}{self.settings}"
        )

    def _describe_embedding(self) -> str:
        path = self.result.embedding_path
        if path is None:
            return ""
        return f"New tokens: {path}. Copy it to models/embeddings, and write embedding:{path.stem} in prompts.\n"

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
            "embedding_path": str(self.result.embedding_path) if self.result.embedding_path else None,
            "presets": self.presets,
        }


def _describe_end(result: TrainedLora) -> str:
    early = " (finished early)" if result.finished_early else ""
    how = "Loaded the finished run of" if result.was_loaded else "Trained"
    return f"{how} {result.steps} steps{early}"


def find_network_weights(settings: dict[str, Any]) -> dict[str, str]:
    """The widget names a file among the LoRAs, the config a path; no file is the empty path."""
    file_name = settings.get("network_weights", folders.NONE)
    return {"network_weights": "" if file_name == folders.NONE else str(folders.find_starting_point(file_name))}


def describe_ignored_patches(model: Any) -> str:
    ignored = find_ignored_patches(model)
    if not ignored:
        return ""
    return f"MODEL carries {', '.join(ignored)}, which only act when sampling: the training does not see them."


def run_in_graph(
    request: TrainingRequest,
    settings: RunSettings[ConfigT],
    text: str,
    train: Callable[[TrainingPlan[ConfigT], ComfyHost, RunFolder], TrainedLora],
    *,
    make_plan: Callable[[RunSettings[ConfigT]], TrainingPlan[ConfigT]] | None = None,
) -> TrainedInGraph:
    """Unload all models, train, put the LoRA on MODEL and CLIP, and require that every module of
    it has its place there. `text` describes the settings; `make_plan` plans a training without a
    dataset.

    Raises:
        ValueError: a setting, the dataset or a model cannot be used; nothing was written.
        InterruptProcessingException: the user cancelled or paused; the same prompt goes on.
        RunInUse: another process trains the same.
        RuntimeError: the training went wrong.
    """
    host = ComfyHost(is_polite=request.is_polite)
    run_folder = RunFolder(folders.get_work_folder(), request.output_name, keep_inside=True, origin=describe_origin())
    try:
        with cancellable(host), training_mode():
            plan = make_plan(settings) if make_plan else plan_training(request.require_dataset(), settings)
            result = train(plan, host, run_folder)
    finally:
        gc.collect()  # modules and their hooks refer to each other
        comfy.model_management.soft_empty_cache()
    trained = _apply(request, settings, result, run_folder, text)
    host.finish(trained.summary)
    return trained


def _apply(
    request: TrainingRequest, settings: RunSettings, result: TrainedLora, run_folder: RunFolder, text: str
) -> TrainedInGraph:
    target = request.base.model if request.apply_to is None else request.apply_to
    model, clip, loaded = apply_lora(
        target, request.base.clip, result.state_dict, strength_model=1.0, strength_clip=1.0
    )
    num_modules = sum(name.endswith(".lora_up.weight") for name in result.state_dict)
    if loaded.num_modules != num_modules:
        raise RuntimeError(
            f"{result.path}: ComfyUI loads {loaded.num_modules} of {num_modules} modules; not "
            f"{', '.join(loaded.unknown[:3])}"
        )
    lora = GraphLora(result.state_dict, metadata=result.metadata, num_modules=num_modules)
    presets = list_choices(request.settings, settings.to_dict(), goal=request.goal, memory=request.memory)
    return TrainedInGraph(model, clip, lora, result, run_folder.path, text, presets)
