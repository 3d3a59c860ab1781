"""Train a LoRA on the embedded base model from twelve images, and show what it learned. No GPU, no
download.

If it finds a ComfyUI, its server runs the prompt in example_workflows/api. If not, the training
core runs alone.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..comfyui.find import Installation
    from ..training.trained_lora import TrainedLora

SUMMARY = "train and judge a small LoRA on the embedded base model (three minutes on two cores)"
NUM_SEEDS = 4
# Different from the defaults: the base model draws 128 x 128 pixels, and is so small that it needs
# a high learning rate.
SETTINGS = {
    "resolution": 128,
    "bucket_reso_steps": 32,
    "learning_rate": 2e-3,
    "train_batch_size": 4,
    "max_train_steps": 500,
    "gradient_checkpointing": False,
    "save_dtype": "fp32",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("demo_output"),
        help="folder for everything the demo writes (default: demo_output)",
    )
    parser.add_argument("--core", action="store_true", help="use the training core alone, even if a ComfyUI is found")
    parser.add_argument(
        "--steps", type=int, default=SETTINGS["max_train_steps"], help="optimizer steps (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    from ..comfyui.find import NoComfyUI, find_comfyui

    started_at = time.monotonic()
    folder = options.output_dir / time.strftime("%Y%m%d-%H%M%S")
    try:
        installation = None if options.core else find_comfyui()
    except NoComfyUI as reason:
        print(f"Using the training core without ComfyUI: {reason}\n", file=sys.stderr)
        installation = None
    if installation is None:
        _run_core(options, folder)
    else:
        _run_in_comfyui(installation, options, folder)
    print(f"Time                {time.monotonic() - started_at:.0f} s")
    return 0


def _run_in_comfyui(installation: "Installation", options: argparse.Namespace, folder: Path) -> None:
    from ..demo.concept import TRIGGER_WORD
    from ..demo.in_comfyui import run_demo

    demo = run_demo(installation, folder, settings={**SETTINGS, "max_train_steps": options.steps}, num_seeds=NUM_SEEDS)
    print(
        f"""
The LoRA            {demo.lora}
Before and after    {demo.before_after}
Loss curve          {demo.run_folder / "loss.png"}
Dataset report      {demo.run_folder / "dataset.txt"}
ComfyUI's folders   {folder / "comfyui"}

New concept         fidelity {demo.fidelity_before:.2f} -> {demo.fidelity_after:.2f} (1.0: a perfect drawing)
                    for a prompt with the word {TRIGGER_WORD}"""
    )


def _run_core(options: argparse.Namespace, folder: Path) -> None:
    from ..demo.concept import IMAGES, TRIGGER_WORD
    from ..embedded_base import write_embedded_checkpoint
    from .sdxl import train

    base = folder / "embedded_base.safetensors"
    write_embedded_checkpoint(base)
    lora = train(
        {
            **SETTINGS,
            "max_train_steps": options.steps,
            "images": str(IMAGES),
            "trigger_word": TRIGGER_WORD,
            "base": str(base),
            "output": "toadstool",
            "output_dir": str(folder),
            "cache_dir": str(options.output_dir / "cache"),
        }
    )
    _show_core_result(base, lora, folder)


def _show_core_result(base: Path, lora: "TrainedLora", folder: Path) -> None:
    from PIL import Image

    from ..demo.before_after import compare, draw_grid
    from ..demo.concept import TRIGGER_WORD
    from ..files.atomic_write import atomic_write
    from ..sdxl.model.sdxl_model import load_model

    assert lora.path is not None
    print("Sampling the same seeds without and with the LoRA ...", file=sys.stderr)
    comparison = compare(load_model(base), lora.path, num_seeds=NUM_SEEDS)
    grid: Image.Image = draw_grid(comparison, num_seeds=NUM_SEEDS)
    with atomic_write(folder / "before_after.png") as temporary:
        grid.save(temporary, format="PNG")
    (run_folder,) = (folder / "runs").iterdir()
    print(
        f"""
The LoRA            {lora.path}
Before and after    {folder / "before_after.png"}
Loss curve          {run_folder / "loss.png"}
Dataset report      {run_folder / "dataset.txt"}
Base model          {base}

New concept         fidelity {comparison.fidelity_before:.2f} -> {comparison.fidelity_after:.2f} (1.0: perfect)
                    for prompts with "{TRIGGER_WORD}"
Old prompts         {comparison.old_right_before:.0%} right -> {comparison.old_right_after:.0%} right,
                    mean pixel change {comparison.drift:.1f} of 255"""
    )
