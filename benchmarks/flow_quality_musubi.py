"""Trains a LoRA on the embedded Z-Image with Musubi Tuner: its model files and tokenizer as Musubi
reads them, and the sizes for its code.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from trainers.comfyui.find import PACK, find_comfyui
from trainers.dataset.config import DatasetConfig
from trainers.dataset.scan import scan_folder
from trainers.demo.concept import IMAGES, TRIGGER_WORD
from trainers.embedded_base.z_image import (
    DIFFUSION_MODEL,
    MODEL_NAME,
    TEXT_ENCODER,
    TEXT_ENCODER_NAME,
    VAE,
    VAE_NAME,
    architecture,
)
from trainers.embedded_base.z_image.pretrain import TOKENIZER
from trainers.lora.file import save_lora
from trainers.musubi.config import MusubiConfig
from trainers.musubi.installation import find_installation
from trainers.musubi.plan import MusubiJob
from trainers.musubi.trainer import MusubiTrainer
from trainers.training.console_host import ConsoleHost
from trainers.training.run_folder import RunFolder

TIME_EMBEDDER_WIDTH = 1024  # inside; ComfyUI makes it as wide as a small transformer, Musubi never
REPOSITORY = "Tongyi-MAI/Z-Image"  # of the tokenizer
NETWORK = architecture.TRANSFORMER
SIZES = {
    "transformer": {
        "DEFAULT_TRANSFORMER_DIM": NETWORK["dim"],
        "DEFAULT_TRANSFORMER_N_HEADS": NETWORK["n_heads"],
        "DEFAULT_TRANSFORMER_N_KV_HEADS": NETWORK["n_kv_heads"],
        "DEFAULT_TRANSFORMER_N_LAYERS": NETWORK["n_layers"],
        "DEFAULT_TRANSFORMER_N_REFINER_LAYERS": NETWORK["n_refiner_layers"],
        "DEFAULT_TRANSFORMER_CAP_FEAT_DIM": NETWORK["cap_feat_dim"],
        "ROPE_AXES_DIMS": NETWORK["axes_dims"],
    },
    "text_encoder": {
        **{name: value for name, value in architecture.TEXT_ENCODER.items() if name != "rope_parameters"},
        "max_window_layers": architecture.NUM_TEXT_LAYERS,
    },
    "vae": {name: architecture.VAE[name] for name in ("block_out_channels", "layers_per_block")},
}


def train(
    lora: Path, settings: Mapping[str, Any], common: Mapping[str, Any], *, seed: int, steps: int, models: Path
) -> None:
    folder = lora.parent / "musubi"
    os.environ.update(_prepare(folder, models), OMP_NUM_THREADS="1")
    config = MusubiConfig(**{
        **{name: value for name, value in common.items() if name in {spec.name for spec in fields(MusubiConfig)}},
        **settings,
        "seed": seed,
        "max_train_steps": steps,
        "gradient_checkpointing": False,
        "max_data_loader_n_workers": 0,
    })  # fmt: skip
    files = {
        "dit": folder / MODEL_NAME,
        "vae": models / VAE / VAE_NAME,
        "text_encoder": models / TEXT_ENCODER / TEXT_ENCODER_NAME,
    }
    trainer = MusubiTrainer(
        MusubiJob("z-image", config, files, {}),
        find_installation(),
        run_folder=RunFolder(folder, lora.stem, keep_inside=True),
        cache_root=folder / "cache",
    )
    dataset = scan_folder(DatasetConfig(images=str(IMAGES), trigger_word=TRIGGER_WORD))
    with ConsoleHost(torch.device("cpu")) as host:
        trained = trainer.train(dataset, host)
    save_lora(lora, trained.state_dict, trained.metadata)


def _prepare(folder: Path, models: Path) -> dict[str, str]:
    """Write what Musubi needs, once. Return the environment of its processes."""
    sizes, hub = folder / "sizes.json", folder / "hf" / "hub"
    if not sizes.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_widen(load_file(models / DIFFUSION_MODEL / MODEL_NAME)), folder / MODEL_NAME)
        _write_tokenizer(hub)
        sizes.write_text(json.dumps(SIZES), encoding="utf-8")
    return {
        "PYTHONPATH": str(PACK / "tests" / "musubi" / "shim"),
        "MUSUBI_TINY": str(sizes),
        "HF_HOME": str(hub.parent),
        "HF_HUB_OFFLINE": "1",
    }


def _widen(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add zeros inside the time embedder, which change nothing."""
    missing = TIME_EMBEDDER_WIDTH - architecture.WIDTH
    pads = {"t_embedder.mlp.0.weight": (0, 0, 0, missing), "t_embedder.mlp.0.bias": (0, missing)}
    pads["t_embedder.mlp.2.weight"] = (0, missing)
    return {name: functional.pad(weight, pads[name]) if name in pads else weight for name, weight in weights.items()}


def _write_tokenizer(hub: Path) -> None:
    """Write Qwen's tokenizer, which ComfyUI has on board, in the layout of Hugging Face's cache."""
    repository, revision = hub / f"models--{REPOSITORY.replace('/', '--')}", "0" * 40
    folder = repository / "snapshots" / revision / "tokenizer"
    shutil.copytree(find_comfyui().folder / TOKENIZER, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
