"""`make demo` with ComfyUI: starts a server, runs the shipped prompt and writes its files. Three
steps only: other tests judge what it learns.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from trainers.comfyui.find import Installation
from trainers.commands.demo import SETTINGS
from trainers.demo.in_comfyui import run_demo


def test_the_demo_runs_the_shipped_prompt_and_writes_its_files(installation: Installation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the command passes a relative folder too
    demo = run_demo(installation, Path("demo"), settings={**SETTINGS, "max_train_steps": 3}, num_seeds=2)
    assert sum(name.endswith(".alpha") for name in load_file(demo.lora)) == 192
    assert len((demo.run_folder / "loss.csv").read_text().splitlines()) == 1 + 3
    image = np.asarray(Image.open(demo.before_after))
    assert image.shape == (2 * 128, 2 * 128 + 16, 3)
    assert 0 <= demo.fidelity_before < 0.1 and 0 <= demo.fidelity_after <= 1
    for name in ("loss.png", "dataset.txt", "manifest.json"):
        assert (demo.run_folder / name).is_file(), name
