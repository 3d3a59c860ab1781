"""Trains a task of the quality bench with sd-scripts and diffusers' example, under their own
interpreters, on the embedded SDXL as a diffusers folder.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.thin_model import save_model, write_tokenizers
from trainers.embedded_base.sdxl.architecture import UNET
from trainers.sdxl.model.sdxl_model import load_model

RUN_SCRIPT = Path(__file__).parents[1] / "run_script.py"
COMMON = {
    "resolution": 128,
    "learning_rate": 2e-3,
    "train_batch_size": 4,
    "mixed_precision": "no",
    "lr_scheduler": "cosine",
}


@dataclass(frozen=True)
class Peer:
    checkout: str
    python: str


def train_with_sd_scripts(peer: Peer, base: Path, images: Path, work: Path, *, steps: int, seed: int) -> Path:
    """Train as its documentation recommends: UNet only, min-SNR 5, alpha half the rank."""
    _write_model(base, work.parent / "base")
    (work / "train").mkdir(parents=True, exist_ok=True)
    _link(images, work / "train" / "1_task")
    settings = {
        **COMMON,
        "pretrained_model_name_or_path": work.parent / "base" / "model",
        "tokenizer_cache_dir": work.parent / "base" / "tokenizers",
        "train_data_dir": work / "train",
        "caption_extension": ".txt",
        "min_bucket_reso": 64,
        "bucket_reso_steps": 32,
        "network_module": "networks.lora",
        "network_dim": 16,
        "network_alpha": 8,
        "min_snr_gamma": 5,
        "lr_warmup_steps": round(0.05 * steps),
        "max_train_steps": steps,
        "optimizer_type": "AdamW",
        "max_data_loader_n_workers": 0,
        "output_dir": work,
        "output_name": "lora",
        "save_model_as": "safetensors",
        "seed": seed,
    }
    switches = ["enable_bucket", "bucket_no_upscale", "sdpa", "network_train_unet_only", "cache_latents"]
    flags = [*_as_flags(settings), *(f"--{name}" for name in switches)]
    script = [f"--unet-config={json.dumps(UNET)}", f"{peer.checkout}/sdxl_train_network.py"]
    _run([peer.python, str(RUN_SCRIPT), f"--record={work / 'clocks.json'}", *script, *flags], work)
    return work / "lora.safetensors"


def train_with_diffusers(peer: Peer, base: Path, images: Path, work: Path, *, steps: int, seed: int) -> Path:
    """Train with the settings of its documentation: attention only, min-SNR 5, square crops."""
    _write_model(base, work.parent / "base")
    _link(images, work / "train")
    _write_captions(work / "train")
    settings = {
        **COMMON,
        "pretrained_model_name_or_path": work.parent / "base" / "model",
        "train_data_dir": work / "train",
        "caption_column": "text",
        "rank": 16,
        "snr_gamma": 5,
        "lr_warmup_steps": round(0.05 * steps),
        "max_train_steps": steps,
        "dataloader_num_workers": 0,
        "output_dir": work,
        "cache_dir": work / "cache",
        "seed": seed,
    }
    script = f"{peer.checkout}/examples/text_to_image/train_text_to_image_lora_sdxl.py"
    _run([peer.python, script, *_as_flags(settings), "--center_crop"], work)
    return work / "pytorch_lora_weights.safetensors"


def _write_model(base: Path, folder: Path) -> None:
    if (folder / "model" / "model_index.json").exists():
        return
    model = load_model(base)
    assert isinstance(model.unet, UNet2DConditionModel) and model.vae is not None
    assert isinstance(model.text_encoder, CLIPTextModel)
    assert isinstance(model.text_encoder_2, CLIPTextModelWithProjection)
    for part in (model.unet, model.vae, model.text_encoder, model.text_encoder_2):
        part.float()
    save_model(folder / "model", model.unet, model.vae, model.text_encoder, model.text_encoder_2)
    write_tokenizers(folder)


def _link(images: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in images.iterdir():
        if not (folder / path.name).exists():
            os.link(path, folder / path.name)


def _write_captions(folder: Path) -> None:
    rows = [
        {"file_name": path.name, "text": path.with_suffix(".txt").read_text(encoding="utf-8").strip()}
        for path in sorted(folder.glob("*.png"))
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def _as_flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def _run(command: list[str], work: Path) -> None:
    """Raises RuntimeError with the end of the output if the script fails."""
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    log = work / "log.txt"
    with log.open("wb") as file:
        done = subprocess.run(
            command, check=False, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **offline}, cwd=work
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{log.read_text(errors='replace')[-4000:]}")
