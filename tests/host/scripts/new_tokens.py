"""Runs in ComfyUI's interpreter: encodes prompts with an embedding file, by ComfyUI's own tokenizer
and text encoders.

Arguments: the pack's folder, an embedded base checkpoint, a folder with embeddings/, a JSON list of
prompts. Writes FOLDER/encoded.safetensors: states N and pooled N of prompt N.
"""

import importlib.util
import json
import sys
from pathlib import Path

from safetensors.torch import save_file

pack, checkpoint, folder = map(Path, sys.argv[1:4])


def load_pack(path, name):
    spec = importlib.util.spec_from_file_location(name, path / "__init__.py", submodule_search_locations=[str(path)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")

import comfy.sd
import torch

_, clip, *_ = comfy.sd.load_checkpoint_guess_config(
    str(checkpoint), output_vae=False, embedding_directory=str(folder / "embeddings")
)
clip.cond_stage_model.float()
encoded = {}
with torch.inference_mode():
    for number, prompt in enumerate(json.loads(sys.argv[4])):
        states, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
        encoded |= {f"states {number}": states.clone(), f"pooled {number}": pooled.clone()}
save_file(encoded, folder / "encoded.safetensors")
