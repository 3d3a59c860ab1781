"""Starts ComfyUI's own server headless in a separate process, and stops it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from ..process_guard import ProcessGuard
from .client import ComfyClient
from .find import Installation, make_child_environment

# Seconds. They end hanging processes, but must allow for a slow disk or a busy machine.
START_TIMEOUT = 900.0
STOP_TIMEOUT = 60.0
FOLDERS = ("custom_nodes", "models/checkpoints", "models/loras", "input", "output", "temp", "user")
HAS_ACCELERATOR = "import torch; raise SystemExit(0 if getattr(torch, 'accelerator', torch.cuda).is_available() else 3)"


class ComfyServer:
    """A context manager. Inside the block the server answers at `url`, and `client` queues prompts.

    cpu: None uses the GPU if the installation's torch sees one. log: a file for everything that the
    server prints; `read_log` returns it. flags: more ComfyUI flags, such as --bf16-unet.
    """

    def __init__(
        self,
        installation: Installation,
        *,
        log: Path,
        base_directory: Path | None = None,
        cpu: bool | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self.installation = installation
        self.base_directory = base_directory.absolute() if base_directory else None
        self.log = log
        self._cpu = cpu
        self._flags = flags
        self._port = _find_free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.client = ComfyClient(self.url)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: ProcessGuard | None = None

    def __enter__(self) -> "ComfyServer":
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = self._start(log)
        try:
            if sys.platform != "win32":
                self._guard = ProcessGuard(self._process.pid, grace_seconds=STOP_TIMEOUT)
            self._wait_until_ready(self._process)
        except BaseException:  # Ctrl-C must not leave the server behind either
            self._stop(self._process)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._stop(self._process)

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def read_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._build_command(),
            cwd=self.installation.folder,
            env={"HF_HUB_OFFLINE": "1", **make_child_environment(), "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            # A separate process group, so that Ctrl-C in the terminal reaches only us: we ask the
            # server to interrupt, and it cleans up.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    def _build_command(self) -> list[str]:
        command = [str(self.installation.python), "main.py", "--listen", "127.0.0.1", "--port", str(self._port)]
        command += ["--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        command += ["--base-directory", str(self.base_directory)] if self.base_directory else []
        command += self._flags
        return [*command, "--cpu"] if self._needs_cpu() else command

    def _needs_cpu(self) -> bool:
        """True if there is no GPU: ComfyUI then starts only with --cpu."""
        if self._cpu is not None:
            return self._cpu
        command = [str(self.installation.python), "-c", HAS_ACCELERATOR]
        return (
            subprocess.run(command, check=False, cwd=self.installation.folder, env=make_child_environment()).returncode
            != 0
        )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self.client.is_ready():
            if process.poll() is not None:
                raise RuntimeError(
                    f"ComfyUI stopped during its start, with status {process.returncode}:\n{self._read_log_tail()}"
                )
            if time.monotonic() > deadline:
                raise RuntimeError(f"ComfyUI did not answer within {START_TIMEOUT:.0f} s:\n{self._read_log_tail()}")
            time.sleep(0.25)

    def _read_log_tail(self) -> str:
        return "\n".join([*self.read_log().splitlines()[-20:], f"The whole log is {self.log}"])

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        _send_signal(process, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill() if sys.platform == "win32" else _send_signal(process, signal.SIGKILL)
            process.wait()
        if self._guard is not None:
            self._guard.dismiss()


def prepare_base_directory(folder: Path, packs: Mapping[str, Path]) -> None:
    """Create the folders that ComfyUI expects in a base directory, and link each pack in
    custom_nodes.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, pack in packs.items():
        _link_folder(folder / "custom_nodes" / name, pack.absolute())


def _link_folder(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        # On Windows symbolic links need a privilege; junctions do not.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, stdout=subprocess.DEVNULL)


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _send_signal(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.terminate()
    else:
        os.killpg(process.pid, number)
