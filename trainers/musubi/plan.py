"""Plans a training by Musubi Tuner before anything is written or started: the files to write and
the commands to run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..dataset.dataset import Dataset
from .architectures import MUSUBI_VERSION, Architecture, find_architecture
from .checks import (
    ModelFacts,
    check_disk_space,
    check_models,
    check_patterns,
    check_settings,
    collect_notices,
    has_musubi_names,
)
from .commands import (
    Command,
    TrainingFiles,
    build_base_weights_command,
    build_cache_arguments,
    build_cache_command,
    build_convert_command,
    build_train_command,
)
from .config import MusubiConfig, Recipe, resolve
from .dataset_folder import StagedDataset, stage
from .dataset_toml import GLOB_CHARACTERS, has_glob_characters
from .installation import Installation
from .own_dataset import has_control, stage_own
from .safetensors_header import read_header
from .sample_prompts import prompts_text, read_prompts
from .state_folder import read_steps_done


@dataclass(frozen=True)
class MusubiJob:
    """What to train: the name of a row of the table, the settings, and model files and options
    under the row's names ("dit": Path, "model_version": "edit-2511").

    chosen_resume: the state that the user chose, where config.resume is a copy of it.
    """

    architecture: str
    config: MusubiConfig
    models: Mapping[str, Path]
    options: Mapping[str, str]
    chosen_resume: str = ""


@dataclass(frozen=True)
class Plan:
    """The files and commands of one run. No file exists before `write`.

    - config: without open values.
    - commands: in order, "base_weights" (only if that adapter needs converting), "latents", "text",
      "train", "convert" (only if one of Musubi's scripts does it).
    - num_images: how many images each cache script must report ("found N images"), over all
      [[datasets]]; 0: unknown (videos).
    - num_items: samples per epoch, repeats included ("num train items"); 0: unknown.
    - cache_is_complete: the caches of exactly this dataset exist, so "latents" and "text" need not
      run. If they do run, staged.confirm_caches() then counts what they wrote.
    - output_name: of the raw files in output_dir. raw_path is the final one, converted_path the
      output of "convert", base_weights_path the output of "base_weights".
    - steps_before: steps of the resumed run (0: none). num_steps remain; Musubi counts them from 1.
    - notices: settings and images that are ignored or changed, by name.
    """

    architecture: Architecture
    config: MusubiConfig
    commands: tuple[Command, ...]
    staged: StagedDataset
    toml_path: Path
    prompts_text: str
    prompts_path: Path
    cache_is_complete: bool
    output_dir: Path
    output_name: str
    steps_before: int
    notices: tuple[str, ...] = ()

    @property
    def toml_text(self) -> str:
        return self.staged.toml_text

    @property
    def num_images(self) -> int:
        return self.staged.num_images

    @property
    def num_items(self) -> int:
        return self.staged.num_items

    @property
    def num_steps(self) -> int:
        return self.config.max_train_steps - self.steps_before

    @property
    def raw_path(self) -> Path:
        return self.output_dir / f"{self.output_name}.safetensors"

    @property
    def converted_path(self) -> Path:
        return self.output_dir / "converted" / f"{self.output_name}.safetensors"

    @property
    def base_weights_path(self) -> Path:
        return self.output_dir / "base_weights" / "base_weights.safetensors"

    def find_command(self, stage: str) -> Command | None:
        return next((command for command in self.commands if command.stage == stage), None)

    def write(self, *, check_interrupted: Callable[[], None] = lambda: None) -> None:
        """Link or copy the images, write captions, TOML and prompts, and create the folders that
        Musubi writes to.
        """
        for folder in (
            self.toml_path.parent,
            self.converted_path.parent,
            self.base_weights_path.parent,
            self.staged.cache_root,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self.staged.write(check_interrupted=check_interrupted)
        self.toml_path.write_text(self.toml_text, encoding="utf-8", newline="\n")
        if self.prompts_text:
            self.prompts_path.write_text(self.prompts_text, encoding="utf-8", newline="\n")

    def text(self) -> str:
        """Return the TOML and the shell-quoted command lines, for display."""
        parts = [f"# {self.toml_path}", self.toml_text]
        parts += [f"# {self.prompts_path}", self.prompts_text] if self.prompts_text else []
        for command in self.commands:
            skipped = self.cache_is_complete and command.stage in ("latents", "text")
            parts += [
                f"# {command.stage}" + (": not needed, the caches of an earlier run are complete" if skipped else ""),
                command.text() + "\n",
            ]
        parts += [f"# Note: {notice}" for notice in self.notices]
        return "\n".join(parts).rstrip() + "\n"


def make_plan(
    job: MusubiJob,
    dataset: Dataset | None,
    installation: Installation,
    run_path: Path,
    cache_root: Path,
    *,
    name: str,
    control: Dataset | None = None,
    dataset_toml: str = "",
) -> Plan:
    """Check everything and plan the run. Files are read, but none is written.

    `name` is that of the LoRA. The images are a dataset, with a second one of control images if the
    architecture takes them; or a user's own dataset.toml.

    Raises:
        ValueError: lists all problems, one per line, each with its remedy.
        RuntimeError: an image has changed since it was checked.
    """
    run_path, cache_root = _make_absolute(run_path), _make_absolute(cache_root)
    recipe, facts = _make_recipe(job)
    problems = _check_inputs(dataset, control, dataset_toml, cache_root)
    shows_control = (
        control is not None
        or any(image.control_images for image in (dataset.images if dataset else ()))
        or (bool(dataset_toml) and has_control(dataset_toml, resolution_step=recipe.architecture.resolution_step))
    )
    problems += check_settings(recipe, dit_dtype=facts.dit_dtype, has_control=shows_control)
    problems += check_patterns(recipe.config, facts)
    staged, dataset_problems = _try_to_stage(recipe, dataset, control, dataset_toml, installation, run_path, cache_root)
    problems += dataset_problems
    if staged is None or problems:
        raise ValueError("\n".join(problems))
    notices = (*_check_version(installation), *collect_notices(recipe, job.config), *staged.notices)
    plan = _build_plan(recipe, staged, installation, run_path, name=name, has_control=shows_control, notices=notices)
    _require_disk_space(plan, facts, run_path)
    return plan


def _make_recipe(job: MusubiJob) -> tuple[Recipe, ModelFacts]:
    """Check files and options, and fill in the open settings. Raises ValueError with all
    problems.
    """
    architecture = find_architecture(job.architecture)
    models = {name: _make_absolute(path) for name, path in job.models.items()}
    facts, problems = check_models(architecture, models, job.options)
    if problems:  # with wrong files or options, the settings cannot be judged
        raise ValueError("\n".join(problems))
    config = resolve(_make_paths_absolute(job.config), architecture, dit_dtype=facts.dit_dtype)
    return Recipe(architecture, config, models, job.options), facts


def _check_version(installation: Installation) -> tuple[str, ...]:
    if installation.version == MUSUBI_VERSION:
        return ()
    return (
        f"Musubi Tuner {installation.version} is installed. This pack was made for {MUSUBI_VERSION}; other versions "
        "may work differently",
    )


def _make_absolute(path: Path | str) -> Path:
    """Make the path absolute: Musubi runs in its own folder, where a relative path would name
    another file.
    """
    return Path(path).expanduser().absolute()


def _make_paths_absolute(config: MusubiConfig) -> MusubiConfig:
    paths = {name: getattr(config, name) for name in ("network_weights", "base_weights", "resume")}
    return replace(config, **{name: str(_make_absolute(path)) for name, path in paths.items() if path})


def _check_inputs(dataset: Dataset | None, control: Dataset | None, dataset_toml: str, cache_root: Path) -> list[str]:
    problems: list[str] = []
    if (dataset is None) == (not dataset_toml.strip()):
        problems.append(
            "give either a dataset or a dataset_toml, not both"
            if dataset_toml.strip()
            else "no images: give a dataset, or a dataset_toml"
        )
    if control is not None and dataset_toml.strip():
        problems.append(
            "a dataset_toml names its control images itself, as control_directory. Disconnect the control dataset"
        )
    if has_glob_characters(cache_root):
        problems.append(
            f"cache folder {cache_root}: with one of {' '.join(GLOB_CHARACTERS)} in its name, Musubi Tuner would not "
            "find its caches. Choose another"
        )
    return problems


def _try_to_stage(
    recipe: Recipe,
    dataset: Dataset | None,
    control: Dataset | None,
    dataset_toml: str,
    installation: Installation,
    run_path: Path,
    cache_root: Path,
) -> tuple[StagedDataset | None, list[str]]:
    """Plan the dataset's files. Return them, or what is wrong with the dataset."""
    facts = _collect_cache_facts(recipe, installation)
    try:
        if dataset is not None:
            return stage(
                dataset, control, run_path / "dataset", recipe=recipe, cache_root=cache_root, cache_facts=facts
            ), []
        return (
            (stage_own(dataset_toml, recipe=recipe, cache_root=cache_root, cache_facts=facts), [])
            if dataset_toml.strip()
            else (None, [])
        )
    except ValueError as error:
        return None, [str(error)]


def _collect_cache_facts(recipe: Recipe, installation: Installation) -> dict[str, Any]:
    """Return everything that decides what the cache scripts write: their arguments, and the files
    that these name.
    """
    used = [
        file.name
        for file in recipe.architecture.models
        if file.name in recipe.models and {"latents", "text"} & set(file.stages)
    ]
    statuses = [recipe.models[name].stat() for name in used]
    return {
        "architecture": recipe.architecture.name,
        "musubi_version": installation.version,
        "arguments": [build_cache_arguments(recipe, stage) for stage in ("latents", "text")],
        "files": [[status.st_size, status.st_mtime_ns] for status in statuses],
    }


def _build_plan(
    recipe: Recipe,
    staged: StagedDataset,
    installation: Installation,
    run_path: Path,
    *,
    name: str,
    has_control: bool,
    notices: tuple[str, ...],
) -> Plan:
    resume = recipe.config.resume
    steps_before = (read_steps_done(Path(resume)) or 0) if resume else 0
    plan = Plan(
        recipe.architecture,
        recipe.config,
        commands=(),
        staged=staged,
        toml_path=run_path / "dataset.toml",
        prompts_text=_build_prompts_text(recipe, staged),
        prompts_path=run_path / "sample_prompts.json",
        cache_is_complete=staged.caches_are_complete(),
        output_dir=run_path / "musubi",
        # A resumed run counts from 0 again: under the old name it would overwrite the checkpoints
        # of the run that it continues.
        output_name=f"{name}-after{steps_before:08d}" if steps_before else name,
        steps_before=steps_before,
        notices=notices,
    )
    return replace(plan, commands=_build_commands(plan, recipe, installation, has_control=has_control))


def _build_commands(
    plan: Plan, recipe: Recipe, installation: Installation, *, has_control: bool
) -> tuple[Command, ...]:
    config, base_weights = recipe.config, None
    if config.base_weights and not has_musubi_names(read_header(Path(config.base_weights))):
        base_weights = build_base_weights_command(
            Path(config.base_weights), plan.base_weights_path, installation=installation
        )
        recipe = replace(recipe, config=replace(config, base_weights=str(plan.base_weights_path)))
    files = TrainingFiles(
        plan.toml_path, plan.output_dir, plan.output_name, plan.prompts_path if plan.prompts_text else None
    )
    commands = (
        base_weights,
        build_cache_command(recipe, "latents", dataset_toml=plan.toml_path, installation=installation),
        build_cache_command(recipe, "text", dataset_toml=plan.toml_path, installation=installation),
        build_train_command(
            recipe, files, has_control=has_control, steps_before=plan.steps_before, installation=installation
        ),
        build_convert_command(recipe.architecture, plan.raw_path, plan.converted_path, installation=installation),
    )
    return tuple(command for command in commands if command)


def _build_prompts_text(recipe: Recipe, staged: StagedDataset) -> str:
    config = recipe.config
    if not config.sample_every_n_steps:
        return ""
    if not staged.groups:
        if not config.sample_prompts.strip():
            raise ValueError(
                "sample_every_n_steps is set, but sample_prompts is empty. Write a prompt, or set "
                "sample_every_n_steps to 0"
            )
        return prompts_text(read_prompts(config, first_caption=""))
    group = staged.groups[0]
    first = group.images[0]
    controls = [group.control_folder / control.name for control in first.controls if group.control_folder]
    return prompts_text(read_prompts(config, first_caption=first.caption, control_images=controls))


def _require_disk_space(plan: Plan, facts: ModelFacts, run_path: Path) -> None:
    problems = check_disk_space(
        plan.config,
        facts,
        num_images=plan.num_images,
        cache_root=plan.staged.cache_root,
        run_path=run_path,
        caches_are_complete=plan.cache_is_complete,
        steps_before=plan.steps_before,
    )
    if problems:
        raise ValueError("\n".join(problems))
