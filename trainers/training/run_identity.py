"""The identity of a run from its plan, its base model and the machine."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..dataset.crop_plan import TrainingItem
from ..files.hashes import file_sha256
from .optimizer_table import find_optimizer
from .plan import TrainingPlan
from .resume.identity import RunIdentity

FORMAT = 3  # raise it when a training of the same settings gives another result
# They decide how long a run is, what it shows, and how it fits into memory, not what it learns.
IRRELEVANT = frozenset(
    {
        "max_train_steps",
        "num_train_epochs",
        "save_every_n_steps",
        "save_every_n_epochs",
        "save_state_every_n_minutes",
        "sample_every_n_steps",
        "sample_prompt",
        "sample_negative_prompt",
        "sample_seeds",
        "sample_steps",
        "sample_guidance_scale",
        "sample_size",
        "sample_sampler",
        "sample_scheduler",
        "save_best",
        "gradient_checkpointing",
        "step_down_on_oom",
        "blocks_to_swap",
    }
)
# They decide when early_stop ends a run, and nothing else.
ABOUT_STOPPING = frozenset({"early_stop", "validate_every_n_steps"})
_PACKAGES = ("torch", "diffusers", "transformers", "peft")


def identify_run(
    plan: TrainingPlan, model: Mapping[str, str], *, precision: str, device_type: str, num_processes: int
) -> RunIdentity:
    """Collect everything that determines the result. `model` has a hash for each part of the base
    model.
    """
    machine = {
        "precision": precision,
        "device": device_type,
        "number of processes": num_processes,
        "format": FORMAT,
        **{f"version of {name}": version for name, version in _list_versions(plan)},
    }
    sections = {**identify_plan(plan), "base model": dict(model), "machine": machine}
    return RunIdentity(sections, plan.schedule.total_steps)


def identify_plan(plan: TrainingPlan) -> dict[str, dict[str, Any]]:
    """The sections that need no model."""
    return {"settings": _list_settings(plan), "dataset": {"content": _hash_dataset(plan)}}


def _list_settings(plan: TrainingPlan) -> dict[str, Any]:
    settings = {
        name: value
        for section in plan.settings.to_dict().values()
        for name, value in section.items()
        if name not in IRRELEVANT and not (name in ABOUT_STOPPING and not plan.settings.training.early_stop)
    }
    start = settings["network_weights"]
    if start:  # the file's content, wherever it lies
        settings["network_weights"] = file_sha256(Path(start))
    return settings


def _list_versions(plan: TrainingPlan) -> Iterator[tuple[str, str]]:
    optimizer = find_optimizer(plan.settings.training.optimizer).package
    for name in dict.fromkeys((*_PACKAGES, optimizer)):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _hash_dataset(plan: TrainingPlan) -> str:
    digest = hashlib.sha256()
    for item in plan.crops.items:
        facts = [plan.dataset.get_trigger_word(item.image), *_describe_item(item)]
        digest.update(json.dumps(facts).encode())
    if plan.settings.training.early_stop:
        digest.update(str(plan.validation.number).encode())
    return digest.hexdigest()[:40]


def _describe_item(item: TrainingItem) -> list[Any]:
    image, crop = item.image, item.crop
    return [
        item.index,
        image.sha256,
        image.mask_sha256,
        image.alpha_background if image.has_alpha else "",
        image.caption,
        image.loss_weight,
        image.is_regularization,
        crop.original_hw,
        crop.resized_hw,
        crop.top_left_yx,
        crop.target_hw,
        # nothing without them: runs of earlier versions go on
        *([control.sha256, control.alpha_background if control.has_alpha else ""] for control in image.control_images),
    ]
