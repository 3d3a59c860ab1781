"""Runs in ComfyUI's interpreter: trains LoRAs on the embedded Z-Image and draws with them, for
benchmarks/flow_quality.py.

Arguments: the pack's folder, the folder of the model files, a folder of images, the number of
images of each prompt. Each line of the input is a job, as JSON: {"lora": file, "settings": those of
the command flow, or null if the file is there}. Each line RESULT of the output answers one with the
numbers of a comparison.
"""

import importlib.util
import json
import sys
import types
from dataclasses import asdict
from pathlib import Path

pack, models, images, num_seeds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
for package, place in (("lora_trainer", pack), ("lora_trainer.nodes", pack / "nodes")):
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(place)]
spec = importlib.util.spec_from_file_location(
    "embedded_base_pack", pack / "nodes/embedded_base_pack/__init__.py", submodule_search_locations=[]
)
sys.modules["embedded_base_pack"] = importlib.util.module_from_spec(spec)
sys.modules["embedded_base_pack"].__path__ = [str(pack / "nodes" / "embedded_base_pack")]
spec.loader.exec_module(sys.modules["embedded_base_pack"])

import comfy.sample
import comfy.sd
import comfy.utils
import numpy as np
import torch
from lora_trainer.nodes.host import flow_command
from lora_trainer.trainers.demo.before_after import NEW_PROMPTS, OLD_PROMPTS, judge
from lora_trainer.trainers.embedded_base.z_image import DIFFUSION_MODEL, MODEL_NAME, TEXT_ENCODER, TEXT_ENCODER_NAME
from lora_trainer.trainers.embedded_base.z_image import VAE, VAE_NAME

FILES = {
    "model": str(models / DIFFUSION_MODEL / MODEL_NAME),
    "text_encoder": str(models / TEXT_ENCODER / TEXT_ENCODER_NAME),
    "vae": str(models / VAE / VAE_NAME),
}
NUM_STEPS, GUIDANCE = 20, 4.0


def draw(graph, lora=None):
    """[prompts * seeds, 128, 128, 3] uint8, with the same noise every time."""
    with torch.inference_mode():
        model = graph.model
        if lora is not None:
            weights = comfy.utils.load_torch_file(lora)
            model, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
            assert len(model.patches) == 15, len(model.patches)
        negative = graph.clip.encode_from_tokens_scheduled(graph.clip.tokenize(""))
        rows = []
        for prompt in NEW_PROMPTS + OLD_PROMPTS:
            positive = graph.clip.encode_from_tokens_scheduled(graph.clip.tokenize(prompt))
            empty = torch.zeros(num_seeds, 16, 16, 16)
            noise = comfy.sample.prepare_noise(empty, 0)
            latents = comfy.sample.sample(
                model, noise, NUM_STEPS, GUIDANCE, "euler", "simple", positive, negative, empty, disable_pbar=True
            )
            rows.append((graph.vae.decode(latents) * 255).round().to(torch.uint8).cpu().numpy())
        return np.concatenate(rows)


graph = flow_command.load_graph(FILES)
before = draw(graph)
for line in sys.stdin:
    job = json.loads(line)
    if job["settings"] is not None:
        lora = Path(job["lora"])
        flow_command.train(
            {"images": images, "output": lora.stem, "output_dir": str(lora.parent), "device": "cpu", **job["settings"]},
            lambda _: graph,
        )
    numbers = asdict(judge(before, draw(graph, job["lora"]), num_seeds=num_seeds))
    print(
        "RESULT" + json.dumps({name: value for name, value in numbers.items() if isinstance(value, float)}), flush=True
    )
