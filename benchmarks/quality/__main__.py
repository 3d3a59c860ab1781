"""The quality bench: trains new concepts on the embedded SDXL, and scores what is learned and what
is damaged.

    python -m benchmarks.quality FOLDER                                 # the whole table
    python -m benchmarks.quality FOLDER --tasks toadstool --seeds 0     # one cell
    python -m benchmarks.quality FOLDER --only-table                    # what is done so far

A cell is one training: a contender (settings), a task and a seed. It is kept as one JSON file and
one sheet of images, and is not trained again. `concepts.py` and `tasks.py` say what is taught,
`scoring.py` what is measured.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainers.commands.demo import PRIOR_PRESERVATION, SETTINGS
from trainers.commands.sdxl import train
from trainers.embedded_base import write_embedded_checkpoint
from trainers.lora.modules import list_weighted_modules
from trainers.lora.read import read_lora
from trainers.sdxl.merge import merge_lora
from trainers.sdxl.model.sampling import sample_images
from trainers.sdxl.model.sdxl_model import SDXLModel, load_model
from trainers.sdxl.names import kohya_names

from .core import train_with_core
from .peers import Peer, train_with_diffusers, train_with_sd_scripts
from .scoring import Score, measure_drift, score
from .table import format_table
from .tasks import TASKS, TRIGGER_WORD, Task, write_images, write_regularization_images

SIZE_HW, SAMPLER_STEPS = (128, 128), 12
CONTENDERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "prior": PRIOR_PRESERVATION,
    "constant": {"lr_scheduler": "constant"},
    "no min-SNR": {"min_snr_gamma": 0.0},
    "rank 4": {"rank": 4, "alpha": 4.0},
    "alpha 8": {"alpha": 8.0},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "no caption dropout": {"caption_dropout": 0.0},
}

CORE = "core"  # ComfyUI's TrainLoraNode
PEERS = {"sd-scripts": train_with_sd_scripts, "diffusers": train_with_diffusers}


def main() -> None:
    options = _read_options()
    base = options.folder / "base.safetensors"
    if not base.exists():
        write_embedded_checkpoint(base)
    tasks = [task for task in TASKS if task.name in options.tasks]
    if not options.only_table:
        for seed in options.seeds:
            for task in tasks:
                for contender in options.contenders:
                    run_cell(contender, task, seed, options)
    print(format_table(options.folder, [task.name for task in tasks]))


def run_cell(contender: str, task: Task, seed: int, options: argparse.Namespace) -> None:
    """Train and score one cell, unless its file is there."""
    file = options.folder / f"{contender}, {task.name}, {options.steps} steps, {seed}.json"
    if file.exists():
        return
    started_at, base = _cpu_seconds(), options.folder / "base.safetensors"
    trained = _train(contender, task, seed, options)
    seconds = _cpu_seconds() - started_at
    before, again = _draw_before(task, base, options)
    model = load_model(trained if contender == CORE else base)
    if contender != CORE:
        _merge(model, trained)
    new = _draw(model, [prompt.text for prompt in task.list_new_prompts()], range(options.num_seeds))
    old = _draw(model, task.list_old_prompts(), range(options.num_seeds))
    result = score(task, new, old, before)
    _draw_sheet(np.concatenate([new, old]), options.num_seeds).save(file.with_suffix(".png"))
    cell = {
        "contender": contender,
        "task": task.name,
        "seed": seed,
        "steps": options.steps,
        "seconds": seconds,
        "reroll": measure_drift(again, before),
        **asdict(result),
        "total": result.total,
    }
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(cell, indent=1))
    partial.replace(file)
    print(_describe(cell, result), flush=True)


def _cpu_seconds() -> float:
    """Of this process and the programs that it has run."""
    return sum(os.times()[:4])


def _train(contender: str, task: Task, seed: int, options: argparse.Namespace) -> Path:
    """Return the LoRA; from core's node the whole model, as its file also has biases and norms."""
    images = options.folder / "images" / f"{task.name} {seed}"
    if not images.exists():
        write_images(task, images, seed=seed)
    base, work = options.folder / "base.safetensors", options.folder / "peers" / contender / f"{task.name} {seed}"
    if contender in (CORE, *PEERS):
        work.mkdir(parents=True, exist_ok=True)
    if contender == CORE:
        return train_with_core(base, images, work, steps=options.steps, seed=seed)
    if contender in PEERS:
        peer = Peer(*getattr(options, contender.replace("-", "_")))
        return PEERS[contender](peer, base, images, work, steps=options.steps, seed=seed)
    return _train_ours(contender, task, seed, images, options)


def _train_ours(contender: str, task: Task, seed: int, images: Path, options: argparse.Namespace) -> Path:
    datasets: list[dict[str, Any]] = [{"images": str(images), "trigger_word": TRIGGER_WORD}]
    if task.has_regularization:
        folder = options.folder / "images" / "regularization"
        write_regularization_images(folder)
        datasets.append({"images": str(folder), "is_regularization": True, "loss_weight": 1.0})
    files = {
        "base": str(options.folder / "base.safetensors"),
        "output": f"{contender}, {task.name}, {seed}",
        "output_dir": str(options.folder / "loras"),
        "cache_dir": str(options.folder / "cache"),
    }
    run = {"datasets": datasets, "seed": seed, "max_train_steps": options.steps, "device": "cpu"}
    lora = train({**SETTINGS, "validate_every_n_steps": -1, **CONTENDERS[contender], **files, **run})
    assert lora.path is not None
    return lora.path


def _draw_before(task: Task, base: Path, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Draw the old prompts without a LoRA, with the seeds of the score and with others; once."""
    files = [options.folder / f"before, {task.name}, {name}.npy" for name in ("same seeds", "other seeds")]
    if not all(file.exists() for file in files):
        model, num_seeds = load_model(base), options.num_seeds
        for file, seeds in zip(files, (range(num_seeds), range(100, 100 + num_seeds)), strict=True):
            np.save(file, _draw(model, task.list_old_prompts(), seeds))
    same, other = (np.load(file) for file in files)
    return same, other


def _draw(model: SDXLModel, prompts: list[str], seeds: range) -> np.ndarray:
    return sample_images(model, prompts, seeds=list(seeds), size_hw=SIZE_HW, num_steps=SAMPLER_STEPS)


def _merge(model: SDXLModel, lora: Path) -> None:
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    parts = {"unet": model.unet, "text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}
    merge_lora(read_lora(lora, kohya_names(*(list_weighted_modules(part) for part in parts.values()))), parts)


def _draw_sheet(images: np.ndarray, num_seeds: int) -> Image.Image:
    """Return all images as one, with a row for each prompt."""
    rows = [np.concatenate(list(images[start : start + num_seeds]), 1) for start in range(0, len(images), num_seeds)]
    return Image.fromarray(np.concatenate(rows))


def _describe(cell: dict[str, Any], result: Score) -> str:
    names = ("contender", "task", "seed")
    numbers = " ".join(f"{name} {value:.2f}" for name, value in asdict(result).items())
    return f"{', '.join(str(cell[name]) for name in names)}: {numbers} total {result.total:.2f} {cell['seconds']:.0f} s"


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    names = [task.name for task in TASKS]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS, CORE, *PEERS], default=["defaults"])
    for peer in PEERS:
        parser.add_argument(
            f"--{peer}", nargs=2, type=os.path.abspath, metavar=("CHECKOUT", "PYTHON"), help="needed for this contender"
        )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--num-seeds", type=int, default=4, help="images per prompt (default: %(default)s)")
    parser.add_argument("--only-table", action="store_true")
    options = parser.parse_args()
    for peer in set(options.contenders) & set(PEERS):
        if getattr(options, peer.replace("-", "_")) is None:
            parser.error(f"--{peer} must say where its checkout and its interpreter are")
    options.folder.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
