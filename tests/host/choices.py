"""The choices of a node's lists that are the same on every machine."""

from typing import Any

from trainers.musubi.architectures import ARCHITECTURES
from trainers.training.resume.choose_run import AUTO, NEW

NO_CHOICE = "[None]"  # the first entry of lists of files on this machine
OF_COMFYUI = {"sampler_name", "scheduler", "sample_sampler", "sample_scheduler"}  # each version has its own
# these list files on this machine too
MODEL_FILES = {file.name for architecture in ARCHITECTURES.values() for file in architecture.models}


def list_stable_choices(name: str, options: dict[str, Any]) -> list[str]:
    """Leave out files and runs, which each machine has its own of."""
    choices = options.get("options", [])
    if name in OF_COMFYUI or name in MODEL_FILES:
        return []
    if NO_CHOICE in choices:
        return [NO_CHOICE]
    return choices[:2] if choices[:2] == [AUTO, NEW] else choices
