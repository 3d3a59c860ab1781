"""Compares our trainer for any MODEL of the graph with core's TrainLoraNode, on the same random
Z-Image of 0.5 GB in float32: time per step, memory, loss on held-out images, what a cancel leaves.

Both train in one process in ComfyUI's interpreter, on the CPU, in turns. Linux only: the peak of
the memory is read from /proc.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

from tests.host.conftest import PREAMBLE
from trainers.comfyui.find import PACK, find_comfyui

SCRIPT = PACK / "tests" / "host" / "scripts" / "flow_against_core.py"
CONTENDERS, GIB = ("ours", "core"), 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder for the runs' files")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    results = train(options.folder, options.steps, options.rounds)
    start = next(results)
    print(f"weights: {start['weights'] / GIB:.2f} GiB; held-out loss before: {start['loss']:.4f}")
    runs = []
    for each in results:
        runs.append(each)
        print(json.dumps(each), flush=True)
    print_table([each for each in runs if not each["is_cancelled"]])
    for each in (each for each in runs if each["is_cancelled"]):
        print(f"after a cancel, {each['contender']} leaves {', '.join(each['files']) or 'nothing'}")


def train(folder: Path, steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    comfyui = find_comfyui()
    arguments = [str(PACK), str(folder.absolute()), str(steps), str(rounds)]
    command = [str(comfyui.python), "-c", PREAMBLE + SCRIPT.read_text(encoding="utf-8"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(comfyui.folder), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=comfyui.folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("RESULT"):
                yield json.loads(line.removeprefix("RESULT"))
    if process.returncode:
        raise RuntimeError(f"the training in ComfyUI's interpreter ended with {process.returncode}")


def print_table(runs: list[dict[str, Any]]) -> None:
    print("| trainer | CPU s/step | wall s/step | added GiB | kept GiB | modules | held-out loss after |")
    print("|---|---|---|---|---|---|---|")
    for name in CONTENDERS:
        own = [each for each in runs if each["contender"] == name]
        cpu, wall = (median([value for each in own for value in each[kind]]) for kind in ("cpu", "wall"))
        added, kept = (max(each[kind] for each in own) / GIB for kind in ("added", "kept"))
        loss = mean(each["loss"] for each in own)
        print(f"| {name} | {cpu:.3f} | {wall:.3f} | {added:.2f} | {kept:.2f} | {own[0]['modules']} | {loss:.4f} |")


if __name__ == "__main__":
    sys.exit(main())
