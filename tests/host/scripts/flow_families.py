"""Runs in ComfyUI's interpreter: builds the tiny MODEL of every family, lets each answer for an
image, and lists the layers that its row of the table chooses. Prints JSON.

Arguments: the pack's folder.
"""

import json
import re
import sys
from pathlib import Path

import comfy.sd
import torch

pack = Path(sys.argv[1])
sys.path.insert(0, str(pack))

from tiny_models import SPECS, build_tiny
from trainers.flow.families import find_family

IMAGE_HW = (64, 96)


def check_family(name):
    with torch.inference_mode():
        tiny = build_tiny(name)
        answer = predict(tiny)
    network = tiny.patcher.model.diffusion_model
    row = find_family(type(tiny.patcher.model.model_config).__name__)
    layers = [path for path, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = [path for path in layers if re.fullmatch(row.target_modules, path)]
    blocks = [path for path, module in network.named_modules() if is_block(path, module)]
    per_block = {block: sum(path.startswith(block + ".") for path in targets) for block in blocks}
    return {
        "family": row.name,
        "knows_clip_type": row.clip_type.upper() in comfy.sd.CLIPType.__members__,
        "resolution_step": row.resolution_step,
        "step_of_latents": tiny.downscale,
        "shape_is_kept": list(answer.shape) == list(tiny.latent_shape(1, *IMAGE_HW)),
        "largest": answer.abs().max().item(),
        "is_finite": bool(torch.isfinite(answer).all()),
        "targets": targets,
        "other_layers": [path for path in layers if path not in targets],
        "per_block": per_block,
        "outside": [path for path in targets if not path.startswith(tuple(block + "." for block in blocks))],
    }


def is_block(path, module):
    """A transformer lists its blocks at the first level; a UNet has transformers in its blocks."""
    is_in_list = re.fullmatch(r"\w*(blocks|layers)\.\d+", path) and not path.startswith(("input_", "output_"))
    return bool(is_in_list) or type(module).__name__ == "SpatialTransformer"


def predict(tiny):
    """As the sampler does: conditions of the text encoder, latents of the VAE."""
    model = tiny.patcher.model
    pixels = torch.rand(1, *IMAGE_HW, 3, generator=torch.Generator().manual_seed(0))
    latents = model.process_latent_in(tiny.vae.encode(pixels))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    cond, entries = tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize('a red "toadstool"'))[0]
    sigma = torch.full((1,), float(model.model_sampling.percent_to_sigma(0.4)))
    noisy = model.model_sampling.noise_scaling(sigma, noise.clone(), latents)
    given = {**entries, **tiny.extra_conditions, "cross_attn": cond, "noise": noise, "device": latents.device}
    conds = {key: value.cond for key, value in model.extra_conds(**given).items()}
    return model.apply_model(noisy, sigma, **conds)


print("RESULT" + json.dumps({name: check_family(name) for name in SPECS}))
