"""The training loop with a toy family: nothing in it depends on SDXL."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers.optimization import Adafactor

from tests.unit.training.toy_family import ToyFamily
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.files.tensor_cache import TensorCache
from trainers.training.config import TrainingConfig
from trainers.training.device import DeviceMemory
from trainers.training.events import CheckpointSaved, Event, Interrupted, Notice, SamplesDrawn, StepDone
from trainers.training.loop import train_lora
from trainers.training.optimizer_step import NonFiniteLoss
from trainers.training.plan import plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.trained_lora import TrainedLora

ROOT = Path(__file__).parents[3]


class ListeningHost(DeviceMemory):
    def __init__(self, *, cancel_after: int | None = None) -> None:
        super().__init__(torch.device("cpu"))
        self.events: list[Event] = []
        self._cancel_after = cancel_after

    def report(self, event: Event) -> None:
        self.events.append(event)

    def take_request(self) -> None:
        return None

    def check_interrupted(self) -> None:
        if len(self.select(StepDone)) == self._cancel_after:
            raise Interrupted

    def select(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("images")
    for number, (size, colour) in enumerate([((64, 64), "red"), ((64, 64), "blue"), ((64, 96), "green")]):
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))


def train(dataset: Dataset, folder: Path, host: ListeningHost | None = None, **settings: object) -> TrainedLora:
    usual = {"rank": 2, "max_train_steps": 6, "learning_rate": 1e-2, "save_dtype": "fp32", "lr_warmup_steps": 0.0}
    run_settings = RunSettings(
        TrainingConfig(**{**usual, **settings}), BucketConfig(resolution=64, bucket_reso_steps=32)
    )
    plan = plan_training(dataset, run_settings)
    run_folder, cache = RunFolder(folder, "toy"), TensorCache(None)
    return train_lora(ToyFamily(), plan, host or ListeningHost(), run_folder=run_folder, cache=cache, resume="new")


def test_a_toy_family_trains_saves_checkpoints_samples_and_a_verified_lora(dataset, tmp_path):
    host = ListeningHost()
    trained = train(dataset, tmp_path, host, save_every_n_steps=2, sample_every_n_steps=3, max_train_steps=200)
    assert sum(trained.losses[-20:]) < 0.8 * sum(trained.losses[:20])
    assert len(trained.checkpoints) == len(host.select(CheckpointSaved)) == 99
    assert [event.step for event in host.select(SamplesDrawn)] == list(range(0, 201, 3))
    with safe_open(trained.path, "pt") as file:
        assert set(file.keys()) == {
            f"diffusion_model_0.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
        }
        header = file.metadata()
    assert header["ss_base_model_version"] == "toy" and header["modelspec.architecture"] == "toy/lora"
    assert "modelspec.prediction_type" not in header and "ss_zero_terminal_snr" not in header
    (manifest,) = tmp_path.glob("runs/*/manifest.json")
    assert json.loads(manifest.read_text())["modules"] == {"transformer": 1}


@pytest.mark.parametrize("batching", [{"train_batch_size": 3}, {"gradient_accumulation_steps": 2}])
def test_the_loss_is_the_mean_over_all_samples_of_a_step_however_they_are_batched(dataset, tmp_path, batching):
    """There are two buckets: a step has two samples or one, with batch size 3 as with two
    micro-batches.
    """
    trained = train(dataset, tmp_path, **batching, max_train_steps=1, learning_rate=1e-9)
    assert trained.losses[0] > 0 and trained.steps == 1


def test_a_cancelled_run_keeps_its_last_step(dataset, tmp_path):
    with pytest.raises(Interrupted):
        train(dataset, tmp_path, ListeningHost(cancel_after=3))
    assert [path.name for path in tmp_path.rglob("toy*.safetensors")] == ["toy-step00000003.safetensors"]


def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_step(dataset, tmp_path, monkeypatch):
    real = ToyFamily.prepare

    def prepare(family, plan, host, **rest):
        prepared = real(family, plan, host, **rest)
        terms = prepared.loss_terms
        prepared.loss_terms = lambda items, step: (
            losses * (float("nan") if step == 3 else 1.0) for losses in terms(items, step)
        )
        return prepared

    monkeypatch.setattr(ToyFamily, "prepare", prepare)
    with pytest.raises(NonFiniteLoss, match=r"step 3: loss nan.*in float32\. Lower the learning rate"):
        train(dataset, tmp_path)
    assert [path.name for path in tmp_path.rglob("toy*.safetensors")] == ["toy-step00000002.safetensors"]


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion", "torch.optim.RAdam"])
def test_any_family_can_use_any_optimizer(dataset, tmp_path, optimizer):
    assert train(dataset, tmp_path, optimizer=optimizer).steps == 6


def test_the_loop_and_its_settings_import_no_family():
    code = (
        "import sys, trainers.training.loop; print([name for name in sys.modules if "
        "name.startswith(('trainers.sdxl', 'trainers.musubi'))])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.strip()
        == "[]"
    )


def test_the_events_of_a_run_are_in_its_log(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    host = ListeningHost()
    train(dataset, tmp_path, host, save_every_n_steps=2)
    (log,) = tmp_path.rglob("run.log")
    text = log.read_text()
    assert all(words in text for words in ("loading", "training, 6 steps", "step 1/6: loss", "step 6/6", "saving"))
    assert "step 2: saved " in text and text.splitlines()[-1].endswith("finished")
    assert all(event.message in text for event in host.select(Notice))
    assert capsys.readouterr().err == ""


def test_a_cancelled_run_says_what_it_kept_and_how_to_go_on(dataset: Dataset, tmp_path: Path):
    host = ListeningHost(cancel_after=4)
    with pytest.raises(Interrupted):
        train(dataset, tmp_path, host)
    (kept,) = tmp_path.rglob("checkpoints/*.safetensors")
    said = host.select(Notice)[-1].message
    assert said.startswith("Start the same again, and it goes on at step 4 of 6") and said.endswith(f"is {kept}")
    (log,) = tmp_path.rglob("run.log")
    assert log.read_text().splitlines()[-1].endswith("ended early: Interrupted")


def test_an_optimizer_that_cannot_step_is_an_error_before_the_model_is_loaded(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: object, closure: object = None) -> None:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(Adafactor, "step", fail)
    monkeypatch.setattr(ToyFamily, "prepare", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"optimizer Adafactor cannot train on cpu \(no kernel image is") as raised:
        train(dataset, tmp_path, optimizer="Adafactor")
    assert "Choose AdamW" in str(raised.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("larger", [{"train_batch_size": 2}, {"gradient_accumulation_steps": 2}])
def test_a_sample_weighs_the_same_in_a_step_that_is_not_full(tmp_path, larger):
    Image.new("RGB", (64, 64), "green").save(tmp_path / "0.png")
    alone = scan_folder(DatasetConfig(images=str(tmp_path), trigger_word="zwx"))
    settings = {"optimizer": "torch.optim.SGD", "max_train_steps": 1, "max_grad_norm": 0.0, "weight_decay": 0.0}
    full, half = (
        train(alone, tmp_path / name, **settings, **given)
        for name, given in (("full", {"train_batch_size": 1}), ("half", {"train_batch_size": 1, **larger}))
    )
    assert half.losses == full.losses
    up = "diffusion_model_0.lora_up.weight"
    torch.testing.assert_close(half.state_dict[up], full.state_dict[up] / 2)
    assert full.state_dict[up].any()
