"""The command `flow`: what it refuses before anything is loaded, and two processes."""

import ast
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.host.conftest import PREAMBLE
from tests.limits import TIME_LIMIT
from trainers.__main__ import main
from trainers.comfyui.find import Installation
from trainers.commands.flow import PROGRAM

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "flow_command.py"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a house" if number % 2 else "a small red house")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "missing --model, --text-encoder, --vae. Or name a --checkpoint that holds all of it"),
        (["--model", "m", "--vae", "v"], "missing --text-encoder. Or name a --checkpoint"),
        (["--checkpoint", "c", "--vae", "v"], "--checkpoint holds everything: leave --vae out"),
        (["--checkpoint", "nothing.safetensors"], "--checkpoint: nothing.safetensors is not a file"),
    ],
)
def test_wrong_model_files_are_refused(images, capsys, flags, message):
    assert main(["flow", "--images", str(images), "--output", "x", *flags]) == 1
    assert message in capsys.readouterr().err


def test_without_comfyui_it_says_what_is_missing(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    (tmp_path / "c.safetensors").touch()
    flags = ["--checkpoint", str(tmp_path / "c.safetensors"), "--output-dir", str(tmp_path / "out")]
    assert main(["flow", "--images", str(images), "--output", "x", *flags]) == 1
    assert "COMFYUI_DIR is" in capsys.readouterr().err


def test_the_current_folder_does_not_hide_comfyuis_modules(installation: Installation):
    """The pack's own folder has `nodes` too, and is the current one for who follows the README."""
    program = (
        PROGRAM.partition("sys.exit")[0] + "import importlib.util; print(importlib.util.find_spec('nodes').origin)"
    )
    printed = subprocess.run(
        [installation.python, "-c", program, str(PACK)],
        env={**os.environ, "PYTHONPATH": str(installation.folder)},
        cwd=PACK,
        capture_output=True,
        text=True,
        check=True,
        timeout=TIME_LIMIT,
    ).stdout
    assert Path(printed.strip()) == installation.folder / "nodes.py"


def test_a_file_that_is_no_model_is_named(images, tmp_path, installation: Installation):
    """The command goes on in ComfyUI's interpreter; its error and exit status come back."""
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    command = [str(installation.python), "-m", "trainers", "flow", "--images", str(images), "--output", "x"]
    result = run([*command, "--checkpoint", "c.safetensors", "--device", "cpu"], tmp_path, PYTHONPATH=str(PACK))
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "error: c.safetensors cannot be read" in result.stderr


def test_two_processes_with_batch_1_train_the_same_as_one_with_batch_2(images, tmp_path, installation: Installation):
    """Through gloo. Captions of different lengths are predicted one by one."""
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + SCRIPT.read_text())
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    losses = []
    for name, more, batch_size in (("one", [], 2), ("two", launch, 1)):
        command = [str(installation.python), *more, str(script), str(PACK), str(images), name, str(batch_size)]
        result = run(command, tmp_path, PYTHONPATH=str(installation.folder), CUDA_VISIBLE_DEVICES="")
        assert result.returncode == 0, result.stderr[-3000:]
        found = [line.removeprefix("RESULT") for line in result.stdout.splitlines() if line.startswith("RESULT")]
        losses.append(ast.literal_eval(found[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert (tmp_path / "output" / "two.safetensors").is_file()


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
