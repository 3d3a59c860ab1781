"""`python -m trainers check` in a separate process: its exit status, and that it writes only the
image.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.limits import TIME_LIMIT
from trainers.__main__ import main

ROOT = Path(__file__).parents[2]
CHECK = ["check", "--resolution", "64", "--trigger-word", "zwx"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize((96, 96)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zwx number {number}")
    return folder


def check(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trainers", *CHECK, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=TIME_LIMIT,
    )


def test_a_refusal_exits_with_1_and_still_writes_the_image(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*CHECK, "--images", str(images), "--max-train-steps", "300"]) == 0
    assert capsys.readouterr().out.startswith("Flight check of pictures: ready: no findings")
    (images / "broken.png").write_bytes(b"no image")
    bad = check(tmp_path, "--images", images, "--max-train-steps", 300, "--picture", "check.png")
    assert (
        bad.returncode == 1 and "broken.png: it is not a readable image" in bad.stdout and "Traceback" not in bad.stderr
    )
    assert Image.open(tmp_path / "check.png").width == 1280
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.png", "pictures"]
