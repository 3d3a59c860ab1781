"""The GPU check's section on ComfyUI, with a real server on the CPU and the tiny model."""

import json
from pathlib import Path

from benchmarks.gpu_check.__main__ import main
from trainers.comfyui.find import Installation


def test_a_training_in_the_graph_leaves_the_picture_as_it_was(installation: Installation, tmp_path: Path):
    command = [str(tmp_path), "--device", "cpu", "--tiny", "--seconds", "100000", "--sections", "comfyui"]
    assert main(command) == 0
    report = json.loads((tmp_path / "comfyui.json").read_text())
    assert report["status"] == "ok", report["reason"]
    assert [check["name"] for check in report["checks"]] == [
        "default: the picture is the same",
        "default: the memory comes back",
        "default: losses against the first mode's",
    ]
    assert not (tmp_path / "comfyui" / "models").exists()
