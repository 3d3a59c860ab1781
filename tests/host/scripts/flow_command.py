"""Runs in ComfyUI's interpreter, alone or under torchrun: the command `flow` on a tiny Z-Image.

Arguments: the pack's folder, a folder of images, the name of the LoRA, the batch size.
"""

import sys
import types
from pathlib import Path

pack, images, name, batch_size = sys.argv[1:5]
for package, place in (("lora_trainer", pack), ("lora_trainer.nodes", f"{pack}/nodes")):
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [place]
sys.path.insert(0, str(Path(pack) / "tests" / "host"))

from lora_trainer.nodes.host import flow_command


def load(files):
    from lora_trainer.nodes.host.weights import GraphModel
    from tiny_models import build_tiny

    tiny = build_tiny("Z-Image")
    return GraphModel(tiny.patcher, tiny.clip, tiny.vae)


settings = {
    "images": images,
    "output": name,
    "trigger_word": "",
    "cache_dir": "cache",
    "device": "cpu",
    "rank": 2,
    "max_train_steps": 4,
    "train_batch_size": int(batch_size),
    "gradient_accumulation_steps": 1,
    "resolution": 64,
    "save_dtype": "fp32",
    "caption_dropout": 0.0,
    "optimizer": "AdamW",
    "memory": "8 GB",
}
result = flow_command.train(settings, load)
print(f"RESULT{result.losses}")
