"""One SDXL training in the graph: settings resolved, memory freed, trained on the borrowed weights,
applied and verified.
"""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management

from ...trainers.config import own_settings
from ...trainers.dataset.bucket_config import BucketConfig
from ...trainers.dataset.caption_variants import CaptionConfig
from ...trainers.dataset.crop_plan import plan_crops
from ...trainers.dataset.dataset import Dataset
from ...trainers.files.tensor_cache import TensorCache
from ...trainers.sdxl.config import SDXLConfig
from ...trainers.sdxl.model.sdxl_model import SDXLModel
from ...trainers.sdxl.presets import describe
from ...trainers.sdxl.trainer import SDXLTrainer
from ...trainers.training.events import Notice, TrainedLora
from ...trainers.training.run_folder import RunFolder
from . import folders
from .lora import GraphLora, apply_lora
from .memory_budget import MemoryBudget
from .progress import ComfyHost, cancellable
from .settings import resolve_settings
from .weights import GraphModel, borrow_model, ignored_patches, training_mode, unet_dtype


@dataclass(frozen=True)
class TrainedInGraph:
    """What the node hands over: MODEL and CLIP with the LoRA, the LoRA itself, and how it came
    about.
    """

    model: Any
    clip: Any
    lora: GraphLora
    result: TrainedLora
    run_folder: Path
    settings: str

    @property
    def summary(self) -> str:
        """The result first: the canvas shows two lines."""
        last = sum(self.result.losses[-100:]) / len(self.result.losses[-100:])
        count = self.lora.num_modules
        return (
            f"Trained {self.result.steps} steps, average loss {last:.4f}; {count}/{count} modules "
            f"load.\n{self.result.path}.\n{self.settings}"
        )

    def facts(self) -> dict[str, Any]:
        """For API clients, in the history; finite numbers only."""
        return {
            "path": str(self.result.path),
            "steps": self.result.steps,
            "loss": [round(loss, 6) for loss in self.result.losses],
            "loss_plot": folders.as_output(self.run_folder / "loss.png"),
            "checkpoints": [str(path) for path in self.result.checkpoints],
            "modules": self.lora.num_modules,
        }


def train_sdxl(
    base: GraphModel, dataset: Dataset, *, goal: str, memory: str, output_name: str, settings: dict[str, Any]
) -> TrainedInGraph:
    """Train on the graph's weights.

    Raises:
        ValueError: a setting, the dataset or a model cannot be used; nothing was written.
        InterruptProcessingException: the user cancelled; a checkpoint is kept.
        RuntimeError: memory ran out (the message names the next setting to try), or the training
            went wrong.
    """
    captions = CaptionConfig(**own_settings(CaptionConfig, settings))
    settings = {**settings, **_start_from(settings.get("network_weights", folders.NONE))}
    config, buckets = resolve_settings(
        settings, goal=goal, memory=memory, dataset=dataset, weight_dtype=unet_dtype(base.model)
    )
    text, host = _describe(config, buckets, base.model), ComfyHost()
    run_folder = RunFolder(folders.work_folder(), output_name, keep_inside=True)
    try:
        with cancellable(), training_mode():
            result = _train(base, dataset, config, buckets, captions, run_folder, host, text)
    finally:
        gc.collect()  # modules and their hooks refer to each other
        comfy.model_management.soft_empty_cache()
    model, clip, loaded = apply_lora(base.model, base.clip, result.state_dict, strength_model=1.0, strength_clip=1.0)
    num_modules = sum(name.endswith(".lora_up.weight") for name in result.state_dict)
    if loaded.num_modules != num_modules:
        raise RuntimeError(
            f"{result.path}: ComfyUI finds a place for {loaded.num_modules} of {num_modules} modules; not for "
            f"{', '.join(loaded.unknown[:3])}"
        )
    lora = GraphLora(result.state_dict, metadata=result.metadata, num_modules=num_modules)
    trained = TrainedInGraph(model, clip, lora, result, run_folder.path, text)
    host.finish(trained.summary)
    return trained


def _start_from(file_name: str) -> dict[str, str]:
    """The widget names a file among the LoRAs, the config a path; no file is the empty path."""
    return {"network_weights": "" if file_name == folders.NONE else str(folders.lora_file(file_name))}


def _describe(config: SDXLConfig, buckets: BucketConfig, model: Any) -> str:
    ignored = ignored_patches(model)
    warning = (
        f"\nMODEL carries {', '.join(ignored)}, which act when sampling only: the training does not see them."
        if ignored
        else ""
    )
    return describe(config, buckets) + warning


def _train(
    base: GraphModel,
    dataset: Dataset,
    config: SDXLConfig,
    buckets: BucketConfig,
    captions: CaptionConfig,
    run_folder: RunFolder,
    host: ComfyHost,
    settings_text: str,
) -> TrainedLora:
    """Borrow the weights, say what will be needed, and train; an error for want of memory names
    what needs less.
    """
    budget: MemoryBudget | None = None

    def load_model() -> SDXLModel:
        nonlocal budget
        weights = borrow_model(base)
        budget = MemoryBudget.of(weights, config, plan_crops(dataset, buckets, seed=config.seed))
        host.report(Notice(f"{settings_text}\n{budget.text()}"))
        return weights

    trainer = SDXLTrainer(
        config, buckets, load_model, run_folder=run_folder, cache=TensorCache(folders.cache_folder()), captions=captions
    )
    try:
        return trainer.train(dataset, host)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if budget is None or not comfy.model_management.is_oom(error):
            raise
    # Outside of the except block: the first error's traceback would keep the training's tensors
    # alive.
    raise RuntimeError(budget.remedy())
