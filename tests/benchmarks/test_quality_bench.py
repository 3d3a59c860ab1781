"""The quality bench runs a cell, keeps it, and prints the table of what it has."""

import json
import sys

import pytest

from benchmarks.quality import __main__ as bench


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", *options, "--tasks", "one image", "--steps", "2", "--num-seeds", "1"])
    bench.main()


def test_a_cell_is_trained_scored_kept_and_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SAMPLER_STEPS", 2)
    run(monkeypatch, str(tmp_path), "--seeds", "3", "--contenders", "defaults", "prior")
    (cell,) = [json.loads(file.read_text()) for file in tmp_path.glob("defaults*.json")]
    assert cell["seed"] == 3 and cell["steps"] == 2 and cell["reroll"] > 0
    assert {"fidelity", "worst_prompt", "freedom", "leak", "kept", "drift", "total"} <= cell.keys()
    assert len(list(tmp_path.glob("*.png"))) == 2
    table = capsys.readouterr().out
    assert "| defaults | one image | 1 |" in table and "| prior | **all** | 1 |" in table

    monkeypatch.setattr(bench, "_train", pytest.fail)
    run(monkeypatch, str(tmp_path), "--seeds", "3")
    run(monkeypatch, str(tmp_path), "--only-table")


def test_a_peer_without_its_checkout_is_an_error_at_once(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, str(tmp_path), "--contenders", "sd-scripts")
    assert "--sd-scripts must say where its checkout and its interpreter are" in capsys.readouterr().err
