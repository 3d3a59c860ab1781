"""Writes run folders as a trainer does, for the tests of everything that only reads them."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

GIBIBYTE = 2**30


def write_run(
    runs_folder: Path,
    name: str = "toadstool-20261130-140000",
    *,
    steps: int = 600,
    total: int = 1000,
    status: str = "running",
    origin: dict[str, Any] | None = None,
    shift: float = 0.0,
    **progress: Any,
) -> Path:
    """Write a run with losses, validation, samples and checkpoints, as it is after `steps`."""
    folder = runs_folder / name
    folder.mkdir(parents=True)
    losses = [_make_loss(step, shift) for step in range(1, steps + 1)]
    write_progress(folder, losses, total=total, status=status, **progress)
    if origin is not None:
        (folder / "origin.json").write_text(json.dumps(origin))
    (folder / "manifest.json").write_text(json.dumps({"total_steps": total}))
    (folder / "lock").touch()
    write_losses(folder, losses, total=total)
    write_validation(folder, steps, shift)
    stem = name.split("-")[0]
    for step in range(200, steps + 1, 200):
        write_sample(folder / "samples" / f"{stem}-step{step:08d}.png", step)
        write_lora(folder / "checkpoints" / f"{stem}-step{step:08d}.safetensors")
    if status.startswith("finished"):
        write_lora(folder / f"{stem}.safetensors")
        write_result(folder, steps=steps, total=total)
    return folder


def _make_loss(step: int, shift: float) -> float:
    """A loss that falls, and jumps from step to step as those of diffusion models do."""
    noise = math.sin(step * 12.9898) * 43758.5453
    return 0.09 + shift + 0.07 * math.exp(-step / 250) + 0.06 * (noise - math.floor(noise) - 0.4)


def _make_learning_rate(step: int, total: int) -> float:
    """Fifty steps of warm-up, then half a cosine."""
    return 1e-4 * min(1, step / 50) * (1 + math.cos(math.pi * step / total)) / 2


def write_progress(folder: Path, losses: list[float], *, total: int, status: str, **changes: Any) -> None:
    recent = losses[-100:]
    progress = {
        "status": status,
        "stage": "training",
        "step": len(losses),
        "total": total,
        "eta_seconds": (total - len(losses)) / 1.6,
        "steps_per_second": 1.6,
        "loss": recent[-1] if recent else None,
        "average_loss": sum(recent) / len(recent) if recent else None,
        "learning_rate": _make_learning_rate(len(losses), total),
        "memory_bytes": round(8.4 * GIBIBYTE),
        "memory_budget_bytes": 12 * GIBIBYTE,
        "validation": {"kind": "held-out", "best_step": 400},
        "message": "",
        "settings": "object: rank 16, alpha 8, learning rate 1e-4\n12 GB: bf16, AdamW8bit, gradient checkpointing",
        "notices": [],
        "started_at": time.time() - len(losses) / 1.6,
        "updated_at": time.time(),
        "process": 1,
    }
    (folder / "progress.json").write_text(json.dumps({**progress, **changes}))


def write_losses(folder: Path, losses: list[float], *, total: int) -> None:
    lines = ["step,epoch,loss,average_loss,learning_rate,steps_per_second"]
    for step, loss in enumerate(losses, start=1):
        recent = losses[max(0, step - 100) : step]
        learning_rate = _make_learning_rate(step, total)
        lines.append(f"{step},1,{loss:.8g},{sum(recent) / len(recent):.8g},{learning_rate:.6g},1.6")
    (folder / "loss.csv").write_text("\n".join(lines) + "\n")


def write_validation(folder: Path, steps: int, shift: float) -> None:
    lines = ["step,loss,ema_loss"]
    for step in range(100, steps + 1, 100):
        lines.append(f"{step},{0.105 + shift + 0.04 * math.exp(-step / 150) + 0.01 * (step / 1000) ** 2:.6f},")
    (folder / "validation.csv").write_text("\n".join(lines) + "\n")


def write_sample(path: Path, step: int) -> None:
    path.parent.mkdir(exist_ok=True)
    image = Image.new("RGB", (256, 256), (40, 60 + step // 8 % 150, 90))
    ImageDraw.Draw(image).ellipse((60, 40, 196, 140 + step // 20 % 80), fill=(200, 60 + step // 10 % 120, 50))
    image.save(path)


def write_lora(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\0" * 700_000)


def write_result(folder: Path, *, steps: int, total: int) -> None:
    (lora,) = folder.glob("*.safetensors")
    best = folder / "checkpoints" / lora.name.replace(".safetensors", "-step00000400.safetensors")
    result = {
        "path": str(lora),
        "sha256": "0" * 64,
        "steps": steps,
        "total_steps": total,
        "finished_early": steps < total,
        "reason": "",
        "best": {"step": 400, "path": str(best), "loss": 0.1},
        "ema_path": None,
    }
    (folder / "result.json").write_text(json.dumps(result))


@contextmanager
def keep_alive(folder: Path) -> Iterator[None]:
    """Hold the run's lock inside the block, as its process does."""
    with open(folder / "lock", "rb+") as stream:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
