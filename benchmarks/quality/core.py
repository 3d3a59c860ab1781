"""Trains a task of the quality bench with core's TrainLoraNode, on squares of one size: with mixed
sizes ComfyUI 0.33 trains on latents that are not scaled.
"""

import json
import os
import subprocess
from pathlib import Path

from tests.host.conftest import PREAMBLE
from trainers.comfyui.find import PACK, find_comfyui

SCRIPT = PACK / "tests" / "host" / "scripts" / "quality_core.py"
SIDE = 128
SETTINGS = {
    "batch_size": 4,
    "grad_accumulation_steps": 1,
    "learning_rate": 2e-3,
    "rank": 16,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": False,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}


def train_with_core(base: Path, images: Path, work: Path, *, steps: int, seed: int) -> Path:
    """Return the base with the LoRA in its UNet.

    Raises:
        RuntimeError: with the end of the output, if the training fails.
    """
    comfyui, result, log = find_comfyui(), work / "trained.safetensors", work / "log.txt"
    settings = json.dumps({**SETTINGS, "steps": steps, "seed": seed})
    arguments = [str(PACK), str(base), str(images), str(result), str(SIDE), settings]
    command = [str(comfyui.python), "-c", PREAMBLE + SCRIPT.read_text(encoding="utf-8"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(comfyui.folder), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        done = subprocess.run(
            command, check=False, cwd=comfyui.folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise RuntimeError(f"core's node failed:\n{log.read_text(errors='replace')[-4000:]}")
    return result
