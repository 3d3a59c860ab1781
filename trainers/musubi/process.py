"""Runs one of Musubi's programs as a process, without a shell. Reads its output as it comes, and
ends it with everything that it started.
"""

import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Protocol

from ..process_guard import ProcessGuard
from .commands import Command
from .installation import Installation

POLL_SECONDS = 0.1
GRACE_SECONDS = 0.8  # from SIGTERM to SIGKILL, and from SIGKILL until we stop waiting
_OWN_TO_A_LAUNCHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
# They say where the Python of this process is, and would lead another one to its packages.
_OWN_TO_AN_INTERPRETER = ("PYTHONHOME", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
_ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


class NotStarted(RuntimeError):
    """The interpreter cannot be started."""


class Listener(Protocol):
    def feed(self, output: bytes) -> None:
        """Take the next chunk of output, which may end anywhere."""
        ...

    def idle(self) -> None:
        """Called when the process has written nothing for a tenth of a second."""
        ...


def run_process(
    command: Command,
    installation: Installation,
    *,
    listener: Listener,
    log: BinaryIO,
    check_interrupted: Callable[[], None],
) -> int:
    """Run to the end and return the exit status; if negative, the signal that ended it. stdout and
    stderr come as one stream, which `log` gets too.

    However this ends, even by an interrupt or with this process, everything that the process
    started is ended too.

    Raises:
        NotStarted: the interpreter cannot be started.
        Whatever check_interrupted raises; it is called ten times a second.
    """
    try:
        tree = _start(command, installation)
    except OSError as error:
        raise NotStarted(f"{installation.python} cannot be started: {error}. Run Musubi Doctor") from error
    try:
        _read(tree.process, listener, log, check_interrupted)
        return tree.process.wait()
    finally:
        tree.stop()


def build_environment(installation: Installation) -> dict[str, str]:
    """Return this process's environment without what is meant for this process alone, and with
    what Musubi's scripts need to find their package and to write UTF-8 everywhere.
    """
    own = (*_OWN_TO_A_LAUNCHER, *_OWN_TO_AN_INTERPRETER, *_ALLOCATORS)
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {name: setting for name in _ALLOCATORS if (setting := _leave_out_backend(os.environ.get(name, "")))}
    sources = str(installation.folder / "src")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (sources, environment.get("PYTHONPATH"))))
    # On Windows a pipe is cp1252, in which Musubi's Japanese is an error. Set both variables:
    # PYTHONIOENCODING overrides PYTHONUTF8.
    return environment | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}


def _leave_out_backend(setting: str) -> str:
    """Return the allocator's settings without `backend:cudaMallocAsync`, which ComfyUI adds for its
    own torch. What else is there, such as expandable_segments:True, is the owner's.
    """
    parts = [part.strip() for part in setting.split(",")]
    return ",".join(part for part in parts if part and part.replace(" ", "") != "backend:cudaMallocAsync")


def _read(
    process: "subprocess.Popen[bytes]", listener: Listener, log: BinaryIO, check_interrupted: Callable[[], None]
) -> None:
    """Read until the process has ended and all of its output is read. A grandchild may keep the
    pipe open for longer; we do not wait for it.
    """
    chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_pump, args=(process, chunks), daemon=True).start()
    is_open, deadline = True, math.inf
    while (is_open or process.poll() is None) and time.monotonic() < deadline:
        check_interrupted()
        if deadline == math.inf and process.poll() is not None:
            deadline = time.monotonic() + GRACE_SECONDS
        try:
            chunk = chunks.get(timeout=POLL_SECONDS)
        except queue.Empty:
            listener.idle()
            continue
        is_open = bool(chunk)
        log.write(chunk)
        listener.feed(chunk)


def _pump(process: "subprocess.Popen[bytes]", chunks: "queue.SimpleQueue[bytes]") -> None:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    try:
        while chunk := os.read(descriptor, 65536):
            chunks.put(chunk)
    except (OSError, ValueError):  # closed from the other side
        pass
    chunks.put(b"")


class _ProcessTree(Protocol):
    process: "subprocess.Popen[bytes]"

    def stop(self) -> None: ...


def _start(command: Command, installation: Installation) -> _ProcessTree:
    return _WindowsTree(command, installation) if sys.platform == "win32" else _ProcessGroup(command, installation)


class _ProcessGroup:
    """POSIX: the process gets its own session, so its group is everything that it starts."""

    def __init__(self, command: Command, installation: Installation) -> None:
        self.process = subprocess.Popen(
            command.argv,
            cwd=installation.folder,
            env=build_environment(installation),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._guard = ProcessGuard(self.process.pid, grace_seconds=GRACE_SECONDS)
        except OSError:
            self._end()
            raise

    def stop(self) -> None:
        self._end()
        self._guard.dismiss()

    def _end(self) -> None:
        """End the group by its id, since it may outlive its leader. The id stays taken as long as
        the group has a member.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + GRACE_SECONDS
            self._signal(number)
            while self._is_alive() and time.monotonic() < deadline:
                time.sleep(0.02)
        self.process.wait()

    def _is_alive(self) -> bool:
        self.process.poll()  # a zombie would count as a member
        return self._signal(0)

    def _signal(self, number: int) -> bool:
        """Send a signal to the group. Return False if the group has no members."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # macOS, for a group of zombies
            return False
        return True


class _WindowsTree:
    """Windows: a job object. It ends with its last handle, so also when this process is killed."""

    def __init__(self, command: Command, installation: Installation) -> None:
        from .windows_job import Job

        self._job = Job()
        self.process = subprocess.Popen(
            command.argv,
            cwd=installation.folder,
            env=build_environment(installation),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        try:
            self._job.add(self.process)
        except OSError:
            self.process.kill()
            raise

    def stop(self) -> None:
        self._job.close()
        self.process.wait()
