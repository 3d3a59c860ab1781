"""Runs in ComfyUI's interpreter: estimates the memory of trainings on models of full size, without
data, at each resolution that a preset may choose, with all blocks in main memory. Prints JSON.

Argument: the pack's folder.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from comfy.cli_args import args

args.use_pytorch_cross_attention = True  # as on a GPU

import torch

pack = Path(sys.argv[1])


from pack_loader import load_pack

load_pack(pack, "lora_trainer")

from full_models import FULL_SPECS, build_hollow
from lora_trainer.nodes.host import flow_memory
from lora_trainer.nodes.host.flow_memory import GraphMemory
from lora_trainer.trainers.flow.families import find_family
from lora_trainer.trainers.flow.presets import LOWER_RESOLUTIONS, resolve_flow
from tiny_models import build_tiny

MEMORY = "8 GB"


def estimate_all(spec):
    """The estimates that fit_resolution makes where nothing ever fits."""
    row, found = find_family(spec.config), {}

    def take_all(highest, estimate, device_bytes):
        found.update({resolution: asdict(estimate(resolution)) for resolution in (highest, *LOWER_RESOLUTIONS)})
        return choose(highest, lambda resolution: estimate(highest), device_bytes)

    choose, flow_memory.choose_resolution = flow_memory.choose_resolution, take_all
    try:
        GraphMemory(build_hollow(spec), row).fit_resolution(resolve(row), {}, MEMORY)
    finally:
        flow_memory.choose_resolution = choose
    return {"family": row.name, "estimates": found}


def resolve(row):
    return resolve_flow({}, row, goal="object", memory=MEMORY, num_images=20)


def count_caching():
    """Of a text encoder and a VAE on a GPU: whole where there is room, else what is free."""
    tiny = build_tiny("Qwen-Image")
    row = find_family("QwenImage")
    memory = GraphMemory(tiny.patcher, row, tiny.vae, tiny.clip)
    conditions = flow_memory.imagine_conditions(memory.network, 8)

    def estimate(**room):
        config = resolve(row).training
        return memory.estimate(config, (64, 32), conditions, num_streamed=0, **room).caching_bytes

    on_cpu = estimate()
    tiny.clip.patcher.load_device = tiny.vae.patcher.load_device = torch.device("cuda")
    with_image = estimate()
    tiny.clip.patcher.model_size = lambda: 2**30
    return {"on_cpu": on_cpu, "with_image": with_image, "with_text": estimate(), "in_room": estimate(free_bytes=105000)}


def fit(name, memory, **given):
    row = find_family(FULL_SPECS[name].config)
    graph = GraphMemory(build_hollow(FULL_SPECS[name]), row)
    settings, need = graph.fit_resolution(resolve(row), given, memory)
    return [settings.buckets.resolution, need]


if __name__ == "__main__":
    fitted = [fit("Z-Image", "4 GB"), fit("Z-Image", "4 GB", resolution=1024), fit("Z-Image", "auto")]
    print("RESULT" + json.dumps({"caching": count_caching(), "fitted": fitted}), flush=True)
    for name, spec in FULL_SPECS.items():
        print("RESULT" + json.dumps({"name": name, **estimate_all(spec)}), flush=True)
