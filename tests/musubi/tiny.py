"""The real Musubi Tuner with a tiny Z-Image, for tests here and in tests/host. Tests are skipped,
with a reason, if Musubi is missing.
"""

import json
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
CAPTION_FEATURES = 64
SIZES = {
    "config": {
        "DEFAULT_TRANSFORMER_DIM": 64,
        "DEFAULT_TRANSFORMER_N_HEADS": 2,
        "DEFAULT_TRANSFORMER_N_KV_HEADS": 2,
        "DEFAULT_TRANSFORMER_N_LAYERS": 2,
        "DEFAULT_TRANSFORMER_N_REFINER_LAYERS": 1,
        "DEFAULT_TRANSFORMER_CAP_FEAT_DIM": CAPTION_FEATURES,
        "ROPE_AXES_DIMS": [8, 12, 12],
        "ADALN_EMBED_DIM": 32,
        "DEFAULT_VAE_NORM_NUM_GROUPS": 8,
    },
    "vae": {"block_out_channels": [16, 16, 16, 16], "layers_per_block": 1},
    "qwen3": {
        "hidden_size": CAPTION_FEATURES,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "max_window_layers": 3,
        "vocab_size": 320,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "bos_token_id": 256,
        "eos_token_id": 258,
    },
}


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
        "MUSUBI_SIZES": json.dumps(SIZES),
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
