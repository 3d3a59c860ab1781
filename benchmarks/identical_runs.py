"""Checks that trainings are still bit for bit the same: record tiny runs before a refactoring, and
compare them after it.

    python benchmarks/identical_runs.py record before.json
    python benchmarks/identical_runs.py compare before.json

Every run uses the command line, so this program survives changes inside the trainer. It compares
the losses of all steps, the bytes of every tensor in the LoRA, its header without dates and hashes,
and the names in the run folder's manifest.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from safetensors import safe_open

from trainers.embedded_base import write_embedded_checkpoint

ROOT = Path(__file__).parents[1]
SIZES = ((64, 64), (64, 64), (96, 64), (96, 64), (64, 96), (128, 128))  # width, height
COMMON = [
    "--resolution",
    "64",
    "--bucket-reso-steps",
    "32",
    "--rank",
    "4",
    "--max-train-steps",
    "6",
    "--train-batch-size",
    "2",
]
COMMON += ["--learning-rate", "2e-3", "--save-dtype", "fp32", "--device", "cpu"]
RUNS: dict[str, list[str]] = {
    "default": [],
    "text encoders, LoRA dropout": [
        "--train-text-encoders",
        "--text-encoder-learning-rate",
        "1e-3",
        "--lora-dropout",
        "0.1",
    ],
    "masks and regularization": ["--config", "datasets.toml", "--normalize-masked-loss"],
    "prior preservation": ["--prior-loss-weight", "1", "--class-prompt", "a circle | a square"],
    "v-prediction, zero terminal SNR": [
        "--prediction-type",
        "v_prediction",
        "--zero-terminal-snr",
        "on",
        "--noise-offset",
        "0.05",
        "--random-flip",
    ],
    "accumulation, several buckets": [
        "--gradient-accumulation-steps",
        "3",
        "--extra-resolutions",
        "128",
        "--no-bucket-no-upscale",
    ],
    "fp16 with scaler": ["--mixed-precision", "fp16", "--no-gradient-checkpointing"],
    "two processes": ["--train-batch-size", "1"],
    "Adafactor, caption variants": [
        "--optimizer",
        "Adafactor",
        "--shuffle-captions",
        "--tag-dropout",
        "0.2",
        "--lr-scheduler",
        "linear",
    ],
    "AdamW8bit, convolutions, random crops": [
        "--optimizer",
        "AdamW8bit",
        "--target-modules",
        ".*",
        "--resize-mode",
        "random_crop",
    ],
    "checkpoints and samples": ["--save-every-n-steps", "2", "--sample-every-n-steps", "3", "--num-train-epochs", "2"],
}
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
]
LAUNCH += ["--dynamo_backend", "no", "--main_process_port", "0"]
# The base's hash is among them: safetensors writes the two entries of its header in either order.
DATES_AND_HASHES = (
    "sd_model_hash",
    "started_at",
    "finished_at",
    "modelspec.date",
    "sshs_",
    "modelspec.hash",
    "ss_output_name",
    "modelspec.title",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = record(Path(folder))
    if options.action == "record":
        options.file.write_text(json.dumps(results, indent=1))
        return
    differences = compare(json.loads(options.file.read_text()), results)
    print("\n".join(differences) or f"{len(results)} runs are identical")
    sys.exit(1 if differences else 0)


def record(folder: Path) -> dict[str, Any]:
    write_embedded_checkpoint(folder / "base.safetensors")
    draw_images(folder / "images")
    write_datasets(folder)
    return {name: train(folder, number, name, flags) for number, (name, flags) in enumerate(RUNS.items())}


def draw_images(folder: Path) -> None:
    folder.mkdir()
    for number, size in enumerate(SIZES):
        image = Image.new("RGB", size, ("#f0f0f0", "#202020", "#c0a080")[number % 3])
        ImageDraw.Draw(image).ellipse(
            (10, 12, size[0] - 9, size[1] - 14), fill=("#d02020", "#2040d0", "#20a040")[number // 2]
        )
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zwx, a circle, number {number}, plain background")


def write_datasets(folder: Path) -> None:
    shutil.copytree(folder / "images", folder / "masked")
    for number in (0, 3):
        mask = Image.new("L", SIZES[number], 0)
        ImageDraw.Draw(mask).ellipse((8, 8, 40, 50), fill=255)
        mask.save(folder / "masked" / f"{number}-masklabel.png")
    tables = (
        f'[[datasets]]\nimages = "{folder / "masked"}"\nnum_repeats = 2\n'
        f'[[datasets]]\nimages = "{folder / "images"}"\nis_regularization = true\nloss_weight = 0.5\n'
    )
    (folder / "datasets.toml").write_text(tables)


def train(folder: Path, number: int, name: str, flags: list[str]) -> dict[str, Any]:
    print(name, file=sys.stderr)
    output = f"run{number}"
    images = [] if "--config" in flags else ["--images", str(folder / "images")]
    command = [
        "-m",
        "trainers",
        "sdxl",
        "--base",
        str(folder / "base.safetensors"),
        "--output",
        output,
        *images,
        *COMMON,
        *flags,
    ]
    if name == "two processes":
        command = [*LAUNCH, *command[: -len(flags)], *flags]
        at = command.index("--device")
        del command[at : at + 2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    result = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name}: {result.stderr[-3000:]}")
    (run_folder,) = (folder / "output" / "runs").glob(f"{output}-*")
    return read_run(folder / "output" / f"{output}.safetensors", run_folder)


def read_run(lora: Path, run_folder: Path) -> dict[str, Any]:
    with safe_open(lora, "np") as file:
        tensors = {name: hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest() for name in file.keys()}  # noqa: SIM118
        header = {
            name: value for name, value in file.metadata().items() if not any(part in name for part in DATES_AND_HASHES)
        }
    rows = list(csv.DictReader((run_folder / "loss.csv").open()))
    manifest = json.loads((run_folder / "manifest.json").read_text())
    return {
        "losses": [row["loss"] for row in rows],
        "learning_rates": [row["learning_rate"] for row in rows],
        "tensors": tensors,
        "header": header,
        "manifest": {
            section: sorted(value) if isinstance(value, dict) else None for section, value in manifest.items()
        },
        "files": sorted(path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()),
    }


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return one line for each part of a run that differs."""
    lines = []
    for name, run in before.items():
        for part, values in run.items():
            if after[name][part] != values:
                lines.append(f"{name}: {part} differ: {_find_first_difference(values, after[name][part])}")
    return lines


def _find_first_difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        return next(
            f"{key}: {before.get(key)} -> {after.get(key)}"
            for key in {**before, **after}
            if before.get(key) != after.get(key)
        )
    return f"{before} -> {after}"


if __name__ == "__main__":
    main()
