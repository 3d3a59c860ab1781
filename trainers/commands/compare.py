"""Draw an SDXL model with any number of LoRAs at any strengths, the same prompts and seeds for all,
as one labelled grid.
"""

import argparse
from pathlib import Path

from ..compare.checkpoints import Checkpoint, find_run, list_run_checkpoints, read_checkpoint
from ..compare.config import CompareConfig, parse_prompts
from ..compare.grid import lay_out_grid
from ..compare.plan import ComparePlan, plan_comparison
from ..config import add_flags, build_config
from ..files.atomic_write import atomic_write
from ..wording import pluralize
from .settings import load_packages, require_base_model

SUMMARY = "draw LoRAs, strengths, prompts and seeds as one labelled grid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", required=True, help="SDXL base model: a .safetensors checkpoint or a diffusers folder"
    )
    parser.add_argument("--loras", type=Path, nargs="+", default=[], metavar="FILE", help="LoRA files to compare")
    parser.add_argument("--run", help="a run of --output-dir: all its checkpoints and its final LoRA are compared")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("output"), help="folder of the training's output (default: output)"
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="prompts; {trigger} stands for the trigger word in the LoRA's header",
    )
    parser.add_argument("--prompt-file", type=Path, help="more prompts, one in each line of this text file")
    parser.add_argument("--output", type=Path, required=True, help="new PNG file for the grid")
    parser.add_argument("--device", help="torch device, such as cuda:1 or cpu (default: the best there is)")
    add_flags(parser, CompareConfig)


def run(options: argparse.Namespace) -> int:
    if options.output.exists():
        raise FileExistsError(f"{options.output} exists already. Give a new name for the grid")
    config = build_config(CompareConfig, vars(options))
    require_base_model(options.base)
    plan = plan_comparison(_list_checkpoints(options), _list_prompts(options), config)
    lay_out_grid(plan)  # raises if it would be too large
    # torch and diffusers take seconds to import: errors in settings and files come first
    load_packages()
    from ..sdxl.compare import draw_comparison
    from ..sdxl.model.sdxl_model import load_model
    from ..training.console_host import ConsoleHost
    from ..training.device import choose_device

    with ConsoleHost(choose_device(options.device)) as host:
        grid = draw_comparison(load_model(Path(options.base)), plan, config, host)
    with atomic_write(options.output) as temporary:
        grid.save(temporary, format="PNG")
    _print_result(options.output, plan)
    return 0


def _list_checkpoints(options: argparse.Namespace) -> list[Checkpoint]:
    of_run = list_run_checkpoints(find_run(options.output_dir / "runs", options.run)) if options.run else []
    return [*of_run, *map(read_checkpoint, options.loras)]


def _list_prompts(options: argparse.Namespace) -> tuple[str, ...]:
    return parse_prompts([*options.prompts, *(_read_lines(options.prompt_file) if options.prompt_file else [])])


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}). Save the file as UTF-8 in your editor") from error


def _print_result(output: Path, plan: ComparePlan) -> None:
    print(f"{output}: {pluralize(plan.num_images, 'image')}")
    for number, checkpoint in enumerate(plan.checkpoints, start=1):
        print(f"{number}: {checkpoint.source}")
