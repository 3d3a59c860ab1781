"""Starting and stopping a server process, with a stand-in for ComfyUI's main.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import TIME_LIMIT, wait_until
from trainers.comfyui.client import ComfyClient
from trainers.comfyui.find import Installation
from trainers.comfyui.server import ComfyServer, prepare_base_directory

ANSWERS = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(sys.argv[1:]).encode())

    def log_message(self, *arguments):
        pass

print("started")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def make_installation(folder: Path, main: str) -> Installation:
    (folder / "main.py").write_text(main)
    return Installation(folder, Path(sys.executable), "0.33.0")


def test_the_server_answers_inside_the_block_and_is_gone_after_it(tmp_path):
    with ComfyServer(
        make_installation(tmp_path, ANSWERS),
        log=tmp_path / "log" / "server.log",
        base_directory=tmp_path / "base",
        cpu=True,
    ) as server:
        arguments = server.client.get("/system_stats")
    assert arguments[arguments.index("--base-directory") + 1] == str(tmp_path / "base")
    assert {"--cpu", "--disable-api-nodes", "--disable-auto-launch"} <= set(arguments)
    assert not server.client.is_ready()
    assert "started" in server.read_log()


def test_the_server_is_gone_after_an_error_or_ctrl_c_in_the_block(tmp_path):
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with (
            pytest.raises(error),
            ComfyServer(make_installation(tmp_path, ANSWERS), log=tmp_path / "server.log", cpu=True) as server,
        ):
            raise error
        assert not server.client.is_ready()


def test_a_server_that_dies_during_its_start_shows_the_end_of_its_log(tmp_path):
    broken = make_installation(tmp_path, "print('x\\n' * 100); raise SystemExit('No module named torchaudio')")
    with (
        pytest.raises(RuntimeError, match=r"(?s)with status 1:.*No module named torchaudio.*server\.log") as failure,
        ComfyServer(broken, log=tmp_path / "server.log", cpu=True),
    ):
        pass
    assert len(str(failure.value).splitlines()) < 25


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that a process can ignore")
def test_a_server_that_ignores_the_request_to_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.comfyui.server.STOP_TIMEOUT", 0.5)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANSWERS
    with ComfyServer(make_installation(tmp_path, deaf), log=tmp_path / "server.log", cpu=True) as server:
        pass
    assert not server.client.is_ready()


def test_comfyuis_interpreter_does_not_get_our_pythonpath(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    prints_path = "import os; print('PATH', os.environ.get('PYTHONPATH'), os.environ['HF_HUB_OFFLINE'])\n" + ANSWERS
    with ComfyServer(make_installation(tmp_path, prints_path), log=tmp_path / "server.log", cpu=True) as server:
        assert "PATH None 1" in server.read_log()


def test_the_base_directory_links_the_packs(tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").touch()
    prepare_base_directory(tmp_path / "base", {"My-Pack": pack})
    assert (tmp_path / "base" / "custom_nodes" / "My-Pack" / "__init__.py").is_file()
    assert (tmp_path / "base" / "models" / "checkpoints").is_dir()


COMMAND = """
import signal, sys
from pathlib import Path
from trainers.comfyui.find import Installation
from trainers.comfyui.server import ComfyServer

folder = Path.cwd()
with ComfyServer(Installation(folder, Path(sys.executable), "0"), log=folder / "server.log", cpu=True) as server:
    (folder / "url.tmp").write_text(server.url)
    (folder / "url.tmp").rename(folder / "url")
    signal.pause()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither signals nor process groups")
@pytest.mark.parametrize("number", ["SIGHUP", "SIGKILL"])
def test_the_server_is_gone_when_the_command_that_started_it_is_killed(tmp_path: Path, number: str):
    make_installation(tmp_path, ANSWERS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = subprocess.Popen([sys.executable, "-c", COMMAND], cwd=tmp_path, env=environment)
    try:
        wait_until((tmp_path / "url").exists, what="the server")
    finally:
        command.send_signal(getattr(signal, number))
        command.wait(TIME_LIMIT)
    client = ComfyClient((tmp_path / "url").read_text())
    wait_until(lambda: not client.is_ready(), what="the end of the server")
