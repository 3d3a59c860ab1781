"""Compares what LoRAs learn and forget on the embedded Z-Image: with our settings for flow
matching, and trained by Musubi Tuner.

Each cell is one training with one seed; its file in the folder is not made again. Musubi Tuner runs
unmodified, with the sizes in its code replaced (tests/musubi/shim), as it knows only the real
model. Everything is on the CPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tests.host.conftest import PREAMBLE
from trainers.comfyui.find import PACK, find_comfyui
from trainers.demo.concept import IMAGES, TRIGGER_WORD
from trainers.embedded_base import write_embedded_z_image

SCRIPT = PACK / "tests" / "host" / "scripts" / "flow_quality.py"
BATCH_SIZE, NUM_IMAGES = 4, 4  # images of a step; images drawn of each prompt
COMMON = {
    "resolution": 128,
    "bucket_reso_steps": 32,
    "trigger_word": TRIGGER_WORD,
    "train_batch_size": BATCH_SIZE,
    "gradient_accumulation_steps": 1,
    "optimizer": "AdamW",
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "caption_dropout": 0.0,
    "save_dtype": "fp32",
}
RATE = 2e-3


@dataclass(frozen=True)
class Contender:
    """Settings that differ from the row of Z-Image in the table of families: rank 32, learning rate
    1e-4, sigmoid, shift 2. Musubi's recommendation is the same.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_musubi: bool = False


CONTENDERS = (
    Contender("the row's defaults"),
    Contender("learning rate 1e-3", {"learning_rate": 1e-3}),
    Contender("learning rate 2e-3", {"learning_rate": RATE}),
    Contender("learning rate 2e-3, uniform", {"learning_rate": RATE, "timestep_sampling": "uniform"}),
    Contender(
        "learning rate 2e-3, logit_normal around 1",
        {"learning_rate": RATE, "timestep_sampling": "logit_normal", "logit_mean": 1.0},
    ),
    Contender("learning rate 2e-3, shift 1", {"learning_rate": RATE, "discrete_flow_shift": 1.0}),
    Contender("learning rate 2e-3, shift 3", {"learning_rate": RATE, "discrete_flow_shift": 3.0}),
    Contender("learning rate 2e-3, rank 16", {"learning_rate": RATE, "rank": 16, "alpha": 16.0}),
    Contender("Musubi Tuner's defaults", is_musubi=True),
    Contender("Musubi Tuner, learning rate 2e-3", {"learning_rate": RATE}, is_musubi=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the LoRAs and the numbers")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of 4 images")
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--only", help="contenders with this in their names")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and train nothing")
    options = parser.parse_args()
    folder, contenders = options.folder.absolute(), [each for each in CONTENDERS if (options.only or "") in each.name]
    cells = [Cell(folder, each, seed, options.steps) for seed in range(options.num_seeds) for each in contenders]
    if not options.table:
        run([cell for cell in cells if not cell.numbers.is_file()], folder)
    print_table(cells)


@dataclass(frozen=True)
class Cell:
    folder: Path
    contender: Contender
    seed: int
    steps: int

    @property
    def name(self) -> str:
        words = "".join(letter if letter.isalnum() else "_" for letter in self.contender.name)
        return f"{words}-{self.steps}-seed{self.seed}"

    @property
    def lora(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def numbers(self) -> Path:
        return self.folder / f"{self.name}.json"


def run(cells: list[Cell], folder: Path) -> None:
    models = folder / "models"
    if not models.is_dir():
        write_embedded_z_image(models)
    with _comfyui(models) as ask:
        for cell in cells:
            settings = None
            if cell.contender.is_musubi:
                from .flow_quality_musubi import train

                train(cell.lora, cell.contender.settings, COMMON, seed=cell.seed, steps=cell.steps, models=models)
            else:
                settings = {**COMMON, **cell.contender.settings, "seed": cell.seed, "max_train_steps": cell.steps}
            found = ask({"lora": str(cell.lora), "settings": settings})
            cell.numbers.write_text(json.dumps(found))
            print(cell.name, json.dumps(found), flush=True)


@contextmanager
def _comfyui(models: Path) -> Iterator[Callable[[dict[str, Any]], dict[str, float]]]:
    """Start a process in ComfyUI's interpreter that does one job after the other."""
    comfyui = find_comfyui()
    arguments = [str(PACK), str(models), str(IMAGES), str(NUM_IMAGES)]
    command = [str(comfyui.python), "-c", PREAMBLE + SCRIPT.read_text(encoding="utf-8"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(comfyui.folder), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=comfyui.folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout

        def ask(job: dict[str, Any]) -> dict[str, float]:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith("RESULT"):
                    return json.loads(line.removeprefix("RESULT"))
            raise RuntimeError(f"the process in ComfyUI's interpreter ended with {process.wait()}")

        yield ask
        process.stdin.close()


def print_table(cells: list[Cell]) -> None:
    print("| settings | seeds | new concept | drift | old prompts right |")
    print("|---|---|---|---|---|")
    for contender in dict.fromkeys(cell.contender.name for cell in cells):
        own = [cell for cell in cells if cell.contender.name == contender and cell.numbers.is_file()]
        found = [json.loads(cell.numbers.read_text()) for cell in own]
        if found:
            new, drift, old = (
                [each[name] for each in found] for name in ("fidelity_after", "drift", "old_right_after")
            )
            print(f"| {contender} | {len(found)} | {_spread(new, 2)} | {_spread(drift, 1)} | {mean(old):.0%} |")


def _spread(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
