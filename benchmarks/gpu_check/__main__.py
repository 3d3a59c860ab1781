"""Checks the trainer on a real GPU, in at most 500 seconds, without network: agreement with the
CPU, memory, speed, optimizers, interruption, ComfyUI's memory modes.

    python -m benchmarks.gpu_check OUT_FOLDER
    python -m benchmarks.gpu_check OUT_FOLDER --device cpu --tiny      # tries the check itself

Each section writes OUT_FOLDER/SECTION.json as it goes; report.md is the table of all.
"""

import argparse
import faulthandler
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from trainers.files.atomic_write import atomic_write
from trainers.training.device import choose_device

from .bench import Bench
from .machine import describe_machine, find_installation, list_missing
from .report import Report, Skipped
from .sections import SECTIONS, Section
from .table import make_page
from .trial import OutOfTime

SECONDS = 500.0
SECONDS_TO_FINISH = 45.0  # for a section that is over its deadline


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a section failed or ended with an error, else 0."""
    options = parse(arguments)
    device = choose_device(options.device)
    if device.type == "cpu" and not options.tiny:
        print("The full-size model needs a GPU, and this torch sees none. Add --tiny to try the check", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    deadlines = plan_deadlines(SECTIONS, options.seconds, begin=time.monotonic())
    installation, no_comfyui = find_installation()
    bench = Bench(device, options.out, is_tiny=options.tiny, comfyui=installation, no_comfyui=no_comfyui)
    machine = describe_missing(bench)
    reports = [
        run_section(section, bench, deadline, is_chosen=section.NAME in options.sections)
        for section, deadline in zip(SECTIONS, deadlines, strict=True)
    ]
    page = make_page([report.to_dict() for report in reports], machine)
    with atomic_write(options.out / "report.md", overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(page)
    return int(any(report.status in ("failed", "error") for report in reports))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [section.NAME for section in SECTIONS]
    parser.add_argument("out", type=Path, metavar="OUT_FOLDER", help="a folder for the results and the runs")
    parser.add_argument("--device", help="as torch calls it; default: the GPU")
    parser.add_argument("--tiny", action="store_true", help="the embedded base at 64 pixels instead of full-size SDXL")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything (default: 500)")
    parser.add_argument("--sections", nargs="+", choices=names, default=names, help="only these")
    return parser.parse_args(arguments)


def plan_deadlines(sections: Sequence[Section], seconds: float, *, begin: float) -> list[float]:
    """Give each section its share of the time. What one leaves over is there for the next ones."""
    total = sum(section.SHARE_SECONDS for section in sections)
    deadlines, at = [], begin
    for section in sections:
        at += seconds * section.SHARE_SECONDS / total
        deadlines.append(at)
    return deadlines


def describe_missing(bench: Bench) -> dict[str, Any]:
    """Print the machine and what is missing, and keep both in machine.json."""
    missing = list(list_missing(bench.device, bench.out, bench.no_comfyui))
    facts = {**describe_machine(bench.device), "missing": "; ".join(missing) or "nothing"}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), file=sys.stderr)
    with atomic_write(bench.out / "machine.json", overwrite=True) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def run_section(section: Section, bench: Bench, deadline: float, *, is_chosen: bool) -> Report:
    report = Report(section.NAME, section.TITLE, bench.out, deadline=deadline)
    print(f"{section.TITLE} ({max(0.0, report.seconds_left):.0f} s)", file=sys.stderr)
    if not is_chosen:
        report.end_skipped("not among --sections")
        return report
    if not bench.is_tiny and not report.has_time(section.TITLE, section.NEEDED_SECONDS):
        report.finish()
        return report
    try:
        section.run(bench, report)
    except OutOfTime as reason:
        report.skip("the rest", str(reason))
    except Skipped as reason:
        report.end_skipped(str(reason))
        return report
    # A report tool: whatever goes wrong in one section is a finding, and the others must still run.
    except Exception as error:
        report.end_with_error(error)
        return report
    finally:
        bench.free()
    report.finish()
    return report


def end_what_hangs() -> None:
    """End the process some time after its last deadline: the sections' files are written by then.
    ComfyUI's server ends with it.
    """
    seconds = parse(None).seconds + SECONDS_TO_FINISH
    faulthandler.dump_traceback_later(seconds, exit=True)


if __name__ == "__main__":
    end_what_hangs()
    sys.exit(main())
