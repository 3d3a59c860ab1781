"""`make demo` with ComfyUI: starts a server, runs the shipped prompt and writes its files. Three
steps only: other tests judge what it learns.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from trainers.__main__ import main
from trainers.comfyui.find import Installation, NoComfyUI
from trainers.commands.demo import SETTINGS, Z_IMAGE_SETTINGS
from trainers.demo.before_after import NEW_PROMPTS, OLD_PROMPTS
from trainers.demo.in_comfyui import run_demo
from trainers.demo.z_image import run_z_image_demo


def test_the_demo_runs_the_shipped_prompt_and_writes_its_files(installation: Installation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the command passes a relative folder too
    demo = run_demo(installation, Path("demo"), settings={**SETTINGS, "max_train_steps": 3}, num_seeds=2)
    assert sum(name.endswith(".alpha") for name in load_file(demo.lora)) == 192
    assert_complete(demo.run_folder)
    image = np.asarray(Image.open(demo.before_after))
    assert image.shape == (2 * 128, 2 * 128 + 16, 3)
    assert 0 <= demo.fidelity_before < 0.1 and 0 <= demo.fidelity_after <= 1


def test_the_demo_on_a_z_image_draws_every_prompt_without_and_with_the_lora(
    installation: Installation, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = {**Z_IMAGE_SETTINGS, "max_train_steps": 3}
    demo = run_z_image_demo(installation, Path("demo"), settings=settings, num_seeds=1, num_steps=3)
    assert sum(name.endswith(".alpha") for name in load_file(demo.lora)) == 15  # 5 layers in each of 3 blocks
    assert_complete(demo.run_folder)
    images = demo.comparison.before, demo.comparison.after
    assert all(each.shape == (len(NEW_PROMPTS + OLD_PROMPTS), 128, 128, 3) for each in images)
    assert demo.comparison.drift > 0
    assert Image.open(demo.before_after).size[0] > 2 * 128


def assert_complete(run_folder: Path) -> None:
    assert len((run_folder / "loss.csv").read_text().splitlines()) == 1 + 3
    for name in ("loss.png", "dataset.txt", "manifest.json"):
        assert (run_folder / name).is_file(), name


def test_without_comfyui_the_demo_on_a_z_image_says_what_it_needs(tmp_path, monkeypatch, capsys):
    def find_nothing():
        raise NoComfyUI("none was found")

    monkeypatch.setattr("trainers.comfyui.find.find_comfyui", find_nothing)
    assert main(["demo", "--model", "z-image", "--output-dir", str(tmp_path / "out")]) == 1
    assert "error: the demo on a Z-Image needs ComfyUI: none was found" in capsys.readouterr().err
    assert main(["demo", "--model", "z-image", "--core", "--output-dir", str(tmp_path / "out")]) == 1
    assert "leave --core out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
