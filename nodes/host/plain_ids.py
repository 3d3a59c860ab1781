"""Accepts our nodes' plain ids in API prompts, and reports ids that another pack has taken."""

import importlib
import logging
from typing import Any

from aiohttp import web
from comfy_api.latest import ComfyAPI, io
from server import PromptServer

logger = logging.getLogger(__name__)

Nodes = list[type[io.ComfyNode]]
# Without SaveLoRA: that id is core's.
PLAIN_IDS = ("LoadImages", "Florence2Caption", "LoRATrainSDXL", "MusubiTrain")


async def serve_plain_ids(nodes: Nodes) -> None:
    """Let prompts and workflows name our nodes by their plain ids, unless another pack owns the id;
    report the ids that others own.
    """
    by_plain_id = {
        plain_id: node for node in nodes for plain_id in PLAIN_IDS if node.GET_SCHEMA().node_id.endswith(f"_{plain_id}")
    }
    for plain_id, node in by_plain_id.items():
        await ComfyAPI().node_replacement.register(_make_replacement(plain_id, node))
    server = PromptServer.instance
    server.add_on_prompt_handler(lambda request: _rename_plain_ids(request, by_plain_id))

    async def report(_app: web.Application) -> None:  # when all packs are loaded
        report_taken_ids(nodes, list(by_plain_id))

    server.app.on_startup.append(report)


def _make_replacement(plain_id: str, node: type[io.ComfyNode]) -> Any:
    schema = node.GET_SCHEMA()
    widgets = [entry.id for entry in schema.inputs if isinstance(entry, io.WidgetInput) and not entry.force_input]
    same_ids: Any = [{"new_id": entry.id, "old_id": entry.id} for entry in schema.inputs]
    return io.NodeReplace(
        new_node_id=schema.node_id, old_node_id=plain_id, old_widget_ids=widgets, input_mapping=same_ids
    )


def _rename_plain_ids(request: dict[str, Any], by_plain_id: dict[str, type[io.ComfyNode]]) -> dict[str, Any]:
    """Rename plain ids before ComfyUI does: its own replacement (0.33) raises KeyError if a prompt
    leaves out an optional input that its mapping names.
    """
    for entry in request.get("prompt", {}).values():
        plain_id = entry.get("class_type") if isinstance(entry, dict) else None
        if plain_id in by_plain_id and find_owner(plain_id) is None:
            entry["class_type"] = by_plain_id[plain_id].GET_SCHEMA().node_id
    return request


def report_taken_ids(nodes: Nodes, plain_ids: list[str]) -> None:
    registered = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    for node in nodes:
        node_id = node.GET_SCHEMA().node_id
        if registered.get(node_id) is not node:
            logger.warning(
                "LoRA Trainer: %s belongs to %s, so ours cannot be used. Is the pack installed twice?",
                node_id,
                find_owner(node_id),
            )
    for plain_id in plain_ids:
        if find_owner(plain_id) is not None:
            logger.info(
                "LoRA Trainer: the id %s belongs to %s; in API prompts use LoRATrainer_%s for ours",
                plain_id,
                find_owner(plain_id),
                plain_id,
            )


def find_owner(node_id: str) -> str | None:
    """Return the module that registered the id, such as custom_nodes.some_pack; None if free."""
    node = importlib.import_module("nodes").NODE_CLASS_MAPPINGS.get(node_id)
    return None if node is None else getattr(node, "RELATIVE_PYTHON_MODULE", "ComfyUI itself")
