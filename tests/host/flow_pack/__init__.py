"""Test-only ComfyUI pack: a loader of the tiny models in tests/host/tiny_models.py, and a node that
hashes a MODEL's weights.
"""

import copy
import hashlib
import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

sys.path.append(str(Path(__file__).resolve().parents[1]))
import tiny_models


class PatchableClip(tiny_models.FakeClip):
    """As much of a CLIP as core's nodes need."""

    def clone(self):
        return copy.copy(self)

    def add_patches(self, patches, strength=1.0):
        return []


tiny_models.FakeClip = PatchableClip


class LoadTinyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FlowPack_LoadTinyModel",
            category="tests",
            inputs=[
                io.Combo.Input("family", options=[*tiny_models.SPECS]),
                io.String.Input("file_name", default="model.safetensors"),
                io.String.Input("class_name", default=""),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, family, file_name, class_name):
        tiny = tiny_models.build_tiny(family)
        tiny.patcher.cached_patcher_init = (None, (file_name,))
        if class_name:  # a family that nobody knows
            config = tiny.patcher.model.model_config
            config.__class__ = type(class_name, (type(config),), {})
        return io.NodeOutput(tiny.patcher, tiny.clip, tiny.vae)


class HashModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FlowPack_HashModel",
            category="tests",
            is_output_node=True,
            not_idempotent=True,
            inputs=[io.Model.Input("model"), io.Int.Input("turn", default=0)],
            outputs=[],
        )

    @classmethod
    def execute(cls, model, turn):
        digest = hashlib.sha256()
        for name, tensor in sorted(model.model.state_dict().items()):
            digest.update(name.encode() + str(tensor.dtype).encode() + tensor.cpu().numpy().tobytes())
        patches = sorted(model.patches)
        return io.NodeOutput(ui={"text": [digest.hexdigest(), f"{len(patches)} patches"]})


class FlowPack(ComfyExtension):
    async def get_node_list(self):
        return [LoadTinyModel, HashModel]


async def comfy_entrypoint():
    return FlowPack()
