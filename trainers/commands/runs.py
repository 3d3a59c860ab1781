"""List the runs in an output folder, show one, compare several, and delete what is left of old
ones. prune deletes nothing without --delete.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files.atomic_write import atomic_write
from ..training.resume.run_lock import RunInUse, is_locked
from ..training.runs.comparison import ComparedRun, list_differences, list_results, read_run
from ..training.runs.pruning import count_bytes, delete, find_last_time, list_prunable, list_runs
from ..wording import format_bytes, format_megabytes, name_first, pluralize

SUMMARY = "list, show, compare and prune training runs"
MAX_WIDTH = 40  # characters of a value in a table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parsers = parser.add_subparsers(dest="action", required=True)
    _add(parsers, "list", _list, "the runs, the newest first")
    show = _add(parsers, "show", _show, "everything about one run")
    show.add_argument("name", help="the run's folder, as `runs list` writes it")
    compare = _add(parsers, "compare", _compare, "what differs between runs, and how their losses ended")
    compare.add_argument("names", nargs="+", metavar="name", help="the runs' folders")
    compare.add_argument("--plot", type=Path, help="also draw their losses into this new PNG file")
    prune = _add(
        parsers,
        "prune",
        _prune,
        "say what of old runs can go: states of finished runs, and runs without a LoRA. Caches, LoRAs and runs that "
        "are going on are not touched",
    )
    prune.add_argument("--days", type=float, default=30.0, help="a run is old after this many days (default: 30)")
    prune.add_argument(
        "--with-loras",
        action="store_true",
        help="also checkpoints of old finished runs, and old stopped runs with their checkpoints. The LoRA of a "
        "finished run always stays",
    )
    prune.add_argument("--delete", action="store_true", help="delete it")


def _add(parsers: Any, name: str, action: Callable[..., int], help_text: str) -> argparse.ArgumentParser:
    parser = parsers.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
    parser.set_defaults(run_action=action)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("output"), help="the folder that has `runs` in it (default: output)"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    return options.run_action(options)


def _list(options: argparse.Namespace) -> int:
    folders = list_runs(_runs_folder(options))
    rows = [_describe_line(folder) for folder in folders]
    _print_table([("run", "status", "steps", "loss", "on disk", "last written"), *rows])
    if not rows:
        print(f"There are no runs in {_runs_folder(options)}")
    return 0


def _describe_line(folder: Path) -> tuple[str, ...]:
    found = read_run(folder)
    summary = found.record.summary
    loss = f"{found.points[-1][1]:.4f}" if found.points else "-"
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(find_last_time(folder)))
    steps = f"{summary.step}/{summary.total}"
    return folder.name, summary.status, steps, loss, format_bytes(count_bytes(folder)), date


def _show(options: argparse.Namespace) -> int:
    folder = _find_run(options, options.name)
    found = read_run(folder)
    results = [(name, values[0]) for name, values in list_results([found])]
    _print_table([("run", folder.name), ("on disk", format_bytes(count_bytes(folder))), *results])
    record = found.record
    if found.lora:
        print(f"\nLoRA: {found.lora}")
    for title, lines in (
        (
            "LoRAs in the folder",
            [f"{lora.path} ({lora.kind}, {format_megabytes(lora.bytes)})" for lora in record.loras],
        ),
        ("Last words", record.message.splitlines()),
        ("Messages", [line for notice in record.notices for line in notice.splitlines()]),
        ("Not readable", record.notes),
        ("Settings", [f"{name}: {value}" for name, value in found.facts.items()]),
    ):
        if lines:
            print(f"\n{title}")
            print("\n".join(f"  {line}" for line in lines))
    return 0


def _compare(options: argparse.Namespace) -> int:
    if options.plot and options.plot.exists():
        raise FileExistsError(f"{options.plot} exists already. Give a new name for the image")
    folders = [_find_run(options, name) for name in dict.fromkeys(options.names)]
    if len(folders) < 2:
        raise ValueError("compare needs two runs or more; `runs list` names them")
    found = [read_run(folder) for folder in folders]
    rows = [(name, *map(_cut, values)) for name, values in [*list_differences(found), *list_results(found)]]
    _print_table([("", *(each.name for each in found)), *rows])
    if options.plot:
        _draw(found, options.plot)
    return 0


def _draw(found: Sequence[ComparedRun], path: Path) -> None:
    from ..training.loss_plot import draw_loss_comparison

    with atomic_write(path) as temporary:
        draw_loss_comparison({each.name: each.points for each in found}).save(temporary, format="PNG")
    print(f"\nThe losses are drawn in {path}")


def _prune(options: argparse.Namespace) -> int:
    if options.days < 0:
        raise ValueError(f"--days must be 0 or more, got {options.days:g}")
    folders = list_runs(_runs_folder(options))
    locked = [folder for folder in folders if is_locked(folder)]
    free = [folder for folder in folders if folder not in locked]
    found = list_prunable(free, days=options.days, with_loras=options.with_loras)
    _print_table([(each.run.name, each.what, format_bytes(each.num_bytes)) for each in found])
    total = format_bytes(sum(each.num_bytes for each in found))
    if locked:
        print(f"Not touched, as they are going on: {name_first((folder.name for folder in locked), 5)}")
    if not found:
        print("There is nothing to delete.")
    elif not options.delete:
        print(
            f"{total} in {pluralize(len(found), 'run')}. Nothing was deleted: give --delete to do it. Without its "
            "state a finished run cannot be extended, only started again"
        )
    else:
        print(f"{_delete_all(found)} deleted.")
    return 0


def _delete_all(found: Sequence[Any]) -> str:
    num_bytes = 0
    for each in found:
        try:
            num_bytes += delete(each)
        except RunInUse:
            print(f"{each.run.name} is going on now, and stays")
    return format_bytes(num_bytes)


def _runs_folder(options: argparse.Namespace) -> Path:
    return options.output_dir / "runs"


def _find_run(options: argparse.Namespace, name: str) -> Path:
    """Raises ValueError for a name that is no run of the folder."""
    folders = list_runs(_runs_folder(options))
    for folder in folders:
        if folder.name == Path(name).name:
            return folder
    newest = ", ".join(folder.name for folder in folders[:5]) or "none"
    raise ValueError(f"there is no run {name!r} in {_runs_folder(options)}. The newest: {newest}")


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 3] + "..."


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as their widest cell."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
