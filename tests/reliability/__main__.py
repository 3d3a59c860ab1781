"""Tries every fault and prints the table of docs/reliability.md: python -m tests.reliability."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # forked processes must not share a pool of threads

import torch

from tests.reliability import child, disks, interrupts, kills
from tests.reliability.outcome import Outcome
from tests.reliability.toy_run import make_dataset, warm_up
from trainers.dataset.dataset import Dataset

Attempt = Callable[[], Outcome]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="kills at random moments")
    parser.add_argument("--every", type=int, default=1, help="try every n-th write only")
    parser.add_argument("--steps", type=int, default=10_000, help="of the long run")
    parser.add_argument("--few", action="store_true", help="NaN in some steps only")
    parser.add_argument("--only", default="", help="part of the name of what is tried")
    parser.add_argument("--json", type=Path, help="also write the outcomes into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = try_all(Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps({name: vars(each) for name, each in outcomes.items()}))
    return int(any(each.failures for each in outcomes.values()))


def try_all(folder: Path, options: argparse.Namespace) -> dict[str, Outcome]:
    dataset = make_dataset(folder / "images")
    warm_up(dataset, folder / "warm")
    whole = folder / "whole" / "output"
    ended = child.run(lambda journal: kills.run_toy(dataset, whole, journal), folder / "whole")
    assert ended.exit_code == 0, ended
    outcomes = {}
    for name, attempt in make_attempts(dataset, whole, folder, options).items():
        if options.only not in name:
            continue
        began = time.monotonic()
        outcome = attempt()
        outcomes[name] = outcome
        print(outcome.row(), f"({time.monotonic() - began:.0f} s)", flush=True)
        for failure in outcome.failures[:10]:
            print(f"    {failure}", flush=True)
    return outcomes


def make_attempts(dataset: Dataset, whole: Path, folder: Path, options: argparse.Namespace) -> dict[str, Attempt]:
    trials, every = options.trials, options.every
    steps = (1, 2, 8) if options.few else tuple(range(1, 9))
    return {
        "kill at random moments": partial(
            kills.kill_at_random_moments, dataset, whole, folder / "killed", trials=trials
        ),
        "signals": partial(kills.end_by_signals, dataset, whole, folder / "signals", trials=trials // 4),
        "validation": partial(kills.end_while_validating, folder / "validation", trials=trials),
        "kill at each write": partial(kills.kill_at_each_write, dataset, whole, folder / "writes", every=every),
        "power cut": partial(kills.cut_power_at_each_write, dataset, whole, folder / "power", every=every),
        "disk full": partial(disks.fill_disk, dataset, whole, folder / "full", every=every),
        "read-only": partial(disks.forbid_disk, dataset, whole, folder / "forbidden", every=every),
        "clock": partial(disks.set_clock_back, dataset, whole, folder / "clock"),
        "interrupt": partial(
            interrupts.interrupt_everywhere, dataset, whole, folder / "interrupts", every=-(-every // 10)
        ),
        "nan": partial(interrupts.inject_nan, dataset, whole, folder / "nan", steps=steps),
        "damaged state": partial(interrupts.damage_newest_state, dataset, whole, folder / "damaged"),
        "two processes": partial(interrupts.lock_one_run, dataset, whole, folder / "lock"),
        "pictures": partial(interrupts.change_pictures, dataset, whole, folder / "pictures"),
        "long run": partial(interrupts.train_long, dataset, folder / "long", num_steps=options.steps),
    }


if __name__ == "__main__":
    sys.exit(main())
