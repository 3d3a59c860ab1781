"""The faults of docs/reliability.md: a few of each with every `make test`, all of them with `pytest
-m reliability`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FEW = ("--trials=6", "--every=131", "--steps=200", "--few")
ATTEMPTS = (
    "kill at random moments",
    "signals",
    "validation",
    "kill at each write",
    "power cut",
    "disk full",
    "read-only",
    "clock",
    "interrupt",
    "nan",
    "damaged state",
    "two processes",
    "pictures",
    "long run",
)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs fork, to end hundreds of processes in little time"
)


def try_faults(folder: Path, *flags: str) -> dict[str, dict[str, Any]]:
    """A process of its own: one with threads, as pytest-xdist's are, must not fork."""
    command = [sys.executable, "-m", "tests.reliability", "--json", str(folder / "outcomes.json"), *flags]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(result.stdout)
    assert (folder / "outcomes.json").exists(), result.stdout
    return json.loads((folder / "outcomes.json").read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return try_faults(tmp_path_factory.mktemp("reliability"), *FEW)


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nothing_is_lost(outcomes, attempt):
    assert outcomes[attempt]["num_tried"] > 0
    assert outcomes[attempt]["failures"] == []


@pytest.mark.reliability
def test_nothing_is_lost_in_full_number(tmp_path, request):
    if "reliability" not in request.config.option.markexpr:
        pytest.skip("200 kills, and a fault at each write, take an hour of two cores: pytest -m reliability")
    found = try_faults(tmp_path)
    assert tuple(found) == ATTEMPTS
    assert {name: outcome["failures"] for name, outcome in found.items() if outcome["failures"]} == {}
