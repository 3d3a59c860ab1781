"""What a run's folder says, whatever state it is in; and what a run can be asked for."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.run_folders import keep_alive, write_lora, write_losses, write_run
from trainers.training.runs.reader import RunNotAlive, RunReader, UnknownRun
from trainers.training.runs.record import RunRecord

NAME = "toadstool-20261130-140000"
ORIGIN = {"node_id": "12:5", "workflow_id": "w", "prompt_id": "p"}


def read(runs_folder: Path, name: str = NAME, max_points: int = 300) -> RunRecord:
    record = RunReader().read_run(runs_folder, name, max_points=max_points)
    json.dumps(asdict(record), allow_nan=False)
    return record


def test_a_record_has_all_that_a_panel_shows(tmp_path: Path):
    folder = write_run(tmp_path, origin=ORIGIN, notices=["bf16 is used"])
    with keep_alive(folder):
        record = read(tmp_path)
    summary = record.summary
    assert (summary.name, summary.status, summary.stage, summary.can_ask) == (NAME, "running", "training", True)
    assert (summary.step, summary.total) == (600, 1000) and record.eta_seconds == pytest.approx(250)
    assert (summary.node_id, summary.workflow_id, summary.prompt_id) == ("12:5", "w", "p")
    assert record.curve.step[-1] == 600 and len(record.curve.step) <= 300
    assert record.validation.kind == "held-out" and record.validation.best_step == 400
    assert record.validation.step == [100, 200, 300, 400, 500, 600] and record.validation.ema_loss == [None] * 6
    assert [sample.step for sample in record.samples] == [600, 400, 200] and record.num_samples == 3
    latest = record.loras[0]
    assert (latest.kind, latest.step, latest.bytes) == ("checkpoint", 600, 700_000) and Path(latest.path).is_file()
    assert record.notices == ["bf16 is used"] and record.settings.startswith("object") and record.notes == []


def test_the_best_lora_of_a_run_that_goes_on_is_no_result(tmp_path: Path):
    folder = write_run(tmp_path)
    write_lora(folder / "toadstool-best.safetensors")
    (best, *_) = read(tmp_path).loras
    assert (best.kind, best.step, best.is_best) == ("best", 400, True)


def test_a_finished_run_lists_its_result_first_and_marks_the_best_checkpoint(tmp_path: Path):
    write_run(tmp_path, steps=1000, status="finished")
    record = read(tmp_path)
    assert record.summary.status == "finished" and not record.summary.can_ask
    assert record.loras[0].kind == "final" and Path(record.loras[0].path).name == "toadstool.safetensors"
    assert [lora.step for lora in record.loras if lora.is_best] == [400]


def test_a_result_outside_of_the_folder_is_not_looked_at(tmp_path: Path):
    folder = write_run(tmp_path, steps=200)
    result = {"path": "/etc/passwd", "ema_path": "\\\\machine\\share\\x", "best": {"path": "../../x", "step": "y"}}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "checkpoints" / "other.safetensors").symlink_to("/etc/passwd")
    assert [lora.step for lora in read(tmp_path).loras] == [200]


def test_checkpoints_of_epochs_and_files_of_users(tmp_path: Path):
    folder = write_run(tmp_path, steps=0)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    names = ["toadstool-000002.safetensors", "toadstool-step00000100.safetensors", "mine.safetensors"]
    for time, name in enumerate([*names, ".toadstool.x.tmp", "notes.txt"]):
        (checkpoints / name).touch()
        os.utime(checkpoints / name, (time, time))
    (checkpoints / "folder.safetensors").mkdir()
    assert [(lora.step, lora.epoch) for lora in read(tmp_path).loras] == [(None, None), (100, None), (None, 2)]


@pytest.mark.parametrize(
    ("status", "alive", "expected"),
    [
        ("running", True, "running"),
        ("running", False, "stopped"),
        ("paused", False, "paused"),
        ("failed", False, "failed"),
        ("finished early", True, "finished early"),
        ("what?", False, "stopped"),
    ],
)
def test_a_run_that_was_killed_is_stopped(tmp_path: Path, status: str, alive: bool, expected: str):
    folder = write_run(tmp_path, steps=1)
    progress = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps({**progress, "status": status}))
    if alive:
        with keep_alive(folder):
            assert read(tmp_path).summary.status == expected
    else:
        assert read(tmp_path).summary.status == expected


def test_a_run_of_an_older_version_has_a_status_a_total_and_a_start(tmp_path: Path):
    folder = tmp_path / NAME
    folder.mkdir()
    write_losses(folder, [0.5] * 20, total=20)
    (folder / "manifest.json").write_text(json.dumps({"total_steps": 20}))
    summary = read(tmp_path).summary
    assert (summary.status, summary.step, summary.total) == ("stopped", 20, 20) and summary.started_at
    (folder / "toadstool.safetensors").touch()
    assert read(tmp_path).summary.status == "finished"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"status": ["running"], "step": "many", "total": 1e400, "validation": [], "notices": {"a": 1}}',
        b'{"step": -5, "total": NaN, "loss": Infinity, "notices": [1, "kept"], "validation": {"best_step": true}}',
        b'{"message": "' + b"x" * 5_000_000 + b'"}',
    ],
)
def test_broken_files_are_noted_and_nothing_is_raised(tmp_path: Path, content: bytes):
    folder = write_run(tmp_path, steps=3)
    for name in ("progress.json", "result.json", "origin.json", "validation.csv"):
        (folder / name).write_bytes(content)
    record = read(tmp_path)
    assert record.summary.step == 3 and record.loss is None and record.validation.step == []
    assert record.notes or content.startswith(b'{"st')
    assert len(RunReader().list_runs(tmp_path)) == 1


def test_a_validation_that_is_being_written_counts_without_its_last_line(tmp_path: Path):
    folder = write_run(tmp_path, steps=0)
    (folder / "validation.csv").write_text("step,loss,ema_loss\n100,0.5,0.4\nx,y,z\n200,0.4,0.3\n300,0.")
    record = read(tmp_path)
    assert record.validation.step == [100, 200] and record.validation.ema_loss == [0.4, 0.3]
    assert record.notes == ["validation.csv: 1 line cannot be read"]


def test_runs_are_listed_with_the_one_last_written_first(tmp_path: Path):
    for age, name in enumerate(["c-20260101-000000", "a-20260102-000000", "b-20260103-000000"]):
        folder = write_run(tmp_path, name, steps=0)
        os.utime(folder / "progress.json", (1000 - age, 1000 - age))
    (tmp_path / "not a run").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "c-20260101-000000")
    assert [run.name[0] for run in RunReader().list_runs(tmp_path)] == ["c", "a", "b"]
    assert RunReader().list_runs(tmp_path / "nothing") == []


def test_runs_of_a_node_are_those_of_its_workflow_and_of_programs(tmp_path: Path):
    origins: dict[str, Any] = {
        "theirs": {"node_id": "12:5", "workflow_id": "other"},
        "program": {"node_id": "12:5", "workflow_id": None},
        "mine": ORIGIN,
        "neighbour": {**ORIGIN, "node_id": "13:5"},
        "console": None,
    }
    for name, origin in origins.items():
        write_run(tmp_path, name, steps=0, origin=origin)
    list_runs = RunReader().list_runs
    assert [run.name for run in list_runs(tmp_path, nodes=["12:5"], workflow="w")] == ["mine", "program"]
    assert {run.name for run in list_runs(tmp_path, nodes=["12:5"])} == {"mine", "program", "theirs"}
    both = list_runs(tmp_path, nodes=["12:5", "13:5"], workflow="w")
    assert {run.name for run in both} == {"mine", "program", "neighbour"} and both[-1].name == "program"
    assert len(list_runs(tmp_path)) == 5


@pytest.mark.parametrize("name", ["", ".", "..", "../runs", "a/b", "a\\b", "c:", "\0", "gone", "link", "not a run"])
def test_only_runs_in_the_folder_are_read(tmp_path: Path, name: str):
    runs = tmp_path / "runs"
    write_run(tmp_path, "elsewhere")
    (runs / "not a run").mkdir(parents=True)
    (runs / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnknownRun):
        read(runs, name)


@pytest.mark.parametrize("request_name", ["finish", "pause"])
def test_a_living_run_is_asked_by_a_file(tmp_path: Path, request_name: str):
    folder = write_run(tmp_path, steps=1)
    reader = RunReader()
    with keep_alive(folder):
        reader.ask_run(tmp_path, NAME, request_name)
        reader.ask_run(tmp_path, NAME, request_name)  # twice is once
        assert (folder / request_name).read_bytes() == b"" and read(tmp_path).requests == [request_name]


def test_a_run_that_has_ended_is_not_asked(tmp_path: Path):
    folder = write_run(tmp_path, steps=1)
    with pytest.raises(RunNotAlive, match="is stopped: only a run that is going on can be asked to finish"):
        RunReader().ask_run(tmp_path, NAME, "finish")
    assert not (folder / "finish").exists()


def test_a_reader_keeps_the_curves_of_the_last_runs_only(tmp_path: Path):
    reader = RunReader()
    for number in range(20):
        write_run(tmp_path, f"run-{number}", steps=1)
        reader.read_run(tmp_path, f"run-{number}", max_points=10)
    assert len(reader._curves) == 16
