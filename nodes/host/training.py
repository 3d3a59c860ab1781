"""One SDXL training in the graph: settings resolved, memory freed, trained on the borrowed weights, applied and verified."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management

from ...trainers.base import Notice, TrainedLora
from ...trainers.buckets import BucketConfig, plan_crops
from ...trainers.cache import TensorCache
from ...trainers.dataset import Dataset
from ...trainers.run_folder import RunFolder
from ...trainers.sdxl.config import SDXLConfig
from ...trainers.sdxl.presets import choose_memory_preset, describe, resolve
from ...trainers.sdxl.trainer import SDXLTrainer
from ..config_inputs import AUTO, chosen_settings
from ..train_sdxl import OPEN_SETTINGS
from . import folders
from .lora import GraphLora, apply_lora
from .memory_budget import MemoryBudget
from .progress import ComfyHost, cancellable, compute_precision
from .weights import borrow_model, ignored_patches, training_mode, unet_dtype


@dataclass(frozen=True)
class TrainedInGraph:
    """What the node hands over: MODEL and CLIP with the LoRA, the LoRA itself, and how it came about."""

    model: Any
    clip: Any
    lora: GraphLora
    result: TrainedLora
    run_folder: Path
    settings: str

    @property
    def loss_plot(self) -> Path:
        return self.run_folder / "loss.png"

    @property
    def summary(self) -> str:
        last = sum(self.result.losses[-100:]) / len(self.result.losses[-100:])
        count = self.lora.num_modules
        return f"{self.settings}\n{self.result.steps} steps, average loss {last:.4f}, {count}/{count} modules load\n{self.result.path}"

    def facts(self) -> dict[str, Any]:
        """For API clients, in the history; finite numbers only."""
        return {
            "path": str(self.result.path),
            "steps": self.result.steps,
            "loss": [round(loss, 6) for loss in self.result.losses],
            "checkpoints": [str(path) for path in self.result.checkpoints],
            "modules": self.lora.num_modules,
        }


def train_sdxl(model: Any, clip: Any, vae: Any, dataset: Dataset, *, goal: str, memory: str, output_name: str, settings: dict[str, Any]) -> TrainedInGraph:
    """Train on the graph's weights.

    Raises:
        ValueError: a setting, the dataset or a model cannot be used; nothing was written.
        InterruptProcessingException: the user cancelled; a checkpoint is kept.
        RuntimeError: memory ran out (the message names the next setting to try), or the training went wrong.
    """
    host = ComfyHost()
    config, buckets = _resolve(settings, goal=goal, memory=memory, dataset=dataset, model=model)
    run_folder = RunFolder(folders.work_folder(), output_name, keep_inside=True)
    text = describe(config, buckets)
    ignored = ignored_patches(model)
    if ignored:
        text += f"\nMODEL carries {', '.join(ignored)}, which act when sampling only: the training does not see them"
    with cancellable():
        result = _train(model, clip, vae, dataset, config, buckets, run_folder, host, settings_text=text)
    patched_model, patched_clip, loaded = apply_lora(model, clip, result.state_dict, strength_model=1.0, strength_clip=1.0)
    num_modules = sum(name.endswith(".lora_up.weight") for name in result.state_dict)
    if loaded.num_modules != num_modules:
        raise RuntimeError(f"{result.path}: ComfyUI finds a place for {loaded.num_modules} of {num_modules} modules; not for {', '.join(loaded.unknown[:3])}")
    trained = TrainedInGraph(
        patched_model, patched_clip, GraphLora(result.state_dict, metadata=result.metadata, num_modules=num_modules), result, run_folder.path, text
    )
    host.send_text(trained.summary)
    return trained


def _resolve(settings: dict[str, Any], *, goal: str, memory: str, dataset: Dataset, model: Any) -> tuple[SDXLConfig, BucketConfig]:
    given = chosen_settings(settings, auto=OPEN_SETTINGS)
    start_from = given.pop("network_weights", folders.NONE)
    if start_from != folders.NONE:
        given["network_weights"] = str(folders.lora_file(start_from))
    if given.get("mixed_precision", AUTO) == AUTO:
        given["mixed_precision"] = compute_precision(unet_dtype(model))
    if memory == AUTO:
        memory = choose_memory_preset(comfy.model_management.get_total_memory())
    return resolve(given, goal=goal, memory=memory, num_pictures=len(dataset.images) * dataset.num_repeats)


def _train(
    model: Any,
    clip: Any,
    vae: Any,
    dataset: Dataset,
    config: SDXLConfig,
    buckets: BucketConfig,
    run_folder: RunFolder,
    host: ComfyHost,
    *,
    settings_text: str,
) -> TrainedLora:
    """In a function of its own: when it returns or raises, nothing refers to the training's tensors any more."""
    out_of_memory = ""
    try:
        with training_mode():
            base = borrow_model(model, clip, vae)
            budget = MemoryBudget.of(base, config, plan_crops(dataset, buckets, seed=config.seed))
            host.report(Notice(f"{settings_text}\n{budget.text()}"))
            trainer = SDXLTrainer(config, buckets, lambda: base, run_folder=run_folder, cache=TensorCache(folders.cache_folder()))
            try:
                return trainer.train(dataset, host)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not comfy.model_management.is_oom(error):
                    raise
                out_of_memory = budget.remedy()
    finally:
        gc.collect()  # modules and their hooks refer to each other
        comfy.model_management.soft_empty_cache()
    raise RuntimeError(out_of_memory)  # outside of the except block: the first error's traceback would keep the tensors alive
