"""What is on this machine, and what is missing of it for the whole check."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from trainers.comfyui.find import Installation, NoComfyUI, find_comfyui
from trainers.training.optimizer_table import OPTIMIZERS
from trainers.wording import format_gigabytes

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "aiohttp")
FLORENCE2 = Path(__file__).parents[2] / "tests" / "data" / "tiny_florence2"
CHECKPOINT_BYTES = 7 * 2**30  # the full-size model as a file, for ComfyUI


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what a reader of the numbers must know."""
    facts: dict[str, Any] = {
        "device": str(device),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": ", ".join(f"{name} {_find_version(name)}" for name in (*PACKAGES, *list_optimizer_packages())),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "GPU": properties.name,
            "memory": format_gigabytes(properties.total_memory),
            "compute capability": f"{properties.major}.{properties.minor}",
            "CUDA": torch.version.cuda,
            "driver": _read_driver_version(),
        }
    return facts


def list_missing(device: torch.device, out: Path, no_comfyui: str) -> Iterator[str]:
    """Say which packages and files are missing, and what is left out without them."""
    if device.type == "cuda" and not torch.version.cuda and not torch.version.hip:
        yield "this torch has no CUDA: install the wheel of torch for the driver's CUDA"
    for name in PACKAGES:
        if _find_version(name) == "-":
            yield f"package {name}: nothing runs without it"
    for name in list_optimizer_packages():
        if _find_version(name) == "-":
            yield f"package {name}: its optimizer is not checked"
    if no_comfyui:
        yield f"ComfyUI: its memory modes are not checked ({no_comfyui})"
    elif shutil.disk_usage(out).free < CHECKPOINT_BYTES:
        yield f"{format_gigabytes(CHECKPOINT_BYTES)} of disk in {out}: ComfyUI's memory modes need them"
    if not FLORENCE2.is_dir():
        yield f"{FLORENCE2}: the captioner is not checked"
    if device.type == "cuda" and not torch.distributed.is_nccl_available():
        yield "NCCL in this torch: a process group on the device is not checked"


def list_optimizer_packages() -> list[str]:
    return sorted({row.package for row in OPTIMIZERS.values()} - set(PACKAGES))


def find_installation() -> tuple[Installation | None, str]:
    """Return ComfyUI, or why there is none."""
    try:
        return find_comfyui(), ""
    except NoComfyUI as reason:
        return None, str(reason)


def _find_version(package: str) -> str:
    """Return the installed version; "-": there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "installed" if util.find_spec(package.replace("-", "_")) else "-"


def _read_driver_version() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown: no nvidia-smi"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30).stdout.strip()
