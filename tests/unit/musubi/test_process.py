"""Processes: their arguments and environment, reading their output, and ending all of them."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import TIME_LIMIT, wait_until
from trainers.musubi.commands import Command
from trainers.musubi.installation import Installation
from trainers.musubi.process import build_environment, run_process
from trainers.training.events import Interrupted

FOREVER = 10 * TIME_LIMIT  # a process that sleeps this long does not end before its test has failed
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="process groups are POSIX; Windows has jobs, which need Windows"
)


class Ear:
    def __init__(self) -> None:
        self.heard = b""
        self.num_idle = 0

    def feed(self, output: bytes) -> None:
        self.heard += output

    def idle(self) -> None:
        self.num_idle += 1


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path, Path(sys.executable), "0")


def run(
    installation: Installation, program: str, *arguments: str, check_interrupted=lambda: None
) -> tuple[int, Ear, bytes]:
    ear, log = Ear(), io.BytesIO()
    command = Command("train", (str(installation.python), "-c", program, *arguments))
    return (
        run_process(command, installation, listener=ear, log=log, check_interrupted=check_interrupted),
        ear,
        log.getvalue(),
    )


def is_alive(number: int) -> bool:
    """Return whether the process runs. A zombie does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_both_streams_and_the_exit_status_are_returned(installation: Installation):
    program = "import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr); sys.exit(3)"
    status, ear, log = run(installation, program)
    assert status == 3 and ear.heard == b"out\nerr\n" == log


def test_arguments_reach_the_process_unchanged(installation: Installation):
    hostile = ["a b", "$(touch owned)", "`id`", "; rm -rf x", "é [1]", '"', "*"]
    _, ear, _ = run(installation, "import sys; print(ascii(sys.argv[1:]))", *hostile)
    assert ear.heard.decode().strip() == ascii(hostile) and not (installation.folder / "owned").exists()


def test_the_environment_is_extended_and_writes_utf_8(installation: Installation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setenv("RANK", "3")
    environment = build_environment(installation)
    assert environment["PYTHONPATH"] == f"{installation.folder / 'src'}{os.pathsep}/mine" and "RANK" not in environment
    _, ear, _ = run(installation, "print('学習')")
    assert ear.heard.decode("utf-8") == "学習\n"


@pytest.mark.parametrize(
    ("set_by_the_host", "expected"),
    [
        ("backend:cudaMallocAsync", None),
        ("expandable_segments:True,backend:cudaMallocAsync", "expandable_segments:True"),
        (
            "max_split_size_mb:128, garbage_collection_threshold:0.8",
            "max_split_size_mb:128,garbage_collection_threshold:0.8",
        ),
    ],
)
@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_the_allocator_that_comfyui_chose_for_itself_is_not_passed_on(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, name: str, set_by_the_host: str, expected: str | None
):
    monkeypatch.setenv(name, set_by_the_host)
    assert build_environment(installation).get(name) == expected


def test_the_place_of_our_own_python_is_not_passed_on_but_the_chosen_gpu_is(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    for name in ("PYTHONHOME", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__"):
        monkeypatch.setenv(name, "/ours")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    environment = build_environment(installation)
    assert "/ours" not in environment.values() and environment["CUDA_VISIBLE_DEVICES"] == "1"


def require_gone(number: int) -> None:
    wait_until(lambda: not is_alive(number), what=f"the end of process {number}")


def test_an_interrupt_ends_the_whole_tree(installation: Installation, tmp_path: Path):
    """The child starts another process that ignores SIGTERM, as a data loader's workers may."""
    grandchild = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open('pids', 'w').write(str(os.getpid())); time.sleep({FOREVER})"
    )
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    pids = tmp_path / "pids"

    def interrupt_when_it_ignores_sigterm() -> None:
        if pids.is_file() and pids.read_text():
            raise Interrupted("now")

    with pytest.raises(Interrupted):
        run(installation, program, check_interrupted=interrupt_when_it_ignores_sigterm)
    require_gone(int(pids.read_text()))


def test_processes_that_it_leaves_running_are_ended(installation: Installation, tmp_path: Path):
    program = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({FOREVER})']);"
        "open('pids', 'w').write(str(p.pid))"
    )
    status, _, _ = run(installation, program)
    assert status == 0
    require_gone(int((tmp_path / "pids").read_text()))


def test_an_error_in_the_listener_ends_the_process(installation: Installation, tmp_path: Path):
    class Critic(Ear):
        def feed(self, output: bytes) -> None:
            raise ValueError("enough")

    program = (
        f"import os, time; open('pids', 'w').write(str(os.getpid())); print('x', flush=True); time.sleep({FOREVER})"
    )
    command = Command("train", (sys.executable, "-c", program))
    with pytest.raises(ValueError, match="enough"):
        run_process(command, installation, listener=Critic(), log=io.BytesIO(), check_interrupted=lambda: None)
    require_gone(int((tmp_path / "pids").read_text()))


def test_a_process_that_closes_its_output_is_still_awaited_and_can_be_interrupted(
    installation: Installation, tmp_path: Path
):
    silent = f"import os, time; os.close(1); os.close(2); open('closed', 'w').close(); time.sleep({FOREVER})"
    asked_since: list[None] = []

    def interrupt() -> None:
        if (tmp_path / "closed").exists():
            asked_since.append(None)
        if len(asked_since) > 3:  # by then, the end of its output has been read
            raise Interrupted("now")

    with pytest.raises(Interrupted):
        run(installation, silent, check_interrupted=interrupt)
    assert run(installation, "import os, time; os.close(1); os.close(2); time.sleep(0.4); os._exit(4)")[0] == 4


# As ComfyUI does: the prompt runs in a daemon thread, and the main thread ends the process.
SERVER = """
import io, signal, sys, threading
from pathlib import Path
from trainers.musubi.commands import Command
from trainers.musubi.installation import Installation
from trainers.musubi.process import run_process

class Deaf:
    def feed(self, output): pass
    def idle(self): pass

def work():
    command = Command("train", (sys.executable, "-c", sys.argv[1]))
    installation = Installation(Path.cwd(), Path(sys.executable), "0")
    run_process(command, installation, listener=Deaf(), log=io.BytesIO(), check_interrupted=lambda: None)

threading.Thread(target=work, daemon=True).start()
try:
    signal.pause()
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_nothing_outlives_the_server_however_it_ends(tmp_path: Path, number: str):
    """Both the program and what it started, which ignores SIGTERM."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open('deaf', 'w').close(); time.sleep({FOREVER})"
    )
    program = (
        f"import os, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {deaf!r}]);"
        "open('pids.tmp', 'w').write(f'{os.getpid()} {p.pid}'); os.rename('pids.tmp', 'pids');"
        f"time.sleep({FOREVER})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    server = subprocess.Popen([sys.executable, "-c", SERVER, program], cwd=tmp_path, env=environment)
    try:
        wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "deaf").exists(), what="its processes")
    finally:
        server.send_signal(getattr(signal, number))
        server.wait(TIME_LIMIT)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    try:
        for pid in pids:
            require_gone(pid)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
