"""The real Musubi Tuner with a tiny Z-Image, for tests here and in tests/host. Tests are skipped,
with a reason, if Musubi is missing.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.limits import TIME_LIMIT
from trainers.musubi.installation import Installation, NoMusubi, find_installation

SHIM = Path(__file__).with_name("shim")
NUM_MODULES = 14  # two layers of seven


@dataclass(frozen=True)
class TinyMusubi:
    """`environment` is what the trainer's own process must have and passes on to Musubi's."""

    installation: Installation
    models: Mapping[str, Path]
    environment: Mapping[str, str]


def make_tiny_musubi(folder: Path) -> TinyMusubi:
    """Write the weights into `folder`. Takes some seconds."""
    try:
        installation = find_installation()
    except NoMusubi as error:
        pytest.skip(str(error))
    environment = {
        "PYTHONPATH": str(SHIM),
        "MUSUBI_TINY": "1",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    search_path = os.pathsep.join([str(SHIM), str(installation.folder / "src")])
    subprocess.run(
        [installation.python, Path(__file__).with_name("make_weights.py"), folder],
        env={**os.environ, **environment, "PYTHONPATH": search_path},
        check=True,
        timeout=TIME_LIMIT,
    )
    models = {
        "dit": folder / "z_image_tiny_bf16.safetensors",
        "vae": folder / "ae.safetensors",
        "text_encoder": folder / "qwen_3_4b.safetensors",
    }
    return TinyMusubi(installation, models, environment)
