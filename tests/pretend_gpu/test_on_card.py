"""Runs the tests of on_card, each file in a process of its own: the pretended GPU replaces torch's
CUDA for the whole process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import TIME_LIMIT
from tests.pretend_gpu.build import CannotBuild, build_card

ROOT = Path(__file__).parents[2]
FILES = sorted(Path(__file__).with_name("on_card").glob("test_*.py"))


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    try:
        build_card()
    except CannotBuild as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_everything_works_on_the_card(path: Path) -> None:
    command = [sys.executable, "-m", "tests.pretend_gpu", "-q", "-p", "no:cacheprovider", str(path)]
    # xdist's variables would give the inner pytest the place of this worker
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
