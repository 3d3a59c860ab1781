"""python -m trainers runs: lists, shows, compares and prunes run folders."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.run_folders import keep_alive, write_run
from trainers.__main__ import main

DAY = 24 * 60 * 60


def make_old(folder: Path, *, days: float = 40.0) -> Path:
    then = time.time() - days * DAY
    for path in folder.rglob("*"):
        os.utime(path, (then, then))
    return folder


def write_state(run: Path, size: int = 300_000) -> Path:
    path = run / "state" / "step00000600.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    return path


def call(folder: Path, *arguments: str) -> int:
    return main(["runs", arguments[0], "--output-dir", str(folder), *arguments[1:]])


def set_manifest(run: Path, **entries: object) -> None:
    (run / "manifest.json").write_text(json.dumps({"total_steps": 1000, **entries}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_runs_are_listed_newest_first(runs, tmp_path, capsys):
    make_old(write_run(runs, "one-20261001-100000", status="finished", steps=1000), days=2)
    write_run(runs, "two-20261101-100000", status="cancelled")
    (runs / "notes").mkdir()
    (runs / "notes" / "mine.txt").touch()
    assert call(tmp_path, "list") == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "status", "steps", "loss", "on", "disk", "last", "written"]
    assert first.startswith("two-20261101-100000") and "cancelled" in first and "600/1000" in first
    assert second.startswith("one-20261001-100000") and "finished" in second and "1000/1000" in second
    assert " 0.1" in first and " MB " in first


def test_without_runs_that_is_said(tmp_path, capsys):
    assert call(tmp_path, "list") == 0
    assert "There are no runs in" in capsys.readouterr().out


def test_one_run_is_shown_with_its_settings_and_loras(runs, tmp_path, capsys):
    run = write_run(runs, "one-20261001-100000", status="finished", notices=["a state could not be saved"])
    set_manifest(run, training={"rank": 16, "sample_prompt": "x" * 90}, dataset={"images": {"a.png": {}}})
    assert call(tmp_path, "show", run.name) == 0
    text = capsys.readouterr().out
    assert "training.rank: 16" in text and "a state could not be saved" in text
    assert f"LoRA: {run / 'one.safetensors'}" in text and "one-step00000400.safetensors (checkpoint, 0.7 MB)" in text
    assert "at step" in text and "a.png" not in text and "x" * 90 in text


def test_an_unknown_run_is_refused_with_those_there_are(runs, tmp_path, capsys):
    write_run(runs, "one-20261001-100000")
    assert call(tmp_path, "show", "../one") == 1
    assert "there is no run '../one' in" in capsys.readouterr().err


def test_runs_are_compared_by_what_differs(runs, tmp_path, capsys):
    for name, rank, shift in (("one", 16, 0.0), ("two", 32, 0.01)):
        run = write_run(runs, f"{name}-20261001-100000", status="finished", steps=1000, shift=shift)
        set_manifest(run, training={"rank": rank, "alpha": 8.0}, versions={"torch": name})
    plot = tmp_path / "losses.png"
    assert call(tmp_path, "compare", "one-20261001-100000", "two-20261001-100000", "--plot", str(plot)) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["training.rank"].split() == ["training.rank", "16", "32"]
    assert not any(name.startswith(("training.alpha", "versions")) for name in lines)
    assert lines["best validation loss"].count("at step") == 2
    with Image.open(plot) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
        assert image.size == (900, 488) and {(0x1D, 0x4E, 0xD8), (0xC2, 0x41, 0x0C)} <= colours


@pytest.mark.parametrize("names", [["one-20261001-100000"], ["one-20261001-100000", "one-20261001-100000"]])
def test_one_run_cannot_be_compared(runs, tmp_path, capsys, names):
    write_run(runs, "one-20261001-100000")
    assert call(tmp_path, "compare", *names) == 1
    assert "compare needs two runs or more" in capsys.readouterr().err


# --- prune ---


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def write_four(runs: Path) -> dict[str, Path]:
    """A finished run, an old one without a LoRA, an old stopped one with checkpoints, a new one."""
    found = {
        "finished": write_run(runs, "finished-20261001-100000", status="finished", steps=1000),
        "nothing": write_run(runs, "nothing-20261001-100000", status="failed", steps=100),
        "stopped": write_run(runs, "stopped-20261001-100000", status="running", steps=600),
        "new": write_run(runs, "new-20261129-100000", status="cancelled", steps=100),
    }
    for run in found.values():
        write_state(run)
    for name in ("finished", "nothing", "stopped"):
        make_old(found[name])
    return found


def test_prune_only_says_what_could_go(runs, tmp_path, capsys):
    write_four(runs)
    before = list_files(tmp_path)
    assert call(tmp_path, "prune") == 0
    text = capsys.readouterr().out
    assert "state of a finished run" in text and "run without a LoRA" in text and "0.3 MB" in text
    assert "stopped-" not in text and "new-" not in text and "Nothing was deleted: give --delete" in text
    assert list_files(tmp_path) == before


def test_prune_deletes_states_of_finished_runs_and_old_runs_without_a_lora(runs, tmp_path, capsys):
    found = write_four(runs)
    before = list_files(tmp_path)
    assert call(tmp_path, "prune", "--delete") == 0
    gone = before - list_files(tmp_path)
    assert {name for name in gone if name.endswith(".safetensors")} == {
        "runs/finished-20261001-100000/state/step00000600.safetensors",
        "runs/nothing-20261001-100000/state/step00000600.safetensors",
    }
    assert not found["nothing"].exists() and (found["finished"] / "finished.safetensors").is_file()
    assert "deleted." in capsys.readouterr().out


def test_prune_with_loras_keeps_the_lora_of_a_finished_run(runs, tmp_path):
    found = write_four(runs)
    assert call(tmp_path, "prune", "--delete", "--with-loras") == 0
    assert (found["finished"] / "finished.safetensors").is_file() and not found["stopped"].exists()
    assert not list((found["finished"] / "checkpoints").iterdir()) and (found["new"] / "state").is_dir()


def test_prune_takes_nothing_of_a_run_that_is_going_on(runs, tmp_path, capsys):
    found = write_four(runs)
    before = list_files(found["nothing"])
    with keep_alive(found["nothing"]):
        assert call(tmp_path, "prune", "--delete", "--days", "0", "--with-loras") == 0
    assert list_files(found["nothing"]) == before
    assert "as they are going on: nothing-" in capsys.readouterr().out


def test_prune_leaves_what_other_programs_wrote(runs, tmp_path):
    run = write_four(runs)["nothing"]
    (run / "my notes.txt").write_text("keep")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "image.png").touch()
    (run / "samples" / "link").parent.mkdir(exist_ok=True)
    (run / "samples" / "link").symlink_to(outside)
    make_old(run)
    assert call(tmp_path, "prune", "--delete") == 0
    assert list_files(run) == {"my notes.txt"} and (outside / "image.png").exists()


def test_a_lora_that_is_elsewhere_keeps_the_run(runs, tmp_path):
    """On the command line the LoRA is not in the run's folder."""
    run = write_run(runs, "one-20261001-100000", status="finished", steps=100)
    lora = (run / "one.safetensors").rename(tmp_path / "one.safetensors")
    (run / "result.json").write_text(json.dumps({"path": str(lora)}))
    make_old(run)
    assert call(tmp_path, "prune", "--delete", "--with-loras") == 0
    assert run.exists() and lora.exists()
    lora.unlink()
    assert call(tmp_path, "prune", "--delete") == 0
    assert not run.exists()
