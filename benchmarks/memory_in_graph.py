"""Measures how much memory a training adds to a ComfyUI server with the full-size model loaded: our
trainer and core's TrainLoraNode.

Both train two steps at 256 pixels on the same random SDXL, rank 16, with gradient checkpointing,
each on a fresh server on the CPU with --bf16-unet, so that two copies of the model fit into 24 GB.
Linux only: the peak is read from /proc.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from trainers.comfyui.find import PACK, find_comfyui
from trainers.comfyui.server import ComfyServer, prepare_base_directory

from .random_sdxl import write_random_sdxl

GIB = 2**30
LOADED = {
    "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "random_sdxl.safetensors"}},
    "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": "a thing"}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
    "sampler": {
        "class_type": "KSampler",
        "inputs": {
            **{"model": ["base", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["latent", 0]},
            **{"seed": 0, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
        },
    },
    "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["base", 2]}},
    "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
}
OURS = {
    "pictures": {"class_type": "LoRATrainer_LoadImages", "inputs": {"folder": "things", "trigger_word": "thing"}},
    "train": {
        "class_type": "LoRATrainer_LoRATrainSDXL",
        "inputs": {
            **{"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["pictures", 0]},
            **{
                "resolution": 256,
                "max_train_steps": 2,
                "train_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "optimizer": "AdamW",
            },
            "gradient_checkpointing": "on",
        },
    },
    "sink": {"class_type": "PreviewAny", "inputs": {"source": ["train", 4]}},
}
CORE = {
    "pictures": {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": "things"}},
    "dataset": {
        "class_type": "MakeTrainingDataset",
        "inputs": {"images": ["pictures", 0], "vae": ["base", 2], "clip": ["base", 1], "texts": "thing"},
    },
    "train": {
        "class_type": "TrainLoraNode",
        "inputs": {
            **{
                "model": ["base", 0],
                "latents": ["dataset", 0],
                "positive": ["dataset", 1],
                "batch_size": 1,
                "grad_accumulation_steps": 1,
                "steps": 2,
            },
            **{
                "learning_rate": 1e-4,
                "rank": 16,
                "optimizer": "AdamW",
                "loss_function": "MSE",
                "seed": 0,
                "training_dtype": "bf16",
                "lora_dtype": "fp32",
            },
            **{
                "quantized_backward": False,
                "algorithm": "LoRA",
                "gradient_checkpointing": True,
                "checkpoint_depth": 2,
                "offloading": False,
            },
            **{"existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False},
        },
    },
    "sink": {"class_type": "PreviewAny", "inputs": {"source": ["train", 2]}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder for the model and the servers' files; the model is kept")
    parser.add_argument("--flags", nargs="*", default=["--bf16-unet"], help="ComfyUI's flags (default: --bf16-unet)")
    parser.add_argument("--only", choices=("ours", "core"))
    options = parser.parse_args()
    prepare(options.folder)
    print("trainer   loaded GB   peak GB   added GB   seconds")
    for name, prompt in {"ours": OURS, "core": CORE}.items():
        if options.only in (None, name):
            loaded, peak, seconds = measure(
                options.folder, prompt, name, [flag if flag.startswith("--") else f"--{flag}" for flag in options.flags]
            )
            print(f"{name:8} {loaded / GIB:10.2f} {peak / GIB:9.2f} {(peak - loaded) / GIB:10.2f} {seconds:9.0f}")


def prepare(folder: Path) -> None:
    checkpoint = folder / "models" / "checkpoints" / "random_sdxl.safetensors"
    if not checkpoint.exists():
        prepare_base_directory(folder, {"ComfyUI-LoRA-Trainer": PACK})
        write_random_sdxl(checkpoint)
    images = folder / "input" / "things"
    images.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(("#c03030", "#3060c0")):
        Image.new("RGB", (256, 256), colour).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text("thing")


def measure(folder: Path, prompt: dict[str, Any], name: str, flags: list[str]) -> tuple[int, int, float]:
    """Return the resident bytes with the model loaded and used, their peak in training, and the
    seconds of the training.
    """
    with ComfyServer(
        find_comfyui(), base_directory=folder, log=folder / f"{name}.log", cpu=True, flags=flags
    ) as server:
        server.client.run(LOADED)
        process = Path("/proc") / str(server.process_id)
        loaded = _read_memory(process, "VmRSS")
        (process / "clear_refs").write_text("5")  # resets the peak
        started_at = time.monotonic()
        server.client.run({**LOADED, **prompt})
        return loaded, _read_memory(process, "VmHWM"), time.monotonic() - started_at


def _read_memory(process: Path, field: str) -> int:
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
