"""The command line as users type it, in separate processes: a run, errors, Ctrl-C, two processes,
and exporting the base.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.limits import TIME_LIMIT, wait_until
from trainers.__main__ import main
from trainers.embedded_base.sdxl.architecture import build_text_encoders, build_unet, build_vae
from trainers.sdxl.model.export import write_checkpoint
from trainers.sdxl.model.sdxl_model import build_model

ROOT = Path(__file__).parents[2]
FAST = [
    "--resolution",
    "64",
    "--rank",
    "2",
    "--no-gradient-checkpointing",
    "--max-train-steps",
    "3",
    "--save-dtype",
    "fp32",
    "--device",
    "cpu",
]

# Without a GPU, `accelerate launch --cpu` starts only one process (it leaves several to mpirun).
# --multi_gpu starts torchrun's agent.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    encoder_1, encoder_2 = build_text_encoders()
    parts = {"unet": build_unet(), "text_encoder": encoder_1, "text_encoder_2": encoder_2, "vae": build_vae()}
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_checkpoint(build_model({name: part.state_dict() for name, part in parts.items()}, name="tiny"), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "trainers", *map(str, arguments)]


def run(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), **environment}
    return subprocess.run(arguments, capture_output=True, text=True, cwd=folder, env=variables, timeout=TIME_LIMIT)


def sdxl(base: object, images: object, *more: object, output: str = "x") -> list[str]:
    return command(
        "sdxl", "--images", images, "--base", base, "--trigger-word", "zwx", "--output", output, *FAST, *more
    )


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """Run in this process, which has imported everything already; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda arguments: main(arguments[3:])


def test_one_command_trains_and_a_config_file_does_the_same(base, images, tmp_path, run_here):
    first = run(sdxl(base, images), tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith("Loading torch, ")  # which takes seconds
    assert "output/x.safetensors: 192/192 modules load" in first.stderr and "training: 100%" in first.stderr
    (tmp_path / "run.toml").write_text(
        f'images = "{images}"\nbase = "{base}"\noutput = "y"\ntrigger_word = "zwx"\nresolution = 64\nrank = 4\n'
        'gradient_checkpointing = false\nmax_train_steps = 3\nsave_dtype = "fp32"\ndevice = "cpu"\nprepared_dir = '
        '"prepared"\nresume = "new"\n'
    )
    assert run_here(command("sdxl", "--config", "run.toml", "--rank", "2")) == 0
    weights = [load_file(tmp_path / "output" / f"{name}.safetensors") for name in "xy"]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    assert len(list((tmp_path / "prepared").glob("*.png"))) == 4


def test_a_config_file_trains_on_several_datasets_with_masks_and_caption_variants(base, images, tmp_path, run_here):
    shutil.copytree(images, tmp_path / "toys")
    Image.new("L", (64, 64), 255).save(tmp_path / "toys" / "0-masklabel.png")
    shutil.copytree(images, tmp_path / "class")
    (tmp_path / "run.toml").write_text(
        f'base = "{base}"\noutput = "x"\nresolution = 64\nrank = 2\nmax_train_steps = 3\ndevice = '
        '"cpu"\nshuffle_captions = true\n'
        f'[[datasets]]\nimages = "{tmp_path / "toys"}"\ntrigger_word = "zwx"\nnum_repeats = 2\n'
        f'[[datasets]]\nimages = "{tmp_path / "class"}"\nis_regularization = true\nfallback_caption = "a, '
        'toy"\nloss_weight = 0.5\n'
    )
    assert run_here(command("sdxl", "--config", "run.toml")) == 0
    (report,) = [path.read_text() for path in tmp_path.rglob("dataset.txt")]
    assert (
        "toys: 4 images, 2 repeats each, 1 with a mask" in report
        and "class: 4 regularization images, loss weight 0.5\n" in report
    )
    assert "regularization: 4 images make 8 samples per epoch, as many as the training images" in report


def test_bad_input_ends_with_status_1_and_one_line_on_stderr(base, images, tmp_path):
    result = run(sdxl(base, images, "--rank", "0"), tmp_path)
    assert result.returncode == 1 and not result.stdout
    assert result.stderr == "error: rank must be between 1 and 1024, got 0\n"
    assert list(tmp_path.iterdir()) == []


def test_output_in_an_encoding_of_windows_loses_no_run(tmp_path):
    name = "\u308f\u305f\u3057"
    result = run(command("check", "--images", name), tmp_path, PYTHONIOENCODING="cp1252")
    assert result.returncode == 1
    assert result.stderr.startswith("error: \\u308f\\u305f\\u3057: there is no such folder")


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        arguments, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def interrupt_when(condition: Callable[[], object], process: subprocess.Popen) -> str:
    """Send Ctrl-C as soon as the condition is true; return the rest of stderr."""
    wait_until(lambda: condition() or process.poll() is not None, what="the moment for Ctrl-C")
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=TIME_LIMIT)[1]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_while_training_keeps_a_checkpoint_that_loads(base, images, tmp_path):
    process = start(sdxl(base, images, "--max-train-steps", "100000"), tmp_path)
    errors = interrupt_when(
        lambda: any(len(path.read_text().splitlines()) > 3 for path in tmp_path.rglob("loss.csv")), process
    )
    assert process.returncode == 130 and "Cancelled" in errors and "Traceback" not in errors
    (checkpoint,) = (tmp_path / "output").rglob("checkpoints/*.safetensors")
    assert re.fullmatch(r"x-step\d{8}\.safetensors", checkpoint.name)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint).values())
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process on Windows")
@pytest.mark.parametrize("moment", ["after a second", "once something is in the cache"])
def test_ctrl_c_at_any_moment_leaves_no_half_file(moment, base, images, tmp_path):
    process = start(sdxl(base, images, "--max-train-steps", "100000"), tmp_path)
    if moment == "after a second":
        time.sleep(1)
        interrupt_when(lambda: True, process)
    else:
        interrupt_when(lambda: any((tmp_path / "cache").rglob("*.*")), process)
    assert process.returncode != 0
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "output" / "x.safetensors").exists()
    for path in tmp_path.rglob("*.safetensors"):
        load_file(path)


def test_two_processes_with_batch_1_train_the_same_as_one_with_batch_2(base, images, tmp_path, run_here):
    # A large epsilon keeps Adam linear in the gradient; otherwise rounding flips the sign of
    # updates whose gradient is nearly zero.
    smooth = ["--optimizer-args", "eps=1e-3", "--learning-rate", "1e-2"]
    assert run_here(sdxl(base, images, "--train-batch-size", "2", *smooth, output="one")) == 0
    arguments = sdxl(base, images, "--train-batch-size", "1", *smooth, output="two")[1:]
    two = run([*LAUNCH, *arguments], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert two.returncode == 0, two.stderr
    weights = {name: load_file(tmp_path / "output" / f"{name}.safetensors") for name in ("one", "two")}
    for key, tensor in weights["one"].items():
        torch.testing.assert_close(weights["two"][key], tensor, rtol=1e-3, atol=1e-6)
    losses = [
        np.loadtxt(next((tmp_path / "output" / "runs").glob(f"{name}-*/loss.csv")), delimiter=",", skiprows=1)[:, 2]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    manifest = next((tmp_path / "output" / "runs").glob("two-*/manifest.json")).read_text()
    assert '"num_processes": 2' in manifest


def list_runs(folder: Path) -> list[Path]:
    return list((folder / "output" / "runs").glob("*"))


def test_two_processes_that_were_paused_go_on_bit_for_bit(base, images, tmp_path):
    """They agree on the pause at every tenth step."""
    arguments = sdxl(base, images, "--max-train-steps", "24", output="two")[1:]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    finished = run([*LAUNCH, *arguments], whole, CUDA_VISIBLE_DEVICES="")
    assert finished.returncode == 0, finished.stderr

    def pause() -> None:
        wait_until(lambda: bool(list_runs(parts)), what="the run folder")
        (list_runs(parts)[0] / "pause").touch()

    asking = threading.Thread(target=pause)
    asking.start()
    paused = run([*LAUNCH, *arguments], parts, CUDA_VISIBLE_DEVICES="")
    asking.join()
    assert paused.returncode and "Paused. Start the same again to go on at step" in paused.stderr
    again = run([*LAUNCH, *arguments], parts, CUDA_VISIBLE_DEVICES="")
    assert again.returncode == 0 and "going on with" in again.stderr, again.stderr
    weights = [load_file(folder / "output" / "two.safetensors") for folder in (whole, parts)]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    assert len(list_runs(parts)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process can answer")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_a_command_that_was_ended_goes_on_when_it_is_given_again(number, base, images, tmp_path):
    """SIGKILL leaves the last state that was saved by the clock: here one per step."""
    more = ["--max-train-steps", "60", "--save-state-every-n-minutes", "1e-5"]
    arguments = sdxl(base, images, *more)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(tmp_path.glob("output/runs/*/state/step*.safetensors")), what="a state")
    process.send_signal(number)
    assert process.wait(TIME_LIMIT) == (-9 if number == signal.SIGKILL else 128 + number)
    assert not (tmp_path / "output" / "x.safetensors").exists(), "the run was over before the signal"
    again = run(arguments, tmp_path)
    assert again.returncode == 0 and "going on with" in again.stderr, again.stderr
    whole = run(sdxl(base, images, *more, "--new-run", output="whole"), tmp_path)
    assert whole.returncode == 0, whole.stderr
    weights = [load_file(tmp_path / "output" / f"{name}.safetensors") for name in ("x", "whole")]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    loaded = run(arguments, tmp_path)
    assert loaded.returncode == 0 and "has trained this already" in loaded.stderr
