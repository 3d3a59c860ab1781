"""Compares step time and peak memory of our trainer, a bare loop, diffusers' example script and
sd-scripts on one thin model.

Every contender is a process with one thread. They run in turn for several rounds, so that a slow
minute of the machine affects all of them. Scripts without a given checkout are left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
PROJECT = BENCHMARKS.parent
NUM_WARMUP_STEPS = 3
MODULES = {"attention_mlp": 722, "attention": 560}
OURS = "ours"
RUN_FOLDER = "<run folder>"


@dataclass(frozen=True)
class Contender:
    """A training loop as arguments of run_script.py. RUN_FOLDER in them is replaced by the folder
    of one run.
    """

    name: str
    targets: str
    python: str
    arguments: list[str]


@dataclass(frozen=True)
class Measurement:
    """Seconds of each step after the warm-up, and the peak memory of the process over its whole
    life.
    """

    cpu_seconds: list[float]
    wall_seconds: list[float]
    peak_bytes: int


def main() -> None:
    options = parse_options()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run(
            [sys.executable, BENCHMARKS / "thin_model.py", work, "--resolution", str(options.resolution)], check=True
        )
        measurements = measure_in_turn(list(list_contenders(options, work)), work, num_rounds=options.rounds)
    print(format_table(measurements))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sd-scripts", type=Path, help="checkout of kohya-ss/sd-scripts")
    parser.add_argument("--sd-scripts-python", default=sys.executable, help="interpreter with its requirements")
    parser.add_argument("--diffusers", type=Path, help="checkout of huggingface/diffusers")
    parser.add_argument(
        "--diffusers-python", default=sys.executable, help="interpreter with its example's requirements"
    )
    parser.add_argument("--steps", type=int, default=20, help="steps of each run; the first three do not count")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    return parser.parse_args()


def list_contenders(options: argparse.Namespace, work: Path) -> Iterator[Contender]:
    """Yield each script with the modules that it trains, and the bare loop and ours with both
    sets.
    """
    for targets in MODULES:
        bare_loop = build_bare_loop_arguments(options, work, targets)
        yield Contender("bare loop", targets, sys.executable, bare_loop)
        yield Contender("floor", targets, sys.executable, [*bare_loop, "--floor"])
        if targets == "attention_mlp" and options.sd_scripts:
            arguments = build_sd_scripts_arguments(options, work)
            yield Contender("sd-scripts, cached", targets, options.sd_scripts_python, arguments)
            fused = [*arguments, "--optimizer_args", "fused=True"]
            yield Contender("sd-scripts, cached, fused", targets, options.sd_scripts_python, fused)
        if targets == "attention" and options.diffusers:
            yield Contender(
                "diffusers example", targets, options.diffusers_python, build_diffusers_arguments(options, work)
            )
        yield Contender(OURS, targets, sys.executable, build_our_arguments(options, work, targets))


def build_bare_loop_arguments(options: argparse.Namespace, work: Path, targets: str) -> list[str]:
    settings = {
        "base": work / "model",
        "targets": targets,
        "rank": options.rank,
        "steps": options.steps,
        "resolution": options.resolution,
    }
    return [str(BENCHMARKS / "bare_loop.py"), *format_flags(settings)]


def build_our_arguments(options: argparse.Namespace, work: Path, targets: str) -> list[str]:
    settings = {
        "base": work / "model",
        "images": work / "pictures" / "1_toy",
        "output": "ours",
        "output-dir": RUN_FOLDER,
        "cache-dir": f"{RUN_FOLDER}/cache",
        "target-modules": targets,
        "rank": options.rank,
        "alpha": options.rank,
        "max-train-steps": options.steps,
        "resolution": options.resolution,
        "learning-rate": 1e-4,
        "lr-scheduler": "constant",
        "mixed-precision": "no",
        "device": "cpu",
    }
    return ["trainers", "sdxl", *format_flags(settings), "--no-gradient-checkpointing"]


def build_sd_scripts_arguments(options: argparse.Namespace, work: Path) -> list[str]:
    settings = {
        "pretrained_model_name_or_path": work / "model",
        "tokenizer_cache_dir": work / "tokenizers",
        "train_data_dir": work / "pictures",
        "caption_extension": ".txt",
        "resolution": options.resolution,
        "network_module": "networks.lora",
        "network_dim": options.rank,
        "network_alpha": options.rank,
        "max_train_steps": options.steps,
        "learning_rate": 1e-4,
        "optimizer_type": "AdamW",
        "mixed_precision": "no",
        "max_data_loader_n_workers": 0,
        "output_name": "sd_scripts",
        "output_dir": RUN_FOLDER,
    }
    switches = ["--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs", "--sdpa"]
    return [
        "--thin-sd-scripts",
        str(options.sd_scripts.resolve() / "sdxl_train_network.py"),
        *format_flags(settings),
        *switches,
    ]


def build_diffusers_arguments(options: argparse.Namespace, work: Path) -> list[str]:
    settings = {
        "pretrained_model_name_or_path": work / "model",
        "train_data_dir": work / "pictures" / "1_toy",
        "caption_column": "text",
        "resolution": options.resolution,
        "rank": options.rank,
        "train_batch_size": 1,
        "max_train_steps": options.steps,
        "learning_rate": 1e-4,
        "mixed_precision": "no",
        "dataloader_num_workers": 0,
        "output_dir": RUN_FOLDER,
        "cache_dir": f"{RUN_FOLDER}/cache",
    }
    return [
        str(options.diffusers.resolve() / "examples" / "text_to_image" / "train_text_to_image_lora_sdxl.py"),
        *format_flags(settings),
    ]


def format_flags(settings: dict[str, object]) -> list[str]:
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def measure_in_turn(
    entries: list[Contender], work: Path, *, num_rounds: int
) -> list[tuple[Contender, list[Measurement]]]:
    measurements: list[tuple[Contender, list[Measurement]]] = [(contender, []) for contender in entries]
    for round_number in range(1, num_rounds + 1):
        for index, (contender, own) in enumerate(measurements):
            print(f"round {round_number} of {num_rounds}: {contender.name}, {contender.targets}", file=sys.stderr)
            own.append(measure(contender, work / f"run-{round_number}-{index}"))
    return measurements


def measure(contender: Contender, folder: Path) -> Measurement:
    """Run one contender in a fresh folder, so that no earlier run has filled a cache.

    Raises:
        RuntimeError: the contender failed; the message has the end of its output.
    """
    folder.mkdir()
    record = folder / "record.json"
    arguments = [argument.replace(RUN_FOLDER, str(folder)) for argument in contender.arguments]
    command = [contender.python, str(BENCHMARKS / "run_script.py"), "--record", str(record), *arguments]
    done = subprocess.run(
        command, check=False, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        raise RuntimeError(f"{contender.name} failed:\n{done.stdout[-4000:]}")
    recorded = json.loads(record.read_text())
    cpu, wall = zip(*recorded["clocks"], strict=True)
    return Measurement(measure_durations(cpu), measure_durations(wall), recorded["peak_bytes"])


def measure_durations(clock: tuple[float, ...]) -> list[float]:
    """Return the seconds between the ends of successive steps, without the warm-up."""
    return [after - before for before, after in pairwise(clock)][NUM_WARMUP_STEPS - 1 :]


def format_table(measurements: list[tuple[Contender, list[Measurement]]]) -> str:
    """Format one row per contender: median step over all rounds, highest peak, and ours divided by
    each.
    """
    summaries = [(contender, summarize(own)) for contender, own in measurements]
    ours = {contender.targets: figures for contender, figures in summaries if contender.name == OURS}
    lines = [
        "| LoRA on | contender | CPU s/step | ours / it | wall s/step | peak GiB | ours / it |",
        "|---|---|---|---|---|---|---|",
    ]
    for contender, (cpu, wall, peak) in summaries:
        our_cpu, _, our_peak = ours[contender.targets]
        cells = [
            f"{MODULES[contender.targets]} modules",
            contender.name,
            f"{cpu:.3f}",
            f"{our_cpu / cpu:.3f}",
            f"{wall:.3f}",
        ]
        lines.append("| " + " | ".join([*cells, f"{peak / 2**30:.2f}", f"{our_peak / peak:.3f}"]) + " |")
    return "\n".join(lines)


def summarize(measurements: list[Measurement]) -> tuple[float, float, int]:
    """Return the medians of CPU and wall seconds, and the highest peak in bytes."""
    cpu = statistics.median(seconds for measurement in measurements for seconds in measurement.cpu_seconds)
    wall = statistics.median(seconds for measurement in measurements for seconds in measurement.wall_seconds)
    return cpu, wall, max(measurement.peak_bytes for measurement in measurements)


if __name__ == "__main__":
    main()
