"""SDXL at full size with random weights on the CPU: two steps at 256 pixels within 24 GB. Needs
Linux, 7 GB of disk and some minutes.

Measured on two cores with one thread: see benchmarks/README.md, "Memory in the graph".
"""

import sys

import pytest

from benchmarks.memory_in_graph import GIB, OURS, measure, prepare
from trainers.comfyui.find import Installation


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="the peak of a process's memory is read from /proc, which only Linux has"
)
def test_full_size_sdxl_trains_two_steps_within_24_gb(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("full_size")
    prepare(folder)
    loaded, peak, seconds = measure(folder, OURS, "ours", [])
    print(f"loaded {loaded / GIB:.1f} GB, peak {peak / GIB:.1f} GB, {seconds:.0f} s")
    assert peak < 24 * GIB
