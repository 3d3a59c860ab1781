"""Errors in settings and folders are reported before the large libraries are imported: a typing
error must not cost seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.data.make_tiny_florence2 import FOLDER as CAPTIONER
from tests.limits import TIME_LIMIT

Said = tuple[int, str, str, list[str]]  # exit status, stdout, stderr, imported large modules
ROOT = Path(__file__).parents[2]
MODELS = ("dit", "vae", "text_encoder")
FILES = [argument for name in MODELS for argument in (f"--{name.replace('_', '-')}", f"{name}.safetensors")]
MUSUBI = ["--architecture", "z-image", *FILES, "--musubi-dir", "musubi", "--musubi-python", sys.executable]
GOOD = {
    "sdxl": ["sdxl", "--images", "pictures", "--base", "base", "--output", "x", "--trigger-word", "zwx"],
    "slider": [
        "slider",
        "--base",
        "base",
        "--output",
        "x",
        "--positive",
        "a large thing",
        "--negative",
        "a small thing",
    ],
    "check": ["check", "--images", "pictures", "--base", "base", "--output", "x", "--trigger-word", "zwx"],
    "compare": [
        "compare",
        "--base",
        "base",
        "--loras",
        "dit.safetensors",
        "--prompts",
        "a dog",
        "--output",
        "grid.png",
    ],
    "caption": ["caption", "--images", "pictures", "--model", str(CAPTIONER)],
    "plan": ["musubi", "plan", "--images", "pictures", "--output", "x", *MUSUBI],
    "train": ["musubi", "train", "--images", "pictures", "--output", "x", *MUSUBI],
}
# Arguments to add to the good ones, and the message they give.
EVERYWHERE = [
    (["--images", "nowhere"], "nowhere: there is no such folder"),
    (["--images", "empty"], "empty: no images, it is empty"),
    (["--num-repeats", "0"], "num_repeats must be between 1 and"),
]
OUTPUT = [
    (["--output", "../x"], "output name '../x' has '/' in it"),
    (["--max-train-steps", "0"], "max_train_steps must be between 1 and 1000000, got 0"),
]
SDXL = [
    (["--rank", "0"], "rank must be between 1 and 1024, got 0"),
    (["--learning-rate", "-1"], "learning_rate must be between 0.0 and 10.0, got -1.0"),
    (["--optimizer", "Muon"], "optimizer must be one of AdamW,"),
    (["--resolution", "1000"], "resolution must be a multiple of 64, got 1000"),
    (["--output", "nul"], "is reserved on Windows"),
]
BASE = [(["--base", "nowhere.safetensors"], "nowhere.safetensors: no such base model")]
TOML = [
    (["--config", "broken.toml"], "broken.toml: not valid TOML"),
    (["--config", "unknown.toml"], "unknown.toml: unknown setting network_dim"),
]
OF_SLIDER = [
    (["--negative", "a large  thing"], "positive and negative are both 'a large thing'"),
    (["--positive", "", "--negative", ""], "positive and negative are empty"),
    (["--target", "a {attribute} thing"], "a prompt has {attribute}, but attributes is empty"),
    (["--adapter", "dora"], "adapter dora has no opposite"),
    (["--config", "datasets.toml"], "datasets.toml: unknown setting datasets"),
    (["--config", "dropout.toml"], "dropout.toml: unknown setting caption_dropout"),
]
OF_CHECK = [
    (["--stop-at", "notes"], "stop_at must be one of error, warning, never; got 'notes'"),
    (["--picture", "pictures/0.png"], "exists already. Give a new name for the image"),
]
OF_COMPARE = [
    (["--output", "pictures/0.png"], "exists already. Give a new name for the grid"),
    (["--strengths", "strong"], "strengths must be numbers between -100 and 100"),
    (["--seeds", "1.5"], "seeds must be whole numbers between 0 and"),
    (["--width", "100"], "width must be a multiple of 8, got 100"),
    (["--loras", "nowhere.safetensors"], "nowhere.safetensors: there is no such file"),
    (["--loras", "broken.toml"], "broken.toml: only .safetensors files are compared"),
    (["--run", "nobody"], "nobody: there is no such run in"),
    (["--prompts", " "], "there is no prompt"),
    (["--prompts", "a {trigger}"], "its header names no trigger word for {trigger}"),
]
OF_MUSUBI = [
    (["--dit", "nowhere.safetensors"], "nowhere.safetensors: there is no such file"),
    (["--musubi-dir", "nowhere"], "nowhere"),
    (["--task", "x"], "z-image has no --task"),
]
BAD = {
    "sdxl": [*EVERYWHERE, *OUTPUT, *BASE, *TOML, *SDXL],
    "slider": [*OUTPUT, *BASE, *TOML, *SDXL, *OF_SLIDER],
    "check": [*EVERYWHERE, *OUTPUT, *BASE, *TOML, *SDXL, *OF_CHECK],
    "compare": [*BASE, *OF_COMPARE],
    "caption": [*EVERYWHERE, (["--model", "nowhere"], "nowhere"), (["--task", "sing"], "task must be one of")],
    "plan": [*EVERYWHERE, *OUTPUT, *OF_MUSUBI],
    "train": [*EVERYWHERE, *OUTPUT, *OF_MUSUBI],
}
INCOMPLETE = [
    (["sdxl", "--images", "x"], "missing --base, --output"),
    (["slider", "--positive", "x"], "missing --base, --output"),
    (["check"], "missing --images"),
    (["caption", "--model", "x"], "missing --images"),
    (["musubi", "plan", "--output", "x", *MUSUBI], "missing --images, or --dataset-toml"),
]
CASES = [*INCOMPLETE, *(([*GOOD[name], *more], message) for name, cases in BAD.items() for more, message in cases)]
PROGRAM = """
import contextlib, io, json, sys
from trainers.__main__ import main

for arguments in json.load(sys.stdin):
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        status = main(arguments)
    heavy = sorted({"torch", "diffusers", "transformers", "peft"} & sys.modules.keys())
    print(json.dumps([status, said.getvalue(), errors.getvalue(), heavy]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with everything that the good arguments name."""
    place = tmp_path_factory.mktemp("place")
    for name in ("pictures", "empty", "base", "musubi/src/musubi_tuner"):
        (place / name).mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (1024, 1024), (0, 0, 90 * number)).save(place / "pictures" / f"{number}.png")
        (place / "pictures" / f"{number}.txt").write_text("a square")
    (place / "broken.toml").write_text("rank = = 3")
    (place / "unknown.toml").write_text("network_dim = 3")
    (place / "datasets.toml").write_text('[[datasets]]\nimages = "pictures"')
    (place / "dropout.toml").write_text("caption_dropout = 0.1")
    for name in MODELS:
        weights = {"x.weight": torch.ones(64, 64, dtype=torch.bfloat16)}
        save_file(weights, place / f"{name}.safetensors")
    (place / "musubi/src/musubi_tuner/zimage_train_network.py").touch()
    (place / "musubi/pyproject.toml").write_text('[project]\nversion = "0.3.4"\n')
    return place


@pytest.fixture(scope="module")
def said(place: Path) -> list[Said]:
    """Run every case in one process; return the results."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([arguments for arguments, _ in CASES]),
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=TIME_LIMIT,
    )
    assert result.returncode == 0, result.stderr
    return [tuple(json.loads(line)) for line in result.stdout.splitlines()]


NAMES = [" ".join([*arguments[:2], *arguments[-2:]]) for arguments, _ in CASES]


@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_a_mistake_gives_one_line_before_anything_large_is_imported(number: int, said: list[Said]):
    _, message = CASES[number]
    status, output, errors, heavy = said[number]
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 1 and message in line and not output
    assert heavy == []


def test_nothing_was_written(place: Path, said: list[Said]):
    assert len(said) == len(CASES)
    given = {"base", "broken.toml", "datasets.toml", "dropout.toml", "empty", "musubi", "pictures", "unknown.toml"}
    assert {path.name for path in place.iterdir()} == given | {f"{name}.safetensors" for name in MODELS}
    assert len(list((place / "pictures").iterdir())) == 4
