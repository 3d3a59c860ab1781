"""The commands that need ComfyUI, if it is missing or wrong: their messages, and what they do
instead.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import TIME_LIMIT, wait_until
from trainers.__main__ import main
from trainers.comfyui.find import PACK
from trainers.commands import demo as command_demo


@pytest.fixture(autouse=True)
def no_comfyui(tmp_path, monkeypatch) -> None:
    for name in ("COMFYUI_DIR", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture
def core_demos(monkeypatch) -> list[Path]:
    """Record the folders of the core's demos instead of running them, which takes minutes."""
    folders: list[Path] = []

    def record(options: argparse.Namespace, folder: Path) -> None:
        folders.append(folder)

    monkeypatch.setattr(command_demo, "_run_core", record)
    return folders


def test_the_demo_says_how_to_get_comfyui_and_runs_without_it(core_demos, capsys, tmp_path):
    assert main(["demo", "--output-dir", str(tmp_path / "out")]) == 0
    assert len(core_demos) == 1 and core_demos[0].parent == tmp_path / "out"
    assert "no ComfyUI in" in (errors := capsys.readouterr().err) and "pip install comfy-cli && comfy install" in errors


def test_the_demo_does_not_ignore_a_wrong_comfyui_dir(core_demos, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert main(["demo"]) == 1
    assert f"error: COMFYUI_DIR is {tmp_path}, which has no main.py" in capsys.readouterr().err and core_demos == []


def test_the_core_demo_can_be_requested(core_demos, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert main(["demo", "--core"]) == 0
    assert len(core_demos) == 1 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: no ComfyUI in"),
        (["--set", "steps=3"], "error: a setting is NODE.INPUT=VALUE, got steps=3"),
        (["--set", "9.steps=3"], "error: the prompt has no node 9. It has: 1 (EmptyImage)"),
        (
            ["--server", "localhost:8188"],
            "error: a server's address must begin with http:// or https://, got localhost:8188",
        ),
        (["--server", "http://127.0.0.1:9"], "error: no ComfyUI answers at http://127.0.0.1:9"),
    ],
)
def test_an_error_before_a_prompt_runs_is_one_line_and_nothing_is_written(arguments, message, capsys, tmp_path):
    (tmp_path / "prompt.json").write_text(json.dumps({"1": {"class_type": "EmptyImage", "inputs": {}}}))
    assert main(["comfyui", str(tmp_path / "prompt.json"), "--output-dir", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_prompt_with_our_nodes_needs_the_pack_in_custom_nodes(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_DIR", str(comfyui(tmp_path / "ComfyUI")))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    (tmp_path / "prompt.json").write_text(json.dumps({"1": {"class_type": "LoRATrainer_LoadImages", "inputs": {}}}))
    assert main(["comfyui", str(tmp_path / "prompt.json"), "--output-dir", str(tmp_path / "out")]) == 1
    assert f"custom_nodes does not have this pack. Move or link {PACK} there" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM and SIGINT cannot be sent to one process on Windows")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_terminated_command_stops_its_server(number, status, tmp_path):
    (tmp_path / "prompt.json").write_text(json.dumps({"1": {"class_type": "EmptyImage", "inputs": {}}}))
    environment = {
        **os.environ,
        "PYTHONPATH": str(PACK),
        "COMFYUI_DIR": str(comfyui(tmp_path / "ComfyUI")),
        "COMFYUI_PYTHON": sys.executable,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "trainers", "comfyui", "prompt.json"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = tmp_path / "ComfyUI" / "pid"
    wait_until(lambda: process.poll() is not None or (running.is_file() and running.read_text()), what="the server")
    assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == status and "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(running.read_text()), 0)


def comfyui(folder: Path) -> Path:
    """Make a checkout whose server starts but never answers."""
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "comfyui_version.py").write_text('__version__ = "0.33.0"')
    (folder / "main.py").write_text(
        "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(9000)"
    )
    return folder
