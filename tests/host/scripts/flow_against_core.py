"""Runs in ComfyUI's interpreter, for benchmarks/flow_against_core.py: trains LoRAs on one random
Z-Image MODEL with our trainer and core's TrainLoraNode in turns, and prints a line of JSON for
each.

Arguments: the pack's folder, a folder for files, the number of steps, the number of rounds.
"""

import ctypes
import gc
import itertools
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

pack, root, num_steps, num_rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sys.path.insert(0, str(pack / "tests" / "host"))
from pack_loader import load_pack

load_pack(pack, "lora_trainer")

import comfy.model_management
import comfy.sd
import comfy.utils
from comfy_extras.nodes_train import TrainLoraNode
from lora_trainer.nodes.host.flow_model import GraphFlowModel
from lora_trainer.nodes.host.weights import GraphModel, training_mode
from lora_trainer.trainers.dataset.bucket_config import BucketConfig
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.files.tensor_cache import TensorCache
from lora_trainer.trainers.flow.config import FlowConfig
from lora_trainer.trainers.flow.families import find_family
from lora_trainer.trainers.flow.family import FlowFamily
from lora_trainer.trainers.training.console_host import ConsoleHost
from lora_trainer.trainers.training.events import Interrupted, StepDone
from lora_trainer.trainers.training.loop import train_lora
from lora_trainer.trainers.training.plan import plan_training
from lora_trainer.trainers.training.run_folder import RunFolder
from lora_trainer.trainers.training.run_settings import RunSettings
from tiny_models import SPECS, build_tiny
from torch.optim.optimizer import register_optimizer_step_post_hook

SIZE, NUM_TRAINED, NUM_HELD_OUT, DRAWS = 128, 8, 4, 4
RANK, ALPHA, LEARNING_RATE = 8, 1.0, 5e-4  # core's defaults; it has no other alpha
WARM_UP, CANCEL_AT = 1, 3
CAPTION = "a gradient of two colours"
SPECS["Z-Image"] = replace(
    SPECS["Z-Image"],
    unet_config=SPECS["Z-Image"].unet_config | {"dim": 1024, "n_layers": 6, "n_heads": 16, "n_kv_heads": 16},
)


def make_images():
    """Gradients between two random colours, in random directions."""
    random, (y, x) = np.random.default_rng(0), np.mgrid[0:SIZE, 0:SIZE] / SIZE
    images = []
    for _ in range(NUM_TRAINED + NUM_HELD_OUT):
        angle, colours = random.uniform(0, 2 * np.pi), random.uniform(0, 255, (2, 3))
        position = ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.7)[..., None] / 1.4
        images.append((colours[0] * position + colours[1] * (1 - position)).clip(0, 255).astype(np.uint8))
    return images


def encode(tiny, images):
    pixels = torch.from_numpy(np.stack(images)).float() / 255
    return tiny.vae.encode(pixels)


@torch.inference_mode()
def measure_held_out(tiny, lora):
    """The mean squared error of the velocity on fixed draws, with the LoRA in ComfyUI's own
    weights.
    """
    patcher = comfy.sd.load_lora_for_models(tiny.patcher, None, lora, 1.0, 0.0)[0] if lora else tiny.patcher
    patcher.patch_model()
    model, losses = patcher.model, []
    cond, entries = tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(CAPTION))[0]
    latents = model.process_latent_in(encode(tiny, make_images()[NUM_TRAINED:]))
    generator = torch.Generator().manual_seed(1)
    for image in latents.split(1):
        for number in range(DRAWS):
            noise = torch.randn(image.shape, generator=generator)
            sigma = torch.tensor([model.model_sampling.percent_to_sigma((number + 0.5) / DRAWS)])
            noisy = model.model_sampling.noise_scaling(sigma, noise, image)
            conds = model.extra_conds(cross_attn=cond, noise=noisy, device=noisy.device, **entries)
            clean = model.apply_model(noisy, sigma, **{name: value.cond for name, value in conds.items()})
            losses.append(((noisy - clean) / sigma - (noise - image)).square().mean().item())
    patcher.unpatch_model()
    return statistics.mean(losses)


class CancellingHost(ConsoleHost):
    def __init__(self, cancel_at):
        super().__init__(torch.device("cpu"), quiet=True)
        self.cancel_at = cancel_at

    def report(self, event):
        super().report(event)
        if isinstance(event, StepDone) and event.step == self.cancel_at:
            raise Interrupted("cancelled")


def train_ours(tiny, folder, cancel_at):
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number, pixels in enumerate(make_images()[:NUM_TRAINED]):
        Image.fromarray(pixels).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(CAPTION)
    config = FlowConfig(
        rank=RANK,
        alpha=ALPHA,
        learning_rate=LEARNING_RATE,
        max_train_steps=num_steps,
        train_batch_size=1,
        save_dtype="fp32",
        caption_dropout=0.0,
        lr_scheduler="constant",
        lr_warmup_steps=0.0,
        optimizer="AdamW",
        validate_every_n_steps=-1,
    )
    dataset = scan_folder(DatasetConfig(images=str(images), trigger_word=""))
    plan = plan_training(dataset, RunSettings(config, BucketConfig(resolution=SIZE)))
    row = find_family(type(tiny.patcher.model.model_config).__name__)
    family = FlowFamily(lambda _: GraphFlowModel(GraphModel(tiny.patcher, tiny.clip, tiny.vae), row))
    with training_mode(), CancellingHost(cancel_at) as host:
        run = RunFolder(folder / "run", "lora")
        return train_lora(family, plan, host, run_folder=run, cache=TensorCache(None), resume="new").state_dict


def train_core(tiny, folder, cancel_at):
    def on_progress(value, *_, **__):
        if value == cancel_at:
            raise comfy.model_management.InterruptProcessingException

    comfy.utils.set_progress_bar_global_hook(on_progress)
    latents = [{"samples": encode(tiny, [image])} for image in make_images()[:NUM_TRAINED]]
    positive = [tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(CAPTION)) for _ in latents]
    settings = {
        "batch_size": 1,
        "steps": num_steps,
        "grad_accumulation_steps": 1,
        "learning_rate": LEARNING_RATE,
        "rank": RANK,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": True,
        "checkpoint_depth": 2,  # 1 wraps the whole model in one checkpoint
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    settings = {name: [value] for name, value in settings.items()}
    with torch.inference_mode():
        return TrainLoraNode.execute(model=[tiny.patcher], latents=latents, positive=positive, **settings)[0]


def read_memory(name):
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def list_files(folder):
    """What is left after the training, without the images."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if path.parts[0] != "images")


def free_memory():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def load_again(disable_dynamic=False):
    """The loader that core's node calls for a second MODEL, outside of inference mode."""
    patcher = build_tiny("Z-Image").patcher
    for module in patcher.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.clone()
    return patcher


def run(tiny, contender, folder, cancel_at=0):
    folder.mkdir(parents=True)
    clocks.clear()
    free_memory()
    loaded = read_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    try:
        lora = {"ours": train_ours, "core": train_core}[contender](tiny, folder, cancel_at)
    except (Interrupted, comfy.model_management.InterruptProcessingException):
        lora = None
    result = {"contender": contender, "loaded": loaded, "added": read_memory("VmHWM") - loaded}
    steps = [(after[0] - first[0], after[1] - first[1]) for first, after in itertools.pairwise(clocks)]
    result |= {"cpu": [cpu for cpu, _ in steps[WARM_UP:]], "wall": [wall for _, wall in steps[WARM_UP:]]}
    free_memory()
    result |= {"kept": read_memory("VmRSS") - loaded, "files": list_files(folder), "is_cancelled": lora is None}
    if lora is not None:
        result |= {"modules": len({name.rsplit(".lora_", 1)[0] for name in lora if ".lora_" in name})}
        result |= {"values": sum(tensor.numel() for tensor in lora.values()), "loss": measure_held_out(tiny, lora)}
    print("RESULT" + json.dumps(result), flush=True)


tiny, clocks = build_tiny("Z-Image"), []
tiny.patcher.cached_patcher_init = (load_again, ())
register_optimizer_step_post_hook(lambda *_: clocks.append((time.process_time(), time.monotonic())))
weights = sum(weight.numel() * weight.element_size() for weight in tiny.patcher.model.state_dict().values())
print("RESULT" + json.dumps({"weights": weights, "loss": measure_held_out(tiny, None)}), flush=True)
for number in range(num_rounds):
    for contender in ("ours", "core") if number % 2 == 0 else ("core", "ours"):
        run(tiny, contender, root / f"{contender}_{number}")
for contender in ("ours", "core"):
    run(tiny, contender, root / f"{contender}_cancelled", CANCEL_AT)
