"""`python -m trainers check` in a process of its own: exit status, errors in one line, nothing written but the picture."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize((96, 96)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zwx number {number}")
    return folder


def check(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trainers", "check", "--resolution", "64", "--trigger-word", "zwx", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)


def test_a_refusal_exits_with_1_and_writes_the_picture_all_the_same(pictures, tmp_path):
    good = check(tmp_path, "--images", pictures, "--max-train-steps", 300)
    assert good.returncode == 0 and good.stdout.startswith("Flight check of pictures: ready: no findings"), good.stderr
    (pictures / "broken.png").write_bytes(b"no picture")
    bad = check(tmp_path, "--images", pictures, "--max-train-steps", 300, "--picture", "check.png")
    assert bad.returncode == 1 and "broken.png: it is not a picture that can be read here" in bad.stdout and "Traceback" not in bad.stderr
    assert Image.open(tmp_path / "check.png").width == 1280
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.png", "pictures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing --images"),
        (["--images", "nowhere"], "nowhere"),
        (["--images", "pictures", "--stop-at", "notes"], "stop_at must be one of error, warning, never; got 'notes'"),
        (["--images", "pictures", "--base", "nowhere.safetensors"], "nowhere.safetensors: there is no such base model"),
        (["--images", "pictures", "--picture", "pictures/0.png"], "exists already. Give a new name for the picture"),
    ],
)
def test_bad_input_is_one_line(arguments, message, pictures, tmp_path):
    result = check(tmp_path, *arguments)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 1 and message in line and "Traceback" not in result.stderr and not result.stdout
