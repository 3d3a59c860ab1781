"""Runs a script in the ComfyUI checkout that is found, with its own interpreter; skips, saying what is missing, where there is none."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

COMFYUI = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
PREAMBLE = """
import torch
from comfy.cli_args import args

args.cpu = True
try:
    import torchvision
except RuntimeError:  # PyPI's torchvision beside the CPU build of torch: its operators do not load, but declared they let it be imported
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


@pytest.fixture(scope="session")
def run_in_comfyui() -> Callable[..., str]:
    """run(script, *arguments) gives what the script prints; ComfyUI's modules are importable in it, on the CPU."""
    interpreter = _interpreter()

    def run(script: str, *arguments: object) -> str:
        command = [str(interpreter), "-c", PREAMBLE + script, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(COMFYUI), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, check=False, cwd=COMFYUI, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


def _interpreter() -> Path:
    if not (COMFYUI / "comfy" / "lora.py").is_file():
        pytest.skip(f"no ComfyUI checkout at {COMFYUI}: set COMFYUI_DIR")
    chosen = os.environ.get("COMFYUI_PYTHON")
    places = [COMFYUI / folder / interpreter for folder in ("venv", ".venv") for interpreter in ("bin/python", "Scripts/python.exe")]
    found = [Path(chosen)] if chosen else [place for place in places if place.exists()]
    if not found:
        pytest.skip(f"{COMFYUI} has no interpreter of its own (venv or .venv): set COMFYUI_PYTHON")
    return found[0]
