"""Validation: held-out images, fixed draws within a budget, the best step, early stop."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.unit.training.test_resume import StoppingHost, runs, stop, train
from tests.unit.training.toy_family import PreparedToy
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.join import join_datasets
from trainers.dataset.scan import scan_folder
from trainers.training import best_step, validation_plan
from trainers.training.best_step import find_best, should_stop
from trainers.training.config import TrainingConfig
from trainers.training.events import Interrupted, StepDone, Validated
from trainers.training.held_out import hold_out_images
from trainers.training.plan import TrainingPlan, plan_training
from trainers.training.run_settings import RunSettings

LONG = {  # enough for nine measurements of four draws, with an EMA
    "max_train_steps": 400,
    "train_batch_size": 2,
    "learning_rate": 1e-3,
    "lr_scheduler": "constant",
}


def write_images(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", (64, 64), (20 * number, 255 - 20 * number, 90)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scan_folder(
        DatasetConfig(images=str(write_images(tmp_path_factory.mktemp("images"), 10)), trigger_word="zwx")
    )


def plan(dataset: Dataset, **given: Any) -> TrainingPlan[TrainingConfig]:
    return plan_training(dataset, RunSettings(TrainingConfig(**given), BucketConfig(resolution=64)))


def read_curve(run: Path) -> list[tuple[int, float]]:
    with open(run / "validation.csv", newline="") as stream:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(stream)]


# --- which images ---


def test_held_out_images_are_never_trained_on_and_counted_nowhere(dataset):
    planned = plan(dataset, validation_share=0.2)
    held_out = {item.image.name for item in planned.validation.held_out}
    assert len(held_out) == 2
    assert held_out.isdisjoint(item.image.name for item in planned.crops.items)
    assert planned.schedule.num_samples == planned.schedule.steps_per_epoch == 8
    assert planned.crops.report.num_kept == len(planned.dataset.images) == 8
    assert "2 images held out, never trained on" in planned.crops.report.text()
    assert len({item.index for item in planned.all_items}) == 10


def test_which_images_are_held_out_depends_on_seed_and_content_only(dataset):
    def choose(images: list, seed: int) -> set[str]:
        split = hold_out_images(replace(dataset, images=images), share=0.3, seed=seed)
        return {image.sha256 for image in split.held_out.images}

    renamed = [replace(image, name=f"x{image.name}", caption="other") for image in reversed(dataset.images)]
    assert choose(renamed, 0) == choose(dataset.images, 0)
    assert len({frozenset(choose(dataset.images, seed)) for seed in range(5)}) > 1


def test_copies_of_an_image_are_held_out_together(dataset):
    images = [*dataset.images, *(replace(image, name=f"copy of {image.name}") for image in dataset.images)]
    split = hold_out_images(replace(dataset, images=images), share=0.2, seed=0)
    assert len(split.held_out.images) == 2 and len(split.training.images) == 16


def test_regularization_images_are_never_held_out(dataset):
    images = [replace(image, is_regularization=number < 4) for number, image in enumerate(dataset.images)]
    split = hold_out_images(replace(dataset, images=images), share=0.5, seed=0)
    assert len(split.held_out.images) == 2, "four must be left"
    assert sum(image.is_regularization for image in split.training.images) == 4


def test_too_few_images_are_an_error_that_says_what_to_do(dataset):
    few = replace(dataset, images=dataset.images[:4])
    with pytest.raises(ValueError, match=r"4 different images with a caption is too few.*Set validation_share to 0"):
        plan(few, validation_share=0.1)


def test_a_folder_of_validation_images_is_only_measured(dataset, tmp_path):
    folder = write_images(tmp_path, 3, first=10)
    given = scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx", is_validation=True))
    joined = join_datasets([dataset, given])
    planned = plan(joined)
    assert joined.num_training_samples == planned.schedule.num_samples == 10
    assert {item.image.path.parent for item in planned.validation.held_out} == {folder}
    assert planned.validation.kind == "held-out" and "3 validation images" in planned.crops.report.text()
    with pytest.raises(ValueError, match="nothing but validation images"):
        plan(given)


def test_validation_and_regularization_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="are both on"):
        DatasetConfig(images=str(tmp_path), is_validation=True, is_regularization=True)


# --- draws and budget ---


@pytest.mark.parametrize("given", [{}, {"ema_decay": 0.9}, {"train_batch_size": 4}, {"validate_every_n_steps": 7}])
def test_all_measurements_take_at_most_3_percent_of_the_forward_passes(dataset, given):
    planned = plan(dataset, gradient_checkpointing=False, **given)
    validation, steps = planned.validation, planned.schedule.total_steps
    measured = sum(validation.is_due(step) for step in range(steps + 1))
    passes = measured * len(validation.draws) * (2 if given.get("ema_decay") else 1)
    assert 0.015 * 2 <= passes / (steps * given.get("train_batch_size", 1)) <= 0.03 * 2


def test_an_interval_that_is_too_short_is_lengthened_and_said(dataset):
    planned = plan(dataset, validate_every_n_steps=1)
    assert f"every step would take more than 3% of the run, so it is every {planned.validation.every} steps" in (
        planned.validation.notice
    )


def test_a_run_too_short_has_no_validation_and_says_so_if_it_was_asked_for(dataset):
    assert not plan(dataset, max_train_steps=20, save_best=False).validation.draws
    assert plan(dataset, max_train_steps=20, save_best=False).validation.notice == ""
    assert "too short" in plan(dataset, max_train_steps=20, validation_share=0.2).validation.notice


def test_validation_can_be_switched_off(dataset):
    assert not plan(dataset, validate_every_n_steps=-1).validation.draws


def test_draws_cover_all_noise_levels_and_use_each_image_equally_often(dataset):
    items = plan(dataset).crops.items[:4]
    draws = validation_plan.choose_draws(items, 16, seed=0)
    assert [draw.noise_level for draw in draws] == [(k + 0.5) / 16 for k in range(16)]
    for item in items:
        levels = [draw.noise_level for draw in draws if draw.item is item]
        assert len(levels) == 4 and max(levels) > 0.75 and min(levels) < 0.25


# --- the run ---


def test_validation_changes_no_loss_and_no_weight(dataset, tmp_path):
    given = {**LONG, "lora_dropout": 0.3, "ema_decay": 0.9, "caption_dropout": 0.5}
    measured = train(dataset, tmp_path / "on", **given)
    plain = train(dataset, tmp_path / "off", validate_every_n_steps=-1, **given)
    assert measured.losses == plain.losses
    assert all(torch.equal(measured.state_dict[name], tensor) for name, tensor in plain.state_dict.items())
    assert (runs(tmp_path / "on")[0] / "validation.csv").exists()
    assert not (runs(tmp_path / "off")[0] / "validation.csv").exists()


def test_the_curve_begins_with_the_base_and_ends_with_the_last_step(dataset, tmp_path):
    host = StoppingHost()
    train(dataset, tmp_path, host, validation_share=0.2, validate_every_n_steps=150, **LONG)
    curve = read_curve(runs(tmp_path)[0])
    assert [step for step, _ in curve] == [0, 150, 300, 400]
    assert [(event.step, event.loss) for event in host.select(Validated)] == curve
    progress = json.loads((runs(tmp_path)[0] / "progress.json").read_text())
    (lowest,) = (step for step, loss in curve[1:] if loss == min(loss for _, loss in curve[1:]))
    assert progress["validation"] == {"kind": "held-out", "best_step": lowest}


def test_the_average_has_its_own_column(dataset, tmp_path):
    host = StoppingHost()
    train(dataset, tmp_path, host, ema_decay=0.99, validate_every_n_steps=200, **LONG)
    first, *later = host.select(Validated)
    assert first.ema_loss == first.loss and all(event.ema_loss not in (None, event.loss) for event in later)
    assert (runs(tmp_path)[0] / "validation.csv").read_text().splitlines()[1].count(",") == 2


def test_a_run_that_was_stopped_has_the_curve_of_one_that_was_not(dataset, tmp_path):
    given = {**LONG, "ema_decay": 0.9, "validate_every_n_steps": 100}
    train(dataset, tmp_path / "whole", **given)
    stop(dataset, tmp_path / "parts", 230, **given)
    host = StoppingHost()
    train(dataset, tmp_path / "parts", host, **given)
    (whole,), (parts,) = runs(tmp_path / "whole"), runs(tmp_path / "parts")
    assert (parts / "validation.csv").read_text() == (whole / "validation.csv").read_text()
    assert [event.step for event in host.select(Validated)] == [300, 400]
    best = [load_file(run / "toy-best.safetensors") for run in (whole, parts)]
    assert all(torch.equal(best[0][name], tensor) for name, tensor in best[1].items())


def test_a_longer_run_begins_a_curve_of_its_own(dataset, tmp_path):
    train(dataset, tmp_path, **LONG)
    host = StoppingHost()
    train(dataset, tmp_path, host, **{**LONG, "max_train_steps": 600})
    assert "the validation begins again" in host.messages
    assert host.select(Validated)[0].step == 400


# --- the best step ---


def rows(*losses: float, ema: list[float] | None = None) -> list[list[float]]:
    return [[10.0 * k, loss, ema[k] if ema else float("nan"), 0.0] for k, loss in enumerate(losses)]


def test_the_best_held_out_step_is_the_lowest():
    assert find_best(rows(1.0, 0.7, 0.5, 0.6, 0.7), "held-out").step == 20
    assert find_best(rows(1.0), "held-out") is None
    assert find_best(rows(1.0, 1.2, 1.1), "held-out").step == 20, "the base is no LoRA"


def test_a_small_gain_is_none():
    gain = best_step.MIN_GAINS["stable loss"]
    curve = rows(1.0, 0.5, 0.5 - 0.49 * gain)
    assert find_best(curve, "stable loss").step == 10
    assert find_best(rows(1.0, 0.5, 0.5 - 0.51 * gain), "stable loss").step == 20


def test_the_better_of_step_and_average_counts():
    best = find_best(rows(1.0, 0.7, 0.6, ema=[1.0, 0.8, 0.4]), "held-out")
    assert best.is_ema and best.loss == 0.4


def test_nan_is_never_the_best():
    assert find_best(rows(1.0, 0.7, float("nan"), 0.8), "held-out").step == 10


def test_a_run_stops_after_two_fifths_without_a_better_step():
    curve = rows(1.0, 0.6, 0.5, 0.6, 0.6)
    assert not should_stop(curve, "held-out", total_steps=51) and should_stop(curve, "held-out", total_steps=50)


def overfit(monkeypatch: pytest.MonkeyPatch, lowest: int) -> None:
    """The loss on the draws falls until `lowest` measurements are done, and then rises."""
    real, calls = PreparedToy.validation_losses, []

    def measure(self: PreparedToy, draws: Any) -> torch.Tensor:
        calls.append(1)
        return torch.full_like(real(self, draws), 1 + abs(len(calls) - 1 - lowest) / 10)

    monkeypatch.setattr(PreparedToy, "validation_losses", measure)


def test_the_best_lora_is_kept_beside_the_last(dataset, tmp_path, monkeypatch):
    overfit(monkeypatch, lowest=2)
    given = {**LONG, "validation_share": 0.2, "validate_every_n_steps": 40, "save_every_n_steps": 80}
    trained = train(dataset, tmp_path, **given)
    (run,) = runs(tmp_path)
    assert trained.steps == 400 and trained.best_path == run / "toy-best.safetensors"
    best, checkpoint = load_file(trained.best_path), load_file(run / "checkpoints" / "toy-step00000080.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in checkpoint.items())
    result = json.loads((run / "result.json").read_text())
    assert result["best"] == {"step": 80, "path": str(trained.best_path), "loss": 1.0} and result["reason"] == ""
    again = train(dataset, tmp_path, **given)
    assert again.was_loaded and again.best_path == trained.best_path
    assert not train(dataset, tmp_path / "off", save_best=False, **given).best_path


def test_early_stop_ends_the_run_with_the_lora_so_far(dataset, tmp_path, monkeypatch):
    overfit(monkeypatch, lowest=2)
    given = {**LONG, "validation_share": 0.2, "validate_every_n_steps": 40}
    trained = train(dataset, tmp_path, early_stop=True, **given)
    assert trained.finished_early and trained.steps == 240, "40 % of the run after the best, step 80"
    (run,) = runs(tmp_path)
    assert json.loads((run / "result.json").read_text())["reason"] == "early stop"
    entry = json.loads((run / "manifest.json").read_text())["finished_early"]
    assert entry == {"step": 240, "total_steps": 400, "reason": "early stop"}


def test_a_stopped_run_stops_early_at_the_same_step(dataset, tmp_path, monkeypatch):
    """Killed between the measurement that ends the run and its end, too."""
    curve = {0: 2.0, 40: 1.5, 80: 1.0}
    steps: list[int] = []

    def measure(self: PreparedToy, draws: Any) -> torch.Tensor:
        return torch.full((len(draws),), curve.get(steps[-1] if steps else 0, 1.2))

    class Counting(StoppingHost):
        def report(self, event: Any) -> None:
            super().report(event)
            if isinstance(event, StepDone):
                steps.append(event.step)
            if isinstance(event, Validated) and event.step == 240 and self.cancels:
                raise Interrupted

        cancels = True

    monkeypatch.setattr(PreparedToy, "validation_losses", measure)
    given = {**LONG, "validation_share": 0.2, "validate_every_n_steps": 40, "early_stop": True}
    with pytest.raises(Interrupted):
        train(dataset, tmp_path, Counting(), **given)
    host = Counting()
    host.cancels = False
    assert train(dataset, tmp_path, host, **given).steps == 240
    assert not host.select(StepDone) and len(runs(tmp_path)) == 1


def test_how_often_is_measured_begins_no_new_run(dataset, tmp_path):
    stop(dataset, tmp_path, 130, **LONG)
    host = StoppingHost()
    train(dataset, tmp_path, host, validate_every_n_steps=80, **LONG)
    assert len(runs(tmp_path)) == 1 and "the validation begins again" in host.messages
