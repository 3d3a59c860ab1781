"""The folder of a run and the names of its files."""

import errno
import json
import logging
import tempfile
from pathlib import Path

import pytest

from trainers.files import names
from trainers.training.events import StepDone
from trainers.training.run_folder import RunFolder


def test_a_run_that_would_overwrite_a_lora_is_refused_before_it_starts(tmp_path):
    (tmp_path / "x.safetensors").write_text("old")
    with pytest.raises(FileExistsError, match="Choose another output name"):
        RunFolder(tmp_path, "x").require_free_name()


def test_two_runs_with_the_same_name_and_second_get_two_folders(tmp_path):
    first = RunFolder(tmp_path, "x")
    first.create({})
    second = RunFolder(tmp_path, "x")
    second.create({})
    assert first.path != second.path


def test_short_steps_look_for_a_request_twice_a_second_and_long_ones_each(tmp_path, monkeypatch):
    now, looks, real = [0.0], [], Path.exists
    monkeypatch.setattr("trainers.training.run_folder.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Path, "exists", lambda path: looks.append(now[0]) or real(path))
    run = RunFolder(tmp_path, "x")
    run.create({})
    looks.clear()

    def step(seconds: float) -> str | None:
        now[0] += seconds
        return run.take_request()

    assert {step(0.01) for _ in range(1000)} == {None}
    assert 2 * 20 <= len(looks) <= 2 * 21  # ten seconds; two files
    (run.path / "finish").touch()
    asked_at = now[0]
    while step(0.01) != "finish":
        assert now[0] - asked_at < 1
    (run.path / "pause").touch()
    assert step(3.0) == "pause" and step(3.0) is None
    assert not (run.path / "pause").exists()


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


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    RunFolder(tmp_path / "new" / "deeper", "x").require_writable()
    assert list(tmp_path.iterdir()) == []

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"new cannot be written \(Permission denied\)\. Choose another output folder"):
        RunFolder(tmp_path / "new", "x").require_writable()


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError, match="out cannot be written"):
        RunFolder(tmp_path / "out", "x").require_writable()


def test_a_path_too_long_for_windows_is_said_before_the_run(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / ("long" * 40), "x" * 60)
    folder.require_writable()
    monkeypatch.setattr(names.sys, "platform", "win32")
    monkeypatch.setattr(names, "_allows_long_paths", lambda: False)
    with pytest.raises(ValueError, match="characters; Windows allows 259"):
        folder.require_writable()
    monkeypatch.setattr(names, "_allows_long_paths", lambda: True)
    folder.require_writable()
