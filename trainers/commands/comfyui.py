"""Run an API-format prompt on a ComfyUI: a running one, or one that this command finds and starts
without a window.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..comfyui.client import ComfyClient, Prompt, Result

SUMMARY = "run an API-format prompt on a running ComfyUI, or on one that is started for it"
OUR_NODES = "LoRATrainer_"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", type=Path, metavar="PROMPT.json", help="the file that ComfyUI writes with Workflow > Export (API)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="new value for an input, JSON or text; NODE is an id or a class; may be repeated",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="a running ComfyUI, such as http://127.0.0.1:8188 (default: start the one that is found)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output"),
        help="folder in which a new one for the images is made (default: output)",
    )


def run(options: argparse.Namespace) -> int:
    from ..comfyui.console import run_prompt, save_files
    from ..comfyui.prompt_file import apply_settings, find_nodes, parse_setting, read_prompt

    prompt = read_prompt(options.prompt)
    settings = [parse_setting(text) for text in options.set]
    for nodes, _, _ in settings:
        find_nodes(prompt, nodes)  # a wrong name is an error before the server starts
    folder = options.output_dir / f"{options.prompt.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    with _connect(options.server, prompt, log=folder / "comfyui.log") as client:
        apply_settings(prompt, settings, client)
        result = run_prompt(client, prompt)
        written = save_files(client, result.files(), folder)
    _print_result(prompt, result, written)
    return 0


@contextmanager
def _connect(server: str | None, prompt: "Prompt", *, log: Path) -> "Iterator[ComfyClient]":
    from ..comfyui.client import ComfyClient
    from ..comfyui.find import PACK, find_comfyui
    from ..comfyui.server import ComfyServer

    if server:
        yield ComfyClient(server)
        return
    installation = find_comfyui()
    custom_nodes = installation.folder / "custom_nodes"
    if any(node["class_type"].startswith(OUR_NODES) for node in prompt.values()) and not any(
        entry.resolve() == PACK for entry in custom_nodes.iterdir()
    ):
        raise ValueError(
            f"{custom_nodes} does not have this pack. Move or link {PACK} there, or give --server a ComfyUI that has it"
        )
    print(f"Starting ComfyUI {installation.version} in {installation.folder} ...", file=sys.stderr)
    with ComfyServer(installation, log=log) as comfyui:
        yield comfyui.client


def _print_result(prompt: "Prompt", result: "Result", written: list[Path]) -> None:
    for node, shown in result.outputs.items():
        for text in shown.get("text", []):
            print(f"{prompt.get(node, {}).get('class_type', node)}: {text}")
    for path in written:
        print(path)
