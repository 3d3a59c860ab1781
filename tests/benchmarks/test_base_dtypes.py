"""The benchmark of base_dtype: a short run of one cell, and the table of cells by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.base_dtypes import main


def write_cells(folder: Path) -> None:
    fidelity = {"none": (0.80, 0.84), "fp8": (0.79, 0.85), "nf4": (0.70, 0.74)}
    for kind, values in fidelity.items():
        for seed, value in enumerate(values):
            cell = {"kind": kind, "seed": seed, "steps": 500, "seconds": 60.0, "fidelity": value, "drift": 28.0 + seed}
            (folder / f"cell {kind} seed {seed} steps 500.json").write_text(json.dumps(cell))


def test_a_row_has_mean_and_range_and_says_whether_it_is_within_the_spread(tmp_path: Path, capsys):
    write_cells(tmp_path)
    main([str(tmp_path), "--only-table"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert rows == [
        "| none | 500 | 2 | 0.820 (0.800 to 0.840) | 28.500 (28.000 to 29.000) | yes | 60 s |",
        "| fp8 | 500 | 2 | 0.820 (0.790 to 0.850) | 28.500 (28.000 to 29.000) | yes | 60 s |",
        "| nf4 | 500 | 2 | 0.720 (0.700 to 0.740) | 28.500 (28.000 to 29.000) | no | 60 s |",
    ]


@pytest.mark.parametrize("kind", ["none", "fp8"])
def test_a_cell_is_trained_once(tmp_path: Path, capsys, kind: str):
    arguments = [str(tmp_path), "--kinds", kind, "--seeds", "3", "--steps", "1", "--num-images", "1"]
    main(arguments)
    (path,) = tmp_path.glob("cell *.json")
    cell, written_at = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert (cell["kind"], cell["seed"], len(cell["losses"])) == (kind, 3, 1) and cell["drift"] >= 0
    main(arguments)
    assert path.stat().st_mtime_ns == written_at
    assert f"| {kind} | 1 | 1 |" in capsys.readouterr().out
