"""Measures what a training forgets: runs the demo's training on the embedded base with prior
preservation, with regularization images, and with neither.

    python -m benchmarks.forgetting FOLDER    # about 4 minutes for each row on one core

A row is one training: how well the new concept is drawn, how many images of old prompts show the
cyan of its stem, which no old prompt asks for, how many of these images are still right, and how
far their pixels moved. The class prompts are not judged. FOLDER gets the LoRA of each row and its
images before and after.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.tasks import write_regularization_images
from trainers.commands.demo import PRIOR_PRESERVATION, SETTINGS
from trainers.commands.sdxl import train
from trainers.demo.before_after import NEW_PROMPTS, Comparison, compare, draw_grid
from trainers.demo.concept import IMAGES, STEM, TRIGGER_WORD
from trainers.embedded_base import write_embedded_checkpoint
from trainers.embedded_base.shared.scenes import is_near_colour
from trainers.sdxl.model.sdxl_model import load_model

ROWS: dict[str, dict[str, Any]] = {
    "neither": {},
    "prior 0.5, own captions": {"prior_loss_weight": 0.5},
    "prior 0.25, class prompts": {**PRIOR_PRESERVATION, "prior_loss_weight": 0.25},
    "prior 0.5, class prompts": PRIOR_PRESERVATION,
    "prior 1, class prompts": {**PRIOR_PRESERVATION, "prior_loss_weight": 1.0},
    "regularization images": {"regularization_weight": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=SETTINGS["max_train_steps"])
    parser.add_argument("--num-seeds", type=int, default=8, help="images per prompt (default: %(default)s)")
    options = parser.parse_args()
    base = options.folder / "base.safetensors"
    write_embedded_checkpoint(base)
    print(
        "| method | seed, steps | new concept | cyan in old prompts | old prompts right | drift | CPU time "
        "|\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name in options.rows:
        started_at = time.process_time()
        lora = _train(name, base, options)
        seconds = time.process_time() - started_at
        comparison = compare(load_model(base), lora, num_seeds=options.num_seeds, num_steps=20)
        draw_grid(comparison, num_seeds=options.num_seeds).save(lora.with_suffix(".png"))
        cells = _format_cells(comparison, options.num_seeds)
        print(f"| {name} | {options.seed}, {options.steps} | {cells} | {seconds:.0f} s |", flush=True)


def _train(name: str, base: Path, options: argparse.Namespace) -> Path:
    """Train one row and return the path of its LoRA."""
    changes = dict(ROWS[name])
    datasets: list[dict[str, Any]] = [{"images": str(IMAGES), "trigger_word": TRIGGER_WORD}]
    if loss_weight := changes.pop("regularization_weight", None):
        folder = options.folder / "regularization"
        write_regularization_images(folder)
        datasets.append({"images": str(folder), "is_regularization": True, "loss_weight": loss_weight})
    files = {
        "base": str(base),
        "output": f"{name}, seed {options.seed}, {options.steps} steps",
        "output_dir": str(options.folder),
        "cache_dir": str(options.folder / "cache"),
    }
    lora = train(
        {
            **SETTINGS,
            **changes,
            **files,
            "datasets": datasets,
            "seed": options.seed,
            "max_train_steps": options.steps,
            "device": "cpu",
        }
    )
    assert lora.path is not None
    return lora.path


def _format_cells(comparison: Comparison, num_seeds: int) -> str:
    """Format the cells of a row, each without and with the LoRA."""
    new = f"{comparison.fidelity_before:.2f} -> {comparison.fidelity_after:.2f}"
    cyan = " -> ".join(
        f"{_measure_cyan_share(images[len(NEW_PROMPTS) * num_seeds :]):.0%}"
        for images in (comparison.before, comparison.after)
    )
    right = f"{comparison.old_right_before:.0%} -> {comparison.old_right_after:.0%}"
    return f"{new} | {cyan} | {right} | {comparison.drift:.1f}"


def _measure_cyan_share(images: np.ndarray) -> float:
    """Return the share of images [N, height, width, 3] with a visible patch of cyan: half a percent
    of their pixels.
    """
    is_cyan = is_near_colour(images, STEM)
    return float((is_cyan.mean(axis=(1, 2)) > 0.005).mean())


if __name__ == "__main__":
    main()
