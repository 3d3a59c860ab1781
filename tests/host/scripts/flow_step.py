"""Runs in ComfyUI's interpreter: computes one training step on the tiny MODEL of some families, and
writes everything that another implementation needs to compute the same step.

Arguments: the pack's folder, a folder for files. Writes FOLDER/CASE.safetensors with
    weight.<name>            the base model's weights in ComfyUI's names
    adapter.<module>.<half>  down and up of each LoRA
    gradient.<module>.<half> of the mean loss
    latents, noise, sigmas, loss, conditions.<item>
and prints, for every family, whether the gradients are the same without gradient checkpointing.
"""

import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

pack, folder = map(Path, sys.argv[1:3])


from pack_loader import load_pack

load_pack(pack, "lora_trainer")

from lora_trainer.nodes.host.flow_model import GraphFlowModel
from lora_trainer.nodes.host.weights import GraphModel, training_mode
from lora_trainer.trainers.dataset.bucket_config import BucketConfig
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.files.tensor_cache import TensorCache
from lora_trainer.trainers.flow.config import FlowConfig
from lora_trainer.trainers.flow.families import find_family
from lora_trainer.trainers.flow.family import FlowFamily
from lora_trainer.trainers.flow.targets import list_blocks
from lora_trainer.trainers.training.console_host import ConsoleHost
from lora_trainer.trainers.training.distributed import World
from lora_trainer.trainers.training.plan import plan_training
from lora_trainer.trainers.training.run_settings import RunSettings
from tiny_models import SPECS, build_tiny

WORDS = "a small red house on a green hill under a wide blue sky with two white clouds and one old grey stone wall"
# other implementations have the real model's proportions, as ComfyUI has at this width
SPECS["Z-Image"] = replace(
    SPECS["Z-Image"], unet_config=SPECS["Z-Image"].unet_config | {"dim": 384, "n_heads": 6, "n_kv_heads": 6}
)
# family, words of each caption, size of the images: 24 words and 8 of the template are 32 tokens
CASES = {
    "Z-Image": ("Z-Image", (24, 24), (256, 64)),
    "Z-Image, padded": ("Z-Image", (4, 20), (96, 32)),
    "FLUX.2": ("FLUX.2 klein", (4, 20), (96, 32)),
    "Qwen-Image": ("Qwen-Image", (4, 20), (96, 32)),
}
CONFIG = {"rank": 4, "alpha": 2.0, "learning_rate": 1e-3, "train_batch_size": 2, "caption_dropout": 0.0}


def write_images(name, counts, size_hw):
    images = folder / "images" / name
    images.mkdir(parents=True)
    words = WORDS.split()
    for number, count in enumerate(counts):
        pixels = np.random.default_rng(number).integers(0, 255, (*size_hw, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(" ".join((words[number:] + words)[:count]))
    return images


@torch.inference_mode()
def vary_vectors(network):
    """Norms and biases that do something."""
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        if weight.ndim <= 1:
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def prepare(case, tiny, counts, size_hw, host):
    vary_vectors(tiny.patcher.model.diffusion_model)
    row = find_family(type(tiny.patcher.model.model_config).__name__)
    dataset = scan_folder(DatasetConfig(images=str(write_images(case, counts, size_hw)), trigger_word=""))
    buckets = BucketConfig(resolution=max(size_hw[0] // 2 // 64 * 64, 64), bucket_reso_steps=32, min_bucket_reso=32)
    plan = plan_training(dataset, RunSettings(FlowConfig(**CONFIG), buckets))
    family = FlowFamily(lambda _: GraphFlowModel(GraphModel(tiny.patcher, tiny.clip, tiny.vae), row))
    family.identify(plan, host)
    prepared = family.prepare(plan, host, cache=TensorCache(None), world=World())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in list_parameters(prepared):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return prepared


def list_parameters(prepared):
    """List what the layers compute with; in float32 that is what is trained."""
    return [parameter for group in prepared.adapted.groups for parameter in group.weights.parameters]


def compute_gradients(prepared, step=3):
    for parameter in list_parameters(prepared):
        parameter.grad = None
    for losses in prepared.loss_terms(prepared.plan.crops.items[:2], step):
        losses.mean().backward()
    return losses, [parameter.grad for parameter in list_parameters(prepared)]


def run_case(case, name, counts, size_hw):
    tiny = build_tiny(name)
    with training_mode(), ConsoleHost(torch.device("cpu"), quiet=True) as host:
        prepared = prepare(case, tiny, counts, size_hw, host)
        save_file(compute_step(prepared, tiny), folder / f"{case}.safetensors")


def compare_checkpointing(name):
    """Return the number of matrices and the largest difference of a gradient, relative to its
    norm.
    """
    with training_mode(), ConsoleHost(torch.device("cpu"), quiet=True) as host:
        prepared = prepare(f"{name} again", build_tiny(name), (4, 20), (64, 64), host)
        checkpointed = compute_gradients(prepared)[1]
        for block in list_blocks(prepared.base.network).values():
            block.forward = block._plain_forward
        plain = compute_gradients(prepared)[1]
        differences = [(a - b).norm() / b.norm() for a, b in zip(checkpointed, plain, strict=True)]
        return len(differences), max(differences).item()


def compute_step(prepared, tiny):
    losses, gradients = compute_gradients(prepared)
    batch = prepared._make_batch(prepared.plan.crops.items[:2], 3)
    found = {
        "latents": batch.latents,
        "noise": batch.noise,
        "sigmas": batch.sigmas,
        "loss": losses.mean().detach(),
    }
    for number, (cross_attn, _) in enumerate(batch.conditions):
        found[f"conditions.{number}"] = cross_attn
    paths = [f"diffusion_model.{path}.{half}" for path in prepared.adapted.name_layers() for half in ("down", "up")]
    for name, parameter, gradient in zip(paths, list_parameters(prepared), gradients, strict=True):
        found[f"adapter.{name}"] = parameter
        found[f"gradient.{name}"] = gradient
    for name, weight in tiny.patcher.model.diffusion_model.state_dict().items():
        found[f"weight.{name}"] = weight
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def answer(function, *arguments):
    try:
        return function(*arguments)
    except Exception:  # one family's error is its own result
        return traceback.format_exc(limit=-4)


for case, settings in CASES.items():
    run_case(case, *settings)
print("RESULT" + json.dumps({name: answer(compare_checkpointing, name) for name in SPECS}))
