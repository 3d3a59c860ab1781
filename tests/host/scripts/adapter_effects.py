"""Runs in ComfyUI's interpreter: writes the weights of a checkpoint as ComfyUI computes them with a
LoRA file.

Arguments: the pack's folder, an embedded base checkpoint, the folder. For each
FOLDER/NAME.safetensors it writes FOLDER/weights/NAME.safetensors, with the changed weights by the
modules' names in the file.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

pack, checkpoint, folder = map(Path, sys.argv[1:])


from pack_loader import load_pack

load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")

import comfy.lora
import comfy.sd

STRENGTHS = (1.0, 0.6)

model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False)
key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, comfy.lora.model_lora_keys_unet(model.model, {}))
base = {**model.model.state_dict(), **clip.cond_stage_model.state_dict()}
(folder / "weights").mkdir()
with torch.inference_mode():
    for path in sorted(folder.glob("*.safetensors")):
        file = load_file(path)
        patches = comfy.lora.load_lora(file, key_map)
        names = {key_map[name]: name for name in {tensor.partition(".")[0] for tensor in file}}
        assert len(names) == len(patches), f"{path.name}: {len(patches)} of {len(names)} modules load"
        weights = {
            f"{names[key]} at {strength}": comfy.lora.calculate_weight(
                [(strength, patch, 1.0, None, None)], base[key].float().clone(), key
            )
            for key, patch in patches.items()
            for strength in STRENGTHS
        }
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "weights" / path.name)
