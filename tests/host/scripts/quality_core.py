"""Runs in ComfyUI's interpreter, for benchmarks/quality/core.py: trains a LoRA with core's
TrainLoraNode, and writes the base with the LoRA in its UNet, as ComfyUI applies it.

Arguments: the pack's folder, the base, a folder of images with captions, the file to write, the
side of the images in pixels, the settings of the node as JSON.
"""

import importlib.util
import json
import sys
from pathlib import Path

import comfy.sd
import comfy.utils
import numpy as np
import torch
from comfy_extras.nodes_train import TrainLoraNode
from PIL import Image
from safetensors.torch import load_file, save_file

pack, base, images, result = map(Path, sys.argv[1:5])
side, settings = int(sys.argv[5]), json.loads(sys.argv[6])
UNET = "model.diffusion_model."


def load_embedded_base():
    """So that ComfyUI knows the sizes of the embedded base."""
    folder = pack / "nodes" / "embedded_base_pack"
    spec = importlib.util.spec_from_file_location(
        "embedded_base_pack", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["embedded_base_pack"] = module
    spec.loader.exec_module(module)


def read_image(path):
    """The middle square, as core's dataset node crops it."""
    image = Image.open(path).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(square).astype(np.float32) / 255)[None]


load_embedded_base()
with torch.inference_mode():
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(base), output_vae=True, output_clip=True)[:3]
    paths = sorted(images.glob("*.png"))
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
    latents = [{"samples": vae.encode(read_image(path))} for path in paths]
    positive = [clip.encode_from_tokens_scheduled(clip.tokenize(caption)) for caption in captions]
    lora = TrainLoraNode.execute(
        model=[model], latents=latents, positive=positive, **{name: [value] for name, value in settings.items()}
    )[0]
    patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
    patched.patch_model()
    trained = patched.model.diffusion_model.state_dict()
    weights = load_file(base)
    weights |= {name: trained[name.removeprefix(UNET)].clone() for name in weights if name.startswith(UNET)}
    save_file({name: weight.contiguous() for name, weight in weights.items()}, result)
