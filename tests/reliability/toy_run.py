"""The training that is broken: the toy family with states, checkpoints, samples and an average."""

import functools
import gc
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from tests.unit.training.toy_family import ToyFamily
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.files.tensor_cache import TensorCache
from trainers.training import validation_plan
from trainers.training.config import TrainingConfig
from trainers.training.device import DeviceMemory
from trainers.training.events import Event, Notice, Request, StepDone
from trainers.training.loop import train_lora
from trainers.training.plan import plan_training
from trainers.training.resume import state_ring
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.trained_lora import TrainedLora

SETTINGS = {
    "rank": 2,
    "max_train_steps": 8,
    "learning_rate": 1e-2,
    "save_dtype": "fp32",
    "lr_warmup_steps": 2.0,
    "lora_dropout": 0.1,
    "ema_decay": 0.9,
    "save_every_n_steps": 3,
    "sample_every_n_steps": 4,
}
# Measured after each step. The best step is 7, by the average; the run ends at step 13.
VALIDATED = {
    "max_train_steps": 14,
    "learning_rate": 0.05,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0.0,
    "validation_share": 0.3,
    "validate_every_n_steps": 1,
    "early_stop": True,
}
EACH_STEP = 1e-9  # minutes between two states


class Journal:
    """Lines that outlive the process that writes them."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, *words: object) -> None:
        os.write(self._descriptor, (" ".join(map(str, words)).replace("\n", " ") + "\n").encode())


class JournalHost(DeviceMemory):
    """Writes each finished step and each notice into the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(torch.device("cpu"))
        self._journal = journal

    def report(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._journal.add("step", event.step)
        elif isinstance(event, Notice):
            self._journal.add("notice", event.message)

    def take_request(self) -> Request | None:
        return None

    def check_interrupted(self) -> None:
        pass


def warm_up(dataset: Dataset, folder: Path) -> None:
    """Import and remember in this process what each process forked from it would load again."""
    importlib.metadata.version = functools.cache(importlib.metadata.version)
    train(dataset, folder, JournalHost(Journal(folder.with_suffix(".txt"))))
    gc.freeze()


def make_dataset(folder: Path) -> Dataset:
    return _make_dataset(folder, [((64, 64), "red"), ((64, 64), "blue"), ((64, 96), "green")])


def make_alike_dataset(folder: Path) -> Dataset:
    """Six images that are alike: what is learned of four shows on the two that are held out."""
    colours = ("#a03020", "#b03828", "#904030", "#a84434", "#983c20", "#b44a30")
    return _make_dataset(folder, [((64, 64), colour) for colour in colours])


def _make_dataset(folder: Path, images: Sequence[tuple[tuple[int, int], str]]) -> Dataset:
    folder.mkdir(parents=True)
    for number, (size, colour) in enumerate(images):
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))


def train(dataset: Dataset, folder: Path, host: Any, **given: Any) -> TrainedLora:
    settings = RunSettings(
        TrainingConfig(**{"save_state_every_n_minutes": EACH_STEP, **SETTINGS, **given}),
        BucketConfig(resolution=64, bucket_reso_steps=32),
    )
    max_share = 1e3 if settings.training.early_stop else validation_plan.MAX_SHARE  # the run is very short
    with patch.object(validation_plan, "MAX_SHARE", max_share):
        plan = plan_training(dataset, settings)
    with patch.object(state_ring, "MAX_TIME_SHARE", 1e9):
        return train_lora(ToyFamily(), plan, host, run_folder=RunFolder(folder, "toy"), cache=TensorCache(None))


@contextmanager
def record_states(journal: Journal, *, wait: bool) -> Iterator[None]:
    """Add each state that is whole to the journal. `wait`: the next step waits for it."""
    write, start = state_ring.write_state, state_ring.StateRing.start_writing

    def write_and_record(path: Path, state: Any) -> None:
        write(path, state)
        journal.add("state", state.step)

    def start_and_wait(ring: Any, make: Any) -> None:
        start(ring, make)
        if wait:
            ring._thread.join()

    with (
        patch.object(state_ring, "write_state", write_and_record),
        patch.object(state_ring.StateRing, "start_writing", start_and_wait),
    ):
        yield
