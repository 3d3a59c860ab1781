"""`python -m trainers musubi` in a separate process: its messages without Musubi Tuner, and a plan,
which starts nothing.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.limits import TIME_LIMIT
from trainers.__main__ import main
from trainers.musubi import plan
from trainers.musubi.trainer import MusubiTrainer
from trainers.training.host import Host

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout with just enough to be found."""
    folder = tmp_path / "musubi-tuner"
    (folder / "src/musubi_tuner").mkdir(parents=True)
    (folder / "src/musubi_tuner/zimage_train_network.py").write_text("raise SystemExit('it was started')")
    (folder / "pyproject.toml").write_text('[project]\nversion = "0.3.4"\n')
    return folder


def musubi(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MUSUBI_")}
    command = [sys.executable, "-m", "trainers", "musubi", *map(str, arguments)]
    environment = {**inherited, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", cwd=folder, env=environment, timeout=TIME_LIMIT
    )


def plan_arguments(folder: Path) -> list[object]:
    images = folder / "été [1]"
    images.mkdir()
    Image.new("RGB", (64, 64), "red").save(images / "a.png")
    (images / "a.txt").write_text("a disc")
    for name in ("dit", "vae", "text_encoder"):
        save_file({"x.weight": torch.ones(64, 64, dtype=torch.bfloat16)}, folder / f"{name}.safetensors")
    files = [
        argument
        for name in ("dit", "vae", "text_encoder")
        for argument in (f"--{name.replace('_', '-')}", f"{name}.safetensors")
    ]
    return [
        "plan",
        "--architecture",
        "z-image",
        "--output",
        "disc",
        "--images",
        images,
        *files,
        "--resolution",
        64,
        "--musubi-python",
        sys.executable,
    ]


def test_without_musubi_the_doctor_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MUSUBI_TUNER_DIR", str(tmp_path / "gone"))
    assert main(["musubi", "doctor"]) == 1
    said = capsys.readouterr().out
    assert "MUSUBI_TUNER_DIR" in said and "git clone https://github.com/kohya-ss/musubi-tuner" in said


def test_a_plan_shows_the_files_and_commands_and_leaves_no_trace(tmp_path: Path, checkout: Path):
    arguments = plan_arguments(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    said = musubi(tmp_path, *arguments, "--musubi-dir", checkout, "--cache-dir", tmp_path / "cache")
    assert said.returncode == 0, said.stderr
    assert "[[datasets]]" in said.stdout and "resolution = [64, 64]" in said.stdout
    assert [f"# {stage}" in said.stdout for stage in ("latents", "text", "train", "convert")] == [True] * 4
    assert (
        "--network_module networks.lora_zimage --network_dim 32" in said.stdout
        and str(tmp_path / "dit.safetensors") in said.stdout
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_all_mistakes_are_reported_at_once_and_in_words(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = [*plan_arguments(tmp_path), "--musubi-dir", checkout]
    (tmp_path / "vae.safetensors").unlink()
    monkeypatch.chdir(tmp_path)

    def said_of(*more: object) -> str:
        assert main(["musubi", *map(str, arguments), *map(str, more)]) == 1
        return capsys.readouterr().err

    broken = said_of("--text-encoder", "gone.safetensors")
    assert "vae.safetensors: there is no such file" in broken and "gone.safetensors: there is no" in broken
    assert "z-image has no --task. It has --dit, --text-encoder, --vae" in said_of("--task", "t2v-14B")
    assert "--dataset-toml replaces the image flags: leave out --images" in said_of("--dataset-toml", "x.toml")
    assert "there is no such folder" in said_of("--musubi-dir", tmp_path / "gone")


def test_a_training_is_planned_once(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch):
    plans: list[plan.Plan] = []
    build = plan._build_plan

    def record(*arguments: Any, **settings: Any) -> plan.Plan:
        plans.append(build(*arguments, **settings))
        return plans[-1]

    def run(trainer: MusubiTrainer, planned: plan.Plan, host: Host) -> SimpleNamespace:
        assert plans == [planned]
        return SimpleNamespace(path="disc.safetensors")

    monkeypatch.setattr(plan, "_build_plan", record)
    monkeypatch.setattr(MusubiTrainer, "run", run)
    arguments = [*plan_arguments(tmp_path), "--musubi-dir", checkout, "--cache-dir", tmp_path / "cache"]
    monkeypatch.chdir(tmp_path)
    assert main(["musubi", "train", *map(str, arguments[1:])]) == 0 and len(plans) == 1
