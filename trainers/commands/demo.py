"""Train a LoRA on an embedded base model from twelve images, and show what it learned. No GPU, no
download.

If it finds a ComfyUI, its server runs the prompt in example_workflows/api. If not, the training
core runs alone; a Z-Image needs ComfyUI.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..comfyui.find import Installation
    from ..demo.before_after import Comparison
    from ..training.trained_lora import TrainedLora

SUMMARY = "train and judge a small LoRA on an embedded base model (three minutes on two cores)"
SDXL, Z_IMAGE = "sdxl", "z-image"
NUM_SEEDS = 4
# What must not change. The demo judges other colours and backgrounds of these shapes.
CLASS_PROMPTS = (
    "a green circle on a black background",
    "a yellow square on a white background",
    "a red star on a grey background",
    "an orange triangle on a white background",
    "a blue cross on a beige background",
    "a purple ring on a grey background",
)
# Different from the defaults: the base models draw 128 x 128 pixels, and are so small that they
# need a high learning rate.
SETTINGS = {
    "resolution": 128,
    "bucket_reso_steps": 32,
    "learning_rate": 2e-3,
    "train_batch_size": 4,
    "max_train_steps": 500,
    "gradient_checkpointing": False,
    "save_dtype": "fp32",
}
PRIOR_PRESERVATION = {"prior_loss_weight": 0.5, "class_prompt": "|".join(CLASS_PROMPTS)}
Z_IMAGE_SETTINGS = {
    "resolution": 128,
    "bucket_reso_steps": 32,
    "rank": 16,
    "alpha": 16.0,
    "learning_rate": 2e-3,
    "train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": "off",
    "optimizer": "AdamW",
    "max_train_steps": 300,
    "save_dtype": "fp32",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        choices=(SDXL, Z_IMAGE),
        default=SDXL,
        help="the embedded base model to train on (default: %(default)s)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("demo_output"),
        help="folder for everything the demo writes (default: demo_output)",
    )
    parser.add_argument("--core", action="store_true", help="use the training core alone, even if a ComfyUI is found")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"optimizer steps (default: {SETTINGS['max_train_steps']}; for {Z_IMAGE} "
        f"{Z_IMAGE_SETTINGS['max_train_steps']})",
    )


def run(options: argparse.Namespace) -> int:
    started_at = time.monotonic()
    folder = options.output_dir / time.strftime("%Y%m%d-%H%M%S")
    if options.model == Z_IMAGE:
        _run_z_image(options, folder)
    else:
        _run_sdxl(options, folder)
    print(f"Time                {time.monotonic() - started_at:.0f} s")
    return 0


def _run_sdxl(options: argparse.Namespace, folder: Path) -> None:
    from ..comfyui.find import NoComfyUI, find_comfyui

    try:
        installation = None if options.core else find_comfyui()
    except NoComfyUI as reason:
        print(f"Using the training core without ComfyUI: {reason}\n", file=sys.stderr)
        installation = None
    if installation is None:
        _run_core(options, folder)
    else:
        _run_in_comfyui(installation, options, folder)


def _run_z_image(options: argparse.Namespace, folder: Path) -> None:
    """
    Raises:
        ValueError: there is no ComfyUI, whose classes the training needs.
    """
    from ..comfyui.find import NoComfyUI, find_comfyui
    from ..demo.z_image import run_z_image_demo

    if options.core:
        raise ValueError("--core trains without ComfyUI, but a Z-Image needs its classes: leave --core out")
    try:
        installation = find_comfyui()
    except NoComfyUI as reason:
        raise ValueError(f"the demo on a Z-Image needs ComfyUI: {reason}") from reason
    settings = apply_steps(Z_IMAGE_SETTINGS, options.steps)
    demo = run_z_image_demo(installation, folder, settings=settings, num_seeds=NUM_SEEDS)
    print(
        f"""
The LoRA            {demo.lora}
Before and after    {demo.before_after}
Loss curve          {demo.run_folder / "loss.png"}
Dataset report      {demo.run_folder / "dataset.txt"}
ComfyUI's folders   {folder / "comfyui"}
"""
    )
    _print_comparison(demo.comparison)


def apply_steps(settings: dict[str, Any], steps: int | None) -> dict[str, Any]:
    return settings if steps is None else {**settings, "max_train_steps": steps}


def _run_in_comfyui(installation: "Installation", options: argparse.Namespace, folder: Path) -> None:
    from ..demo.concept import TRIGGER_WORD
    from ..demo.in_comfyui import run_demo

    demo = run_demo(
        installation,
        folder,
        settings=apply_steps({**SETTINGS, **PRIOR_PRESERVATION}, options.steps),
        num_seeds=NUM_SEEDS,
    )
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
            **apply_steps({**SETTINGS, **PRIOR_PRESERVATION}, options.steps),
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
    from tqdm import tqdm

    from ..demo.before_after import compare, count_compare_steps, draw_grid
    from ..files.atomic_write import atomic_write
    from ..sdxl.model.sdxl_model import load_model

    assert lora.path is not None
    print("Sampling the same seeds without and with the LoRA ...", file=sys.stderr)
    with tqdm(total=count_compare_steps(NUM_SEEDS), desc="sampling", dynamic_ncols=True) as bar:
        comparison = compare(load_model(base), lora.path, num_seeds=NUM_SEEDS, on_step=bar.update)
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
"""
    )
    _print_comparison(comparison)


def _print_comparison(comparison: "Comparison") -> None:
    from ..demo.concept import TRIGGER_WORD

    fidelity = f"{comparison.fidelity_before:.2f} -> {comparison.fidelity_after:.2f}"
    print(
        f"""New concept         fidelity {fidelity} (1.0: perfect)
                    for prompts with "{TRIGGER_WORD}"
Old prompts         {comparison.old_right_before:.0%} right -> {comparison.old_right_after:.0%} right,
                    mean pixel change {comparison.drift:.1f} of 255"""
    )
