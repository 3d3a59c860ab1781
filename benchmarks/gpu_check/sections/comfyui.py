"""ComfyUI's memory modes: a picture is the same before and after a training in the graph, the
losses are the same in every mode, and the memory comes back.
"""

import hashlib
import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.memory_in_graph import LOADED, OURS
from trainers.comfyui.client import ComfyClient, Prompt
from trainers.comfyui.find import PACK, Installation
from trainers.comfyui.server import ComfyServer, prepare_base_directory
from trainers.embedded_base import write_embedded_checkpoint
from trainers.sdxl.model.export import write_checkpoint
from trainers.wording import GIBIBYTE, MEBIBYTE

from ..bench import Bench
from ..machine import CHECKPOINT_BYTES
from ..report import Report, Skipped
from ..trial import OutOfTime, draw_dataset
from .agreement import max_relative_difference

NAME, TITLE = "comfyui", "ComfyUI's memory modes"
SHARE_SECONDS, NEEDED_SECONDS = 110.0, 50.0
SECONDS_PER_MODE = 40.0
MODES: dict[str, tuple[str, ...]] = {
    "default": (),
    "lowvram": ("--lowvram",),
    "novram": ("--novram",),
    "highvram": ("--highvram",),
    # with estimated loading --lowvram puts the text encoders on the CPU
    "CPU text encoder": ("--disable-dynamic-vram", "--lowvram"),
}
CPU_MODES: dict[str, tuple[str, ...]] = {"default": ()}
CHECKPOINT = "base.safetensors"
LOSS_GOAL, MEMORY_GOAL_BYTES = 1e-3, 256 * MEBIBYTE
NUM_STEPS = 3


@dataclass(frozen=True)
class ModeResult:
    """What a server in one mode gave. Bytes are torch's on ComfyUI's device."""

    picture_before: str
    picture_after: str
    losses: list[float]
    bytes_before: int
    bytes_after: int


def run(bench: Bench, report: Report) -> None:
    if bench.comfyui is None:
        raise Skipped(bench.no_comfyui)
    if not bench.is_tiny and shutil.disk_usage(bench.out).free < CHECKPOINT_BYTES:
        raise Skipped(f"{bench.out} has less than {CHECKPOINT_BYTES / GIBIBYTE:.0f} GB of free disk for the base model")
    folder = bench.out / "comfyui"
    try:
        _prepare(bench, folder)
        _check_modes(bench, report, bench.comfyui, folder)
    finally:
        shutil.rmtree(folder / "models", ignore_errors=True)


def _prepare(bench: Bench, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # ComfyUI recognizes the embedded base by a pack of its own
    packs = {"ComfyUI-LoRA-Trainer": PACK, "embedded_base_pack": PACK / "nodes" / "embedded_base_pack"}
    prepare_base_directory(folder, packs)
    checkpoint = folder / "models" / "checkpoints" / CHECKPOINT
    if bench.is_tiny:
        write_embedded_checkpoint(checkpoint)
    else:
        write_checkpoint(bench.load_full(), checkpoint)
    draw_dataset(folder / "input", (bench.sizes.small, bench.sizes.small), 2)


def _check_modes(bench: Bench, report: Report, installation: Installation, folder: Path) -> None:
    losses: dict[str, list[float]] = {}
    for name, flags in (MODES if bench.has_cuda else CPU_MODES).items():
        if not (bench.is_tiny or report.has_time(name, SECONDS_PER_MODE)):
            continue
        result = _run_mode(bench, report, installation, folder, name, flags)
        losses[name] = result.losses
        same = result.picture_before == result.picture_after
        report.check(f"{name}: the picture is the same", same, value=result.picture_after, goal=result.picture_before)
        held = result.bytes_after - result.bytes_before
        report.check(
            f"{name}: the memory comes back",
            held < MEMORY_GOAL_BYTES,
            value=f"{held / MEBIBYTE:.0f} MB more",
            goal=f"less than {MEMORY_GOAL_BYTES / MEBIBYTE:.0f} MB",
        )
        difference = max_relative_difference(next(iter(losses.values())), result.losses)
        report.check_most(f"{name}: losses against the first mode's", difference, LOSS_GOAL)


def _run_mode(
    bench: Bench, report: Report, installation: Installation, folder: Path, name: str, flags: tuple[str, ...]
) -> ModeResult:
    log = folder / f"{name.replace(' ', '-')}.log"
    with ComfyServer(installation, base_directory=folder, log=log, cpu=not bench.has_cuda, flags=flags) as server:
        before = _draw(server.client, _picture_prompt(bench, denoise=1.0))
        bytes_before = _count_torch_bytes(server.client)
        trained = server.client.run(_training_prompt(bench), on_message=lambda _: _require_time(report))
        # Above 0.9999 ComfyUI draws from pure noise, so this is the same picture under another key
        # of its cache.
        after = _draw(server.client, _picture_prompt(bench, denoise=0.99995))
        bytes_after = _count_torch_bytes(server.client)
    losses = trained.outputs["train"]["lora_trainer"][0]["loss"]
    return ModeResult(before, after, losses, bytes_before, bytes_after)


def _require_time(report: Report) -> None:
    if report.seconds_left < 0:
        raise OutOfTime("the section's time is used up")


def _picture_prompt(bench: Bench, *, denoise: float) -> Prompt:
    size = bench.sizes.small
    changes: dict[str, dict[str, Any]] = {
        "base": {"ckpt_name": CHECKPOINT},
        "latent": {"width": size, "height": size},
        "sampler": {"steps": 4, "cfg": 4.0, "denoise": denoise},
    }
    return _change(LOADED, changes)


def _training_prompt(bench: Bench) -> Prompt:
    size = bench.sizes.small
    changes: dict[str, dict[str, Any]] = {
        "base": {"ckpt_name": CHECKPOINT},
        "pictures": {"folder": f"2 of {size}x{size}"},
        "train": {
            "resolution": size,
            "bucket_reso_steps": bench.sizes.bucket_reso_steps,
            "max_train_steps": NUM_STEPS,
            "mixed_precision": bench.half if bench.has_cuda else "no",
            "resume": "new",
        },
    }
    return _change({"base": LOADED["base"], **OURS}, changes)


def _change(prompt: Mapping[str, Any], changes: Mapping[str, dict[str, Any]]) -> Prompt:
    """Return the prompt with other values of some inputs."""
    return {node: {**about, "inputs": {**about["inputs"], **changes.get(node, {})}} for node, about in prompt.items()}


def _draw(client: ComfyClient, prompt: Prompt) -> str:
    """Return a short hash of the picture's pixels, and their mean."""
    (file,) = client.run(prompt).files("show")
    pixels = np.asarray(Image.open(io.BytesIO(client.fetch(file))).convert("RGB"))
    return f"{hashlib.sha256(pixels.tobytes()).hexdigest()[:12]}, mean {pixels.mean():.2f}"


def _count_torch_bytes(client: ComfyClient) -> int:
    """Return what torch's tensors take on ComfyUI's device, or, on a CPU, what is taken of the
    memory.
    """
    device = client.get("/system_stats")["devices"][0]
    if device["type"] == "cpu":
        return 0
    return device["torch_vram_total"] - device["torch_vram_free"]
