"""The folder of a run and the names of its files."""

import json
import logging

import pytest

from trainers.training.events import StepDone
from trainers.training.run_folder import RunFolder


def test_a_run_that_would_overwrite_a_lora_is_refused_before_it_starts(tmp_path):
    (tmp_path / "x.safetensors").write_text("old")
    with pytest.raises(FileExistsError, match="Choose another output name"):
        RunFolder(tmp_path, "x")


def test_two_runs_with_the_same_name_and_second_get_two_folders(tmp_path):
    first = RunFolder(tmp_path, "x")
    first.create({})
    second = RunFolder(tmp_path, "x")
    second.create({})
    assert first.path != second.path


def test_a_run_folder_holds_manifest_loss_and_log(tmp_path):
    run = RunFolder(tmp_path, "x")
    run.create({"training": {"rank": 8}})
    with run.log() as log:
        log.add(StepDone(1, 2, 1, 0.5, 0.5, 1e-4, 3.0, 0.3, 0))
        logging.getLogger("trainers.sdxl").warning("something to know")
    run.write_loss_plot([0.5])
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["training"] == {"rank": 8} and manifest["versions"]["torch"]
    assert (run.path / "loss.csv").read_text().splitlines()[1] == "1,1,0.5,0.5,0.0001,3"
    assert "something to know" in (run.path / "run.log").read_text()
    assert (run.path / "loss.png").stat().st_size > 1000


def test_checkpoints_are_named_as_in_sd_scripts(tmp_path):
    run = RunFolder(tmp_path, "x")
    assert run.checkpoint_path(step=100).name == "x-step00000100.safetensors"
    assert run.checkpoint_path(step=100, epoch=2).name == "x-000002.safetensors"
