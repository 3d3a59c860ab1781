"""Train a LoRA for any model that ComfyUI loads, from a folder of images, without its server."""

import argparse
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from ..comfyui.find import PACK, Installation, NoComfyUI, find_comfyui
from ..dataset.bucket_config import BucketConfig
from ..dataset.caption_variants import CaptionConfig
from ..dataset.config import DatasetConfig
from ..flow.config import FlowConfig
from ..training.run_folder import RunFolder
from ..training.run_settings import RunSettings
from .settings import add_setting_flags, check_presets, read_dataset_configs, read_settings

SUMMARY = "train a LoRA for Z-Image, FLUX, Qwen-Image and the like, with ComfyUI's own classes"
CONFIGS = (DatasetConfig, FlowConfig, BucketConfig, CaptionConfig)
REQUIRED = ("images", "output")
MODEL_FILES = {
    "model": "file of the diffusion model (.safetensors)",
    "text_encoder": "files of its text encoders, with commas between them",
    "clip_type": "type of the text encoders, as in ComfyUI's CLIP loaders (default: the model's own)",
    "vae": "file of its VAE",
    "checkpoint": "instead of these: one checkpoint that holds all three",
}
# Runs this command again in ComfyUI's interpreter, where the pack has a name of its own: ComfyUI
# has a module `nodes` too, and must not find ours in the current folder. The nodes themselves are
# not imported: ComfyUI's device is chosen first.
THERE = "lora_trainer"
PROGRAM = f"""
import importlib, sys, types
sys.path[:] = [folder for folder in sys.path if folder]
for name, folder in (({THERE!r}, sys.argv[1]), ("{THERE}.nodes", sys.argv[1] + "/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
del sys.argv[1]
sys.exit(importlib.import_module("{THERE}.trainers.__main__").main_with_signals())
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser, CONFIGS, required=REQUIRED, without=("base", "base_dtype"))
    for name, help_text in MODEL_FILES.items():
        parser.add_argument("--" + name.replace("_", "-"), help=help_text)
    parser.add_argument(
        "--new-run", dest="resume", action="store_const", const="new", default=argparse.SUPPRESS, help="--resume new"
    )


def run(options: argparse.Namespace) -> int:
    """Check everything that needs no model here; the rest happens in ComfyUI's interpreter."""
    settings = read_settings(options, configs=CONFIGS, required=REQUIRED)
    files = {name: getattr(options, name) for name in MODEL_FILES if getattr(options, name)}
    check_files(files)
    read_dataset_configs(settings)
    RunSettings.read(FlowConfig, settings)
    check_presets(settings)
    RunFolder(Path(settings.get("output_dir", "output")), settings["output"]).require_writable()
    if __name__.startswith(THERE):
        import_module(f"{THERE}.nodes.host.flow_command").train({**settings, **files})
        return 0
    try:
        return _run_there(find_comfyui())
    except NoComfyUI as reason:
        raise ValueError(f"this command needs ComfyUI's classes: {reason}") from reason


def check_files(files: dict[str, str]) -> None:
    """Check that a whole model is named, and that its files are there.

    Raises:
        ValueError: it is not so.
    """
    parts = [name for name in ("model", "text_encoder", "vae") if name in files]
    if "checkpoint" in files and parts:
        raise ValueError(f"--checkpoint holds everything: leave --{parts[0].replace('_', '-')} out")
    missing = [name for name in ("model", "text_encoder", "vae") if name not in files]
    if "checkpoint" not in files and missing:
        names = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise ValueError(f"missing {names}. Or name a --checkpoint that holds all of it")
    for name, value in files.items():
        for path in split_files(value) if name != "clip_type" else []:
            if not path.is_file():
                raise ValueError(f"--{name.replace('_', '-')}: {path} is not a file")


def split_files(value: str) -> list[Path]:
    return [Path(part.strip()) for part in value.split(",")]


def _run_there(installation: Installation) -> int:
    print(f"Loading ComfyUI {installation.version} from {installation.folder} ...", file=sys.stderr)
    command = [str(installation.python), "-c", PROGRAM, str(PACK), *sys.argv[1:]]
    folders = [str(installation.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    if sys.platform == "win32":  # it has no exec that keeps the console
        return subprocess.run(command, check=False, env=environment).returncode
    os.execve(command[0], command, environment)
