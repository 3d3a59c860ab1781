"""Measures what fewer bits of the frozen base cost: trains the demo's toadstool on the embedded
base with each base_dtype and several seeds.

    python -m benchmarks.base_dtypes FOLDER                             # 4 x 5 runs of 500 steps
    python -m benchmarks.base_dtypes FOLDER --kinds nf4 --seeds 0       # one cell
    python -m benchmarks.base_dtypes FOLDER --only-table                # the cells that are done

Each cell is one run, and one JSON file; a cell that is there is not trained again. The LoRA is
judged on the base in its own numbers: how well the toadstool is drawn (0 to 1), and how far the
pixels of old prompts moved (0 to 255). A kind is within the spread if its means lie in the range
that the seeds of "none" have.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from trainers.commands.demo import SETTINGS
from trainers.commands.sdxl import train
from trainers.demo.before_after import compare
from trainers.demo.concept import IMAGES, TRIGGER_WORD
from trainers.embedded_base import write_embedded_checkpoint
from trainers.sdxl.config import BASE_DTYPES
from trainers.sdxl.model.sdxl_model import load_model

NONE = "none"
KINDS = (NONE, *BASE_DTYPES)
MEASURES = ("fidelity", "drift")
SAMPLER_STEPS = 20


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--steps", type=int, default=SETTINGS["max_train_steps"])
    parser.add_argument("--num-images", type=int, default=8, help="for each prompt (default: %(default)s)")
    parser.add_argument("--only-table", action="store_true")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.only_table:
        for seed in options.seeds:
            for kind in options.kinds:
                run_cell(options.folder, kind, seed, num_steps=options.steps, num_images=options.num_images)
    print_table(options.folder)


def run_cell(folder: Path, kind: str, seed: int, *, num_steps: int, num_images: int) -> None:
    path = folder / f"cell {kind} seed {seed} steps {num_steps}.json"
    if path.exists():
        return
    base, started_at = folder / "base.safetensors", time.process_time()
    if not base.exists():
        write_embedded_checkpoint(base)
    result = train(_make_settings(folder, base, kind, seed, num_steps))
    seconds = time.process_time() - started_at
    assert result.path is not None
    found = compare(load_model(base), result.path, num_seeds=num_images, num_steps=SAMPLER_STEPS)
    cell = {"kind": kind, "seed": seed, "steps": num_steps, "seconds": seconds, "losses": result.losses}
    path.write_text(json.dumps({**cell, "fidelity": found.fidelity_after, "drift": found.drift}))


def _make_settings(folder: Path, base: Path, kind: str, seed: int, num_steps: int) -> dict[str, Any]:
    return {
        **SETTINGS,
        "base": str(base),
        **({} if kind == NONE else {"base_dtype": kind}),
        "output": f"{kind}, seed {seed}, {num_steps} steps",
        "output_dir": str(folder),
        "cache_dir": str(folder / "cache"),
        "datasets": [{"images": str(IMAGES), "trigger_word": TRIGGER_WORD}],
        "seed": seed,
        "max_train_steps": num_steps,
        "device": "cpu",
    }


def print_table(folder: Path) -> None:
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("cell *.json"))]
    print(
        "| base_dtype | steps | seeds | fidelity, mean (range) | drift, mean (range) | within the spread | CPU time |"
    )
    print("|---|---|---|---|---|---|---|")
    for num_steps in sorted({cell["steps"] for cell in cells}):
        for kind in KINDS:
            of_kind, usual = (
                [cell for cell in cells if (cell["kind"], cell["steps"]) == (each, num_steps)] for each in (kind, NONE)
            )
            if of_kind:
                print(f"| {kind} | {num_steps} | {len(of_kind)} | {' | '.join(_format_row(of_kind, usual))} |")


def _format_row(cells: list[dict[str, Any]], usual: list[dict[str, Any]]) -> list[str]:
    columns = {name: [cell[name] for cell in cells] for name in MEASURES}
    texts = [f"{mean(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in columns.values()]
    ranges = {name: [cell[name] for cell in usual] for name in MEASURES}
    is_within = all(min(ranges[name]) <= mean(columns[name]) <= max(ranges[name]) for name in MEASURES if usual)
    return [*texts, ("yes" if is_within else "no") if usual else "", f"{mean(cell['seconds'] for cell in cells):.0f} s"]


if __name__ == "__main__":
    main()
