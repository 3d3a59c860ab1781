"""Train a LoRA with Musubi Tuner: Z-Image, Krea 2, Qwen-Image, FLUX.2, Wan and others. `plan` shows
what `train` would do, `doctor` what is missing for it.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import add_flags, from_mapping, list_field_names
from ..dataset.config import DatasetConfig
from ..dataset.dataset import Dataset
from ..dataset.scan import scan_folder
from ..files.cache_folder import default_cache_folder
from ..musubi.architectures import ARCHITECTURES, Architecture, find_architecture
from ..musubi.config import MusubiConfig

if TYPE_CHECKING:
    from ..musubi.installation import Installation
    from ..musubi.plan import MusubiJob, Plan
    from ..training.run_folder import RunFolder

SUMMARY = "train a LoRA for Z-Image, Krea 2, Qwen-Image, FLUX.2, Wan and others with Musubi Tuner"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="musubi_command", required=True)
    train = commands.add_parser(
        "train", help="train a LoRA", description="Train a LoRA with Musubi Tuner and convert it for ComfyUI."
    )
    plan = commands.add_parser(
        "plan",
        help="show the dataset file and the command lines, and run nothing",
        description="Show what train would do.",
    )
    doctor = commands.add_parser(
        "doctor",
        help="say where Musubi Tuner is and what is missing",
        description="Say where Musubi Tuner is, what is missing and what to do.",
    )
    for command in (train, plan):
        _add_job_arguments(command)
    for command in (train, plan, doctor):
        command.add_argument(
            "--musubi-dir",
            default="",
            help="folder of Musubi Tuner (default: MUSUBI_TUNER_DIR, musubi.toml, or the usual places)",
        )
        command.add_argument(
            "--musubi-python",
            default="",
            help="Python that has its packages (default: MUSUBI_PYTHON, musubi.toml, or .venv or venv in its folder)",
        )


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), required=True, help="kind of model to train for")
    parser.add_argument("--output", required=True, help="name of the LoRA file")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output"),
        help="folder for the LoRA and its run folder (default: output)",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        help="folder for latents and text encoder outputs, shared by all runs (default: the user's cache folder)",
    )
    parser.add_argument(
        "--dataset-toml", type=Path, help="instead of --images: a dataset configuration of Musubi Tuner"
    )
    files = parser.add_argument_group("model files", "plan says which of them an architecture needs")
    for name, help_text in _list_row_flags("models").items():
        files.add_argument(
            "--" + name.replace("_", "-"), dest=f"model_{name}", type=Path, metavar="FILE", help=help_text
        )
    options = parser.add_argument_group("options of single architectures")
    for name, help_text in _list_row_flags("options").items():
        options.add_argument("--" + name.replace("_", "-"), dest=f"option_{name}", metavar="NAME", help=help_text)
    add_flags(parser, DatasetConfig)
    add_flags(parser, MusubiConfig)


def _list_row_flags(kind: str) -> dict[str, str]:
    """List the model files or options by name, with help texts that name their architectures."""
    titles: dict[str, list[str]] = {}
    for row in ARCHITECTURES.values():
        for entry in getattr(row, kind):
            titles.setdefault(entry.name, []).append(row.name)
    return {
        name: f"for {', '.join(rows)}" if len(rows) < len(ARCHITECTURES) else "for every architecture"
        for name, rows in titles.items()
    }


def run(options: argparse.Namespace) -> int:
    if options.musubi_command == "doctor":
        return _run_doctor(options)
    job, installation = _make_job(options), _find_installation(options)
    folder, plan = _make_plan(options, job, installation)
    if options.musubi_command == "plan":
        print(plan.text(), end="")
    else:
        _train(options, job, installation, folder, plan)
    return 0


def _run_doctor(options: argparse.Namespace) -> int:
    from ..musubi.doctor import diagnose

    diagnosis = diagnose(folder=options.musubi_dir, python=options.musubi_python)
    print(diagnosis.text(), end="")
    return 0 if diagnosis.is_ready else 1


def _make_job(options: argparse.Namespace) -> "MusubiJob":
    from ..musubi.plan import MusubiJob

    architecture = find_architecture(options.architecture)
    given = vars(options)
    models = {name: given[f"model_{name}"].absolute() for name in _list_row_flags("models") if given[f"model_{name}"]}
    chosen = {name: given[f"option_{name}"] for name in _list_row_flags("options") if given[f"option_{name}"]}
    _require_known(architecture, models, chosen)
    config = from_mapping(
        MusubiConfig, {name: given[name] for name in list_field_names(MusubiConfig) if name in given}, source="settings"
    )
    return MusubiJob(architecture.name, config, models, chosen)


def _require_known(architecture: Architecture, models: dict[str, Path], options: dict[str, str]) -> None:
    known = {file.name for file in architecture.models} | {option.name for option in architecture.options}
    unknown = sorted((models.keys() | options.keys()) - known)
    if unknown:
        flags = ", ".join("--" + name.replace("_", "-") for name in unknown)
        raise ValueError(
            f"{architecture.name} has no {flags}. It has "
            f"{', '.join('--' + name.replace('_', '-') for name in sorted(known))}"
        )


def _find_installation(options: argparse.Namespace) -> "Installation":
    from ..musubi.installation import find_installation

    return find_installation(folder=options.musubi_dir, python=options.musubi_python)


def _scan_images(options: argparse.Namespace) -> tuple[Dataset | None, str]:
    """Return the dataset and the text of --dataset-toml."""
    given = {name: value for name, value in vars(options).items() if name in list_field_names(DatasetConfig)}
    if options.dataset_toml:
        if given:
            raise ValueError(
                "--dataset-toml replaces the image flags: leave out "
                f"{', '.join('--' + name.replace('_', '-') for name in sorted(given))}"
            )
        return None, options.dataset_toml.read_text(encoding="utf-8-sig")
    if "images" not in given:
        raise ValueError("missing --images, or --dataset-toml")
    return scan_folder(from_mapping(DatasetConfig, given, source="settings")), ""


def _make_plan(
    options: argparse.Namespace, job: "MusubiJob", installation: "Installation"
) -> tuple["RunFolder", "Plan"]:
    from ..musubi.plan import make_plan
    from ..training.run_folder import RunFolder

    dataset, dataset_toml = _scan_images(options)
    folder = RunFolder(options.output_dir, options.output)
    plan = make_plan(
        job,
        dataset,
        installation,
        folder.path,
        _cache_root(options),
        name=folder.name,
        dataset_toml=dataset_toml,
    )
    return folder, plan


def _train(
    options: argparse.Namespace, job: "MusubiJob", installation: "Installation", folder: "RunFolder", plan: "Plan"
) -> None:
    # torch takes a second to import: errors in settings, folders and file headers come first
    from ..musubi.trainer import MusubiTrainer
    from ..training.console_host import ConsoleHost

    trainer = MusubiTrainer(job, installation, run_folder=folder, cache_root=_cache_root(options))
    with ConsoleHost() as host:
        result = trainer.run(plan, host)
    print(f"LoRA: {result.path}\nRun folder: {folder.path}")


def _cache_root(options: argparse.Namespace) -> Path:
    return options.cache_dir or default_cache_folder()
