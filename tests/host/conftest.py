"""Fixtures that run scripts in ComfyUI's interpreter and start its server. Tests are skipped, with
a reason, if ComfyUI is missing.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.limits import TIME_LIMIT
from trainers.comfyui.find import Installation, NoComfyUI, find_comfyui
from trainers.comfyui.server import ComfyServer
from trainers.demo.in_comfyui import prepare_demo_directory

_TORCHVISION = """
import torch
try:
    import torchvision
except RuntimeError:
    # The operators of PyPI's torchvision do not load with the CPU build of torch. Declaring them
    # is enough to import it.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
_ON_CPU = """
from comfy.cli_args import args

args.cpu = True
"""
PREAMBLE = _TORCHVISION + _ON_CPU
# The pretended GPU comes before torch: see tests/pretend_gpu.
_ON_CARD = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pretend_gpu.card import insert_card

insert_card()
"""


@pytest.fixture(scope="session")
def installation() -> Installation:
    try:
        return find_comfyui()
    except NoComfyUI as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def run_in_comfyui(installation: Installation) -> Callable[..., str]:
    """run(script, *arguments) returns the script's output. The script can import ComfyUI's modules,
    on the CPU or, with on_card, on the pretended GPU, and the modules of this folder.
    """

    def run(script: str, *arguments: object, on_card: bool = False) -> str:
        preamble = _ON_CARD + _TORCHVISION if on_card else PREAMBLE
        command = [str(installation.python), "-c", preamble + script, *map(str, arguments)]
        folders = (installation.folder, Path(__file__).parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
        result = subprocess.run(
            command,
            check=False,
            cwd=installation.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


@pytest.fixture(scope="session")
def comfyui_server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Start a server on the CPU with this pack, the checkpoint `embedded_base.safetensors` and the
    demo's images in input/toadstools.
    """
    folder = tmp_path_factory.mktemp("comfyui")
    prepare_demo_directory(folder)
    for pack in ("fault_pack", "caption_pack", "flow_pack"):
        (folder / "custom_nodes" / pack).symlink_to(Path(__file__).with_name(pack))
    with ComfyServer(installation, base_directory=folder, log=folder / "server.log", cpu=True) as server:
        yield server
