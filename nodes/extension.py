"""Registers the nodes, and their plain ids for API prompts where nobody else has taken them."""

from comfy_api.latest import ComfyExtension, io

from .apply_lora import ApplyLoRA
from .host.plain_ids import serve_plain_ids
from .load_images import LoadImages
from .save_lora import SaveLoRA
from .train_sdxl import LoRATrainSDXL

NODES: list[type[io.ComfyNode]] = [LoadImages, LoRATrainSDXL, ApplyLoRA, SaveLoRA]


class LoRATrainerExtension(ComfyExtension):
    async def on_load(self) -> None:
        await serve_plain_ids(NODES)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LoRATrainerExtension:
    return LoRATrainerExtension()
