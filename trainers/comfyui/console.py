"""Runs a prompt from the console: a progress bar per node, Ctrl-C, and saving the output files."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from ..files.atomic_write import atomic_write
from .client import ComfyClient, Message, OutputFile, Prompt, Result


def run_prompt(client: ComfyClient, prompt: Prompt) -> Result:
    """Run the prompt with progress bars. Ctrl-C interrupts it and waits for its end; a second
    Ctrl-C does not wait.
    """
    with NodeBars(prompt) as bars, _interrupt_on_ctrl_c(client):
        return client.run(prompt, on_message=bars.show, keep_messages=False)


class NodeBars:
    """Progress bars by node id. Only nodes that report a count leave their bar behind."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._bars: dict[str, tqdm] = {}

    def __enter__(self) -> "NodeBars":
        return self

    def __exit__(self, *exception: object) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, message: Message) -> None:
        if message.kind == "progress_state":
            for node, state in message.data["nodes"].items():
                self._update_bar(node, int(state["value"]), int(state["max"]), is_running=state["state"] == "running")
        elif message.kind == "progress_text" and message.data["node"] in self._bars:
            self._bars[message.data["node"]].set_postfix_str(message.data["text"].partition("\n")[0])

    def _update_bar(self, node: str, step: int, total: int, *, is_running: bool) -> None:
        if is_running and node not in self._bars:
            self._bars[node] = tqdm(
                desc=self._find_title(node), dynamic_ncols=True, leave=False, bar_format="{desc} {elapsed}{postfix}"
            )
        bar = self._bars.get(node)
        if bar is None or bar.disable:
            return
        if total > 1:
            bar.total, bar.leave, bar.bar_format = total, True, None
            bar.update(step - bar.n)
        if not is_running:
            bar.close()

    def _find_title(self, node: str) -> str:
        about = self._prompt.get(node, {})  # a node can run others that are not in the prompt
        return about.get("_meta", {}).get("title") or about.get("class_type") or node


@contextmanager
def _interrupt_on_ctrl_c(client: ComfyClient) -> Iterator[None]:
    def on_interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.write("Interrupting; press Ctrl-C again to stop waiting for it.", file=sys.stderr)
        client.interrupt()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def save_files(client: ComfyClient, files: list[OutputFile], folder: Path) -> list[Path]:
    """Save the files into the folder, under their paths on the server."""
    written = []
    for file in files:
        path = folder / ("temp" if file.type == "temp" else "") / file.subfolder / file.filename
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"the server names a file outside its own folder, {file.subfolder}/{file.filename}. It was not written"
            )
        with atomic_write(path) as temporary:
            temporary.write_bytes(client.fetch(file))
        written.append(path)
    return written
