"""One training by Musubi Tuner from the graph: finds its files, unloads ComfyUI's models, applies
the result to the MODEL and verifies it.
"""

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import folder_paths

from ...trainers.config import from_mapping, list_field_names
from ...trainers.dataset.dataset import Dataset
from ...trainers.files.allowed_folders import VARIABLE
from ...trainers.files.client_folders import ClientFolder, find_client_folder
from ...trainers.musubi.architectures import Architecture, find_architecture
from ...trainers.musubi.config import MusubiConfig
from ...trainers.musubi.conversion import list_modules
from ...trainers.musubi.dataset_toml import list_paths, read_toml
from ...trainers.musubi.doctor import diagnose
from ...trainers.musubi.installation import Installation, NoMusubi, find_installation
from ...trainers.musubi.owner_file import get_owner_file
from ...trainers.musubi.plan import MusubiJob
from ...trainers.musubi.trainer import MusubiTrainer
from ...trainers.training.run_folder import RunFolder
from ...trainers.training.trained_lora import TrainedLora
from . import folders, musubi_files
from .allowed_folders import allowed_folders
from .lora import GraphLora, apply_lora
from .musubi_settings import find_old_settings
from .progress import ComfyHost, cancellable
from .prompt_queue import describe_origin

_CHOICE = "architecture"


@dataclass(frozen=True)
class MusubiInputs:
    """The node's inputs. `choice` has the architecture's name under "architecture", and the inputs
    that came with it.
    """

    choice: Any
    settings: dict[str, Any]
    dataset: Dataset | None
    control: Dataset | None
    dataset_toml: str


@dataclass(frozen=True)
class TrainedByMusubi:
    """The outputs of the node. `model` is None if none was connected."""

    model: Any
    lora: GraphLora
    result: TrainedLora
    run_folder: Path
    title: str

    @property
    def summary(self) -> str:
        """Return the result in three lines, the most important first: the canvas shows two."""
        last = self.result.losses[-100:]
        count = self.lora.num_modules
        verified = f"{count}/{count} modules load" if self.model is not None else f"{count} modules"
        return (
            f"Trained {self.result.steps} steps, average loss {sum(last) / len(last):.4f}; "
            f"{verified}.\n{self.result.path}.\n{self.title}."
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
        }


def train_with_musubi(given: MusubiInputs, model: Any, *, output_name: str) -> TrainedByMusubi:
    """Train in a process of Musubi's own Python, and apply the LoRA to `model`, unless it is None.

    Raises:
        ValueError: a setting, file or dataset cannot be used, or Musubi Tuner was not found;
            nothing was started.
        InterruptProcessingException: the user cancelled; a checkpoint is kept.
        RuntimeError: Musubi Tuner failed; the message has the cause, its last lines and the path of
            its log.
    """
    job = _make_job(given)
    if given.dataset is None and not given.dataset_toml.strip():
        raise ValueError(
            "no dataset: connect Load Images to dataset, or write a dataset configuration into dataset_toml"
        )
    architecture = find_architecture(job.architecture)
    _require_allowed_folders(given.dataset_toml)
    _refuse_caches_elsewhere(given.dataset_toml, architecture)
    if model is not None:
        _require_kind(model, architecture)
    installation = _find_installation()
    run_folder = RunFolder(folders.get_work_folder(), output_name, keep_inside=True, origin=describe_origin())
    host = ComfyHost()
    with musubi_files.copy_state(job.config.resume) as resume, cancellable(host):
        job = replace(job, config=replace(job.config, resume=resume), chosen_resume=job.config.resume)
        trainer = MusubiTrainer(job, installation, run_folder=run_folder, cache_root=folders.get_cache_folder())
        _free_the_gpu()
        result = trainer.train(given.dataset, host, control=given.control, dataset_toml=given.dataset_toml)
    num_modules = len(list_modules(result.state_dict))
    if model is not None:
        model = _apply_and_verify(model, result, num_modules)
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


def write_musubi_report() -> str:
    """Return the report of Musubi Doctor."""
    return diagnose(client_folders=folders.list_client_folders()).text() + "".join(_describe_old_settings())


def _describe_old_settings() -> Iterator[str]:
    old = find_old_settings()
    if old:
        written = ", ".join(f"{name} {text!r}" for name, text in old.items())
        yield (
            f"ComfyUI's settings still name {written}. They do not count any more, because everybody who reaches the "
            f"server can write them. If you wrote this yourself, move it into {get_owner_file()}\n"
        )


def _find_installation() -> Installation:
    try:
        return find_installation(client_folders=folders.list_client_folders())
    except NoMusubi as error:
        raise NoMusubi(f"{error}. Run the node Musubi Doctor for details") from None


def _make_job(given: MusubiInputs) -> MusubiJob:
    """Make the job. Raises ValueError for inputs that do not belong to the architecture, which
    ComfyUI itself would silently drop.
    """
    if not isinstance(given.choice, dict):  # ComfyUI accepts prompts without this kind of input
        find_architecture(str(given.choice))
    choice = {name: value for name, value in given.choice.items() if value is not None}
    architecture = find_architecture(choice.pop(_CHOICE))
    _refuse_unknown_inputs(given.settings, choice, architecture)
    files = {file.name: file.folder for file in architecture.models}
    models = {
        name: musubi_files.find_model_file(files[name], value)
        for name, value in choice.items()
        if name in files and value != folders.NONE
    }
    options = {option.name: choice[option.name] for option in architecture.options if option.name in choice}
    settings = {
        name: value for name, value in {**given.settings, **choice}.items() if name in list_field_names(MusubiConfig)
    }
    config = from_mapping(MusubiConfig, {**settings, **_find_starting_files(settings)}, source=architecture.name)
    return MusubiJob(architecture.name, config, models, options)


def _refuse_unknown_inputs(settings: dict[str, Any], choice: dict[str, Any], architecture: Architecture) -> None:
    known = {*choice, *(file.name for file in architecture.models), *(option.name for option in architecture.options)}
    unknown = sorted(name.removeprefix(f"{_CHOICE}.") for name in settings if name.startswith(f"{_CHOICE}."))
    if unknown:
        raise ValueError(f"{architecture.name} has no {', '.join(unknown)}. It has {', '.join(sorted(known))}")
    misplaced = sorted(known & set(settings))
    if misplaced:
        raise ValueError(
            f"{', '.join(misplaced)} must be given with the architecture. Write "
            f"{', '.join(f'{_CHOICE}.{name}' for name in misplaced)}"
        )


def _refuse_caches_elsewhere(dataset_toml: str, architecture: Architecture) -> None:
    """Musubi writes its caches there, and deletes those of other images: a workflow must not send
    it into any folder of the server. What else is wrong with the text, the plan says.
    """
    tables, _ = read_toml(dataset_toml, resolution_step=architecture.resolution_step) if dataset_toml else ([], [])
    output = ClientFolder("output", Path(folder_paths.get_output_directory()))
    for number, table in enumerate(tables, start=1):
        cache = Path(table.get("cache_directory", output.path))
        if find_client_folder(Path(os.path.realpath(cache)), [output]) is None:
            raise ValueError(
                f"[[datasets]] {number} of dataset_toml: cache_directory {cache} is not below ComfyUI's output folder "
                f"{output.path}. Leave cache_directory out: the caches then are in {folders.get_cache_folder()}. On "
                "the command line it can be any folder"
            )


def _find_starting_files(settings: dict[str, Any]) -> dict[str, str]:
    """Return the paths of the chosen LoRAs and state, "" for none."""
    find = {
        "network_weights": musubi_files.find_raw_lora,
        "resume": musubi_files.find_state,
        "base_weights": folders.find_lora_file,
    }
    chosen = {name: settings.get(name, folders.NONE) for name in find}
    return {name: "" if value == folders.NONE else str(find[name](value)) for name, value in chosen.items()}


def _require_kind(model: Any, architecture: Architecture) -> None:
    """Raise ValueError, before hours of training, if the LoRA will not fit the MODEL: ComfyUI's
    names for its weights must be those of the LoRA's modules.
    """
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    if not any(architecture.fits(name) for name in places):
        raise ValueError(
            f"the MODEL is {type(model.model).__name__}, not a model of {architecture.title}: the LoRA would not "
            "fit it. "
            "Connect a model of that architecture, or none"
        )


def _free_the_gpu() -> None:
    """Free the GPU: Musubi trains in another process, which only has the memory that ComfyUI
    releases.
    """
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def _apply_and_verify(model: Any, result: TrainedLora, num_modules: int) -> Any:
    patched, _, loaded = apply_lora(model, None, result.state_dict, strength_model=1.0, strength_clip=1.0)
    if loaded.unknown or loaded.num_modules != num_modules:
        raise RuntimeError(
            f"{result.path}: ComfyUI loads {loaded.num_modules} of {num_modules} modules; not "
            f"{', '.join(loaded.unknown[:3])}"
        )
    return patched
