"""Runs in ComfyUI's interpreter: finds where the captioner's weights are while it captions, and
what is left of it afterwards. Prints JSON.

Arguments: the pack's folder, the folder of a Florence-2 model, a folder of images, a base directory
for models and output.
"""

import gc
import json
import sys
import weakref
from pathlib import Path

import torch

pack, model_folder, images, base = map(Path, sys.argv[1:])

import folder_paths

folder_paths.models_dir = str(base / "models")
folder_paths.set_output_directory(str(base / "output"))

from pack_loader import load_pack

load_pack(pack, "lora_trainer")

import comfy.model_management
from lora_trainer.nodes.host import captioner as graph_captioner
from lora_trainer.trainers.captions.captioning import CaptionerConfig
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.captions.florence2.captioner import Florence2Captioner

seen = {"loaded": [], "names": graph_captioner.list_models()}
models = []
describe = Florence2Captioner.describe


def watched(self, *arguments, **settings):
    texts = describe(self, *arguments, **settings)
    patchers = [
        loaded
        for loaded in comfy.model_management.loaded_models()
        if isinstance(loaded.model, graph_captioner._Managed)
    ]
    seen["loaded"].append(
        [
            len(patchers),
            {str(weight.dtype) for patcher in patchers for weight in patcher.model.parameters()} == {"torch.float32"},
        ]
    )
    models.extend(weakref.ref(patcher.model.model) for patcher in patchers)
    del patchers
    return texts


Florence2Captioner.describe = watched


def run(**settings):
    dataset = scan_folder(DatasetConfig(images=str(images)))
    return graph_captioner.caption_in_graph(
        dataset,
        CaptionerConfig(task="caption", batch_size=2, **settings),
        model=seen["names"][0],
        model_id="",
        download=False,
    )


with torch.inference_mode():
    captioned = run()
    seen["captions"] = [image.caption for image in captioned.images]
    seen["captions without the model"] = [image.caption for image in run().images]
    Florence2Captioner.describe = lambda *_, **__: [""] * 2
    try:
        run(num_beams=1)
    except ValueError as error:
        seen["error"] = str(error)
gc.collect()
seen["alive"] = sum(model() is not None for model in models)
seen["modules"] = sum(
    isinstance(thing, torch.nn.Module) and "florence" in type(thing).__name__.lower() for thing in gc.get_objects()
)
seen["left"] = len(comfy.model_management.loaded_models())
print("RESULT" + json.dumps(seen))
