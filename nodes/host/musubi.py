"""One training by Musubi Tuner from the graph: files found, ComfyUI's models out of the way, the
result put on the MODEL and verified.
"""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management

from ...trainers.config import from_mapping, list_field_names
from ...trainers.dataset.dataset import Dataset
from ...trainers.files.allowed_folders import VARIABLE
from ...trainers.musubi.architectures import Architecture, find_architecture
from ...trainers.musubi.config import MusubiConfig
from ...trainers.musubi.conversion import list_modules
from ...trainers.musubi.dataset_toml import list_paths
from ...trainers.musubi.doctor import diagnose
from ...trainers.musubi.installation import Installation, NoMusubi, find_installation
from ...trainers.musubi.plan import MusubiJob
from ...trainers.musubi.trainer import MusubiTrainer
from ...trainers.training.run_folder import RunFolder
from ...trainers.training.trained_lora import TrainedLora
from . import folders, musubi_files
from .allowed_folders import allowed_folders
from .lora import GraphLora, apply_lora
from .musubi_settings import musubi_settings, settings_count
from .progress import ComfyHost, cancellable

_CHOICE = "architecture"


@dataclass(frozen=True)
class Given:
    """The node's inputs. `choice` is the architecture's: its name under "architecture", and what
    came with the choice of it.
    """

    choice: Any
    settings: dict[str, Any]
    dataset: Dataset | None
    control: Dataset | None
    dataset_toml: str


@dataclass(frozen=True)
class TrainedByMusubi:
    """What the node hands over; `model` is None where none came in."""

    model: Any
    lora: GraphLora
    result: TrainedLora
    run_folder: Path
    title: str

    @property
    def summary(self) -> str:
        """The result first: the canvas shows two lines."""
        last = self.result.losses[-100:]
        count = self.lora.num_modules
        verified = f"{count}/{count} modules load" if self.model is not None else f"{count} modules"
        return (
            f"Trained {self.result.steps} steps, average loss {sum(last) / len(last):.4f}; "
            f"{verified}.\n{self.result.path}.\n{self.title}."
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


def train_with_musubi(given: Given, model: Any, *, output_name: str) -> TrainedByMusubi:
    """Train in a process of Musubi's own Python, and put the LoRA on `model`, unless that is None.

    Raises:
        ValueError: a setting, file or dataset cannot be used, or Musubi Tuner is not found; nothing
            was started.
        InterruptProcessingException: the user cancelled; a checkpoint is kept.
        RuntimeError: Musubi Tuner failed; the message has the cause, its last lines and the path of
            its log.
    """
    job = _job(given)
    if given.dataset is None and not given.dataset_toml.strip():
        raise ValueError(
            "there is no dataset. Connect Load Images to dataset, or write a dataset configuration into dataset_toml"
        )
    architecture = find_architecture(job.architecture)
    if model is not None:
        _require_kind(model, architecture)
    _require_allowed_folders(given.dataset_toml)
    installation = _installation()
    run_folder, host = RunFolder(folders.work_folder(), output_name, keep_inside=True), ComfyHost()
    trainer = MusubiTrainer(job, installation, run_folder=run_folder, cache_root=folders.cache_folder())
    with cancellable(host):
        _free_the_gpu()
        result = trainer.train(given.dataset, host, control=given.control, dataset_toml=given.dataset_toml)
    num_modules = len(list_modules(result.state_dict))
    if model is not None:
        model = _with_lora(model, result, num_modules)
    lora = GraphLora(result.state_dict, metadata=result.metadata, num_modules=num_modules)
    trained = TrainedByMusubi(
        model, lora, result, run_folder.path, f"{architecture.title}, Musubi Tuner {installation.version}"
    )
    host.finish(trained.summary)
    return trained


def _require_allowed_folders(dataset_toml: str) -> None:
    """Raises ValueError where the configuration names a folder that this server may not read."""
    allowed = allowed_folders()
    for name, value in list_paths(dataset_toml):
        if name.endswith("_jsonl_file") and allowed.roots is not None:
            raise ValueError(
                f"dataset_toml: {name} names single files, which this server may not read. Give {name.split('_')[0]}"
                f"_directory, or the server's owner empties {VARIABLE}, listens on this machine only and without "
                "--multi-user"
            )
        try:
            allowed.require(value)
        except ValueError as error:
            raise ValueError(f"dataset_toml: {name}: {error}") from None


def musubi_report() -> str:
    """What Musubi Doctor says."""
    text = diagnose(**musubi_settings()).text()
    return (
        text
        if settings_count()
        else f"{text}With --multi-user ComfyUI's settings do not count, only MUSUBI_TUNER_DIR and MUSUBI_PYTHON.\n"
    )


def _installation() -> Installation:
    try:
        return find_installation(**musubi_settings())
    except NoMusubi as error:
        where = (
            "In ComfyUI: the settings (the gear), LoRA Trainer"
            if settings_count()
            else "With --multi-user ComfyUI's settings do not count"
        )
        raise NoMusubi(f"{error}. {where}. The node Musubi Doctor tells more") from None


def _job(given: Given) -> MusubiJob:
    """Raises ValueError for inputs that do not belong to the architecture: ComfyUI itself would
    leave them out in silence.
    """
    if not isinstance(given.choice, dict):  # a prompt without it: ComfyUI takes no input of this kind for missing
        find_architecture(str(given.choice))
    choice = {name: value for name, value in given.choice.items() if value is not None}
    architecture = find_architecture(choice.pop(_CHOICE))
    _refuse_strangers(given.settings, choice, architecture)
    files = {file.name: file.folder for file in architecture.models}
    models = {
        name: musubi_files.model_file(files[name], value)
        for name, value in choice.items()
        if name in files and value != folders.NONE
    }
    options = {option.name: choice[option.name] for option in architecture.options if option.name in choice}
    settings = {
        name: value for name, value in {**given.settings, **choice}.items() if name in list_field_names(MusubiConfig)
    }
    config = from_mapping(MusubiConfig, {**settings, **_files_to_start_from(settings)}, source=architecture.name)
    return MusubiJob(architecture.name, config, models, options)


def _refuse_strangers(settings: dict[str, Any], choice: dict[str, Any], architecture: Architecture) -> None:
    known = {*choice, *(file.name for file in architecture.models), *(option.name for option in architecture.options)}
    strangers = sorted(name.removeprefix(f"{_CHOICE}.") for name in settings if name.startswith(f"{_CHOICE}."))
    if strangers:
        raise ValueError(f"{architecture.name} has no {', '.join(strangers)}. It has {', '.join(sorted(known))}")
    misplaced = sorted(known & set(settings))
    if misplaced:
        raise ValueError(
            f"{', '.join(misplaced)} came without the architecture. Write "
            f"{', '.join(f'{_CHOICE}.{name}' for name in misplaced)}"
        )


def _files_to_start_from(settings: dict[str, Any]) -> dict[str, str]:
    """Paths of the LoRAs and the state that were picked, "" for none."""
    find = {"network_weights": musubi_files.raw_lora, "resume": musubi_files.state, "base_weights": folders.lora_file}
    chosen = {name: settings.get(name, folders.NONE) for name in find}
    return {name: "" if value == folders.NONE else str(find[name](value)) for name, value in chosen.items()}


def _require_kind(model: Any, architecture: Architecture) -> None:
    """Before hours of training: ComfyUI's own names for the places in MODEL are those that the
    LoRA's modules will have.
    """
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    if not any(architecture.fits(name) for name in places):
        raise ValueError(
            f"the MODEL is a {type(model.model).__name__}, not a model of {architecture.title}: the LoRA would have "
            "no place in it. "
            "Connect a model of that kind, or none"
        )


def _free_the_gpu() -> None:
    """Musubi trains in another process, which sees only the memory that ComfyUI has given back."""
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def _with_lora(model: Any, result: TrainedLora, num_modules: int) -> Any:
    patched, _, loaded = apply_lora(model, None, result.state_dict, strength_model=1.0, strength_clip=1.0)
    if loaded.unknown or loaded.num_modules != num_modules:
        raise RuntimeError(
            f"{result.path}: ComfyUI finds a place for {loaded.num_modules} of {num_modules} modules; not for "
            f"{', '.join(loaded.unknown[:3])}"
        )
    return patched
