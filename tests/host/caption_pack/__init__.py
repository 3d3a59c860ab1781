"""Test-only ComfyUI pack: a captioning node like those of other packs, and a record of Florence-2's
memory during captioning and at every training step.

While <base directory>/memory.jsonl exists, the record is appended to it, one JSON object per line.
"""

import gc
import json
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from transformers import GenerationMixin

MEMORY_FILE = Path(folder_paths.base_path) / "memory.jsonl"
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 40), "blue": (40, 60, 220), "white": (235, 235, 235)}


class ForeignTagger:
    """Returns one text per image of a batch, like the taggers of other packs."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"image": ("IMAGE",)}})
    RETURN_TYPES, OUTPUT_IS_LIST, FUNCTION, CATEGORY = ("STRING",), (True,), "tag", "test"

    def tag(self, image):
        return ([f"{self.nearest(photo.mean((0, 1)) * 255)}, tagged" for photo in image],)

    def nearest(self, mean):
        return min(COLOURS, key=lambda name: (mean - torch.tensor(COLOURS[name])).abs().sum().item())


NODE_CLASS_MAPPINGS = {"ForeignTagger": ForeignTagger}
plain_generate, plain_step = GenerationMixin.generate, torch.optim.AdamW.step


def generate(self, *arguments, **settings):
    note_memory("caption")
    return plain_generate(self, *arguments, **settings)


def step(self, *arguments, **settings):
    note_memory("step")
    return plain_step(self, *arguments, **settings)


def note_memory(event):
    if not MEMORY_FILE.exists():
        return
    models = [thing for thing in gc.get_objects() if type(thing).__name__ == "Florence2ForConditionalGeneration"]
    record = {
        "event": event,
        "florence2_bytes": sum(weight.nbytes for model in models for weight in model.parameters()),
        "loaded_models": len(comfy.model_management.loaded_models()),
        "process_bytes": process_bytes(),
    }
    with MEMORY_FILE.open("a") as file:
        file.write(json.dumps(record) + "\n")


def process_bytes():
    status = Path("/proc/self/status")  # Linux only
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


GenerationMixin.generate, torch.optim.AdamW.step = generate, step
