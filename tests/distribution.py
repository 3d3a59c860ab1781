"""Which tests share a worker, and which start first, with pytest-xdist."""

import re

import pytest
from xdist.scheduler import LoadScopeScheduling

RENDERER = re.compile(r"[\[-](canvas|vue)[\]-]")
# The longest tests on two cores. If a worker started them last, all others would wait for it.
LONGEST_FIRST = (
    "tests/browser/",
    "tests/quality/",
    "tests/pretend_gpu/",
    "tests/host/test_training_in_graph.py",
    "tests/unit/sdxl/test_trainer.py",
    "tests/host/",
    "tests/unit/sdxl/test_other_adapters.py",
    "tests/unit/sdxl/test_compiled_blocks.py",
    "tests/benchmarks/",
    "tests/musubi/",
    "tests/cli/test_command_line.py",
    "tests/unit/dataset/test_dataset_fuzz.py",
    "tests/parity/",
    "tests/unit/check/",
    "tests/unit/sdxl/check/",
    "tests/unit/sdxl/model/",
    "tests/unit/embedded_base/",
    "tests/unit/test_packaging.py",
)


class Distribution(LoadScopeScheduling):
    """Tests of a file share fixtures. Browser tests of a renderer share a server and a browser."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        config.option.loadscopereorder = False  # it sorts by number of tests, which says nothing about their time
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        renderer = RENDERER.search(test) if file.startswith("tests/browser/") else None
        return f"tests/browser in {renderer[1]}" if renderer else file


def rank(item: pytest.Item) -> int:
    """Rank a test for sorting: lower ranks start first."""
    found = (rank for rank, prefix in enumerate(LONGEST_FIRST) if item.nodeid.startswith(prefix))
    return next(found, len(LONGEST_FIRST))
