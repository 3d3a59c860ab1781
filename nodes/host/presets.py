"""Serves what the presets choose for settings that are left open, for the widgets of Train LoRA
(SDXL) and Flight Check.
"""

from typing import Any

import comfy.model_management
from aiohttp import web
from server import PromptServer

from ...trainers.sdxl.config import SDXLConfig
from ...trainers.training.presets import GOALS, MEMORY_PRESETS, choose, choose_memory_preset
from ...trainers.training.run_settings import RunSettings
from ..open_settings import AUTO, drop_open_settings

_NUMBERS = ("rank", "train_batch_size")  # the settings that change what is chosen for others


def serve_presets() -> None:
    """Add the route. ComfyUI only accepts it while it loads its nodes."""
    PromptServer.instance.routes.get("/lora_trainer/presets")(_get_presets)


async def _get_presets(request: web.Request) -> web.Response:
    """?goal=object&memory=auto&rank=0&train_batch_size=0 -> {"rank": 16, "alpha": 8.0, ...}"""
    query = request.query
    goal, memory = query.get("goal"), query.get("memory", AUTO)
    if goal not in GOALS or memory not in (AUTO, *MEMORY_PRESETS):
        raise web.HTTPBadRequest(text=f"goal must be one of {', '.join(GOALS)}; memory as on the node")
    try:
        given = drop_open_settings({name: int(query.get(name, 0)) for name in _NUMBERS})
        RunSettings.read(SDXLConfig, given)  # checks their ranges
    except ValueError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
    return web.json_response(_choose(given, goal=goal, memory=memory))


def _choose(given: dict[str, Any], *, goal: str, memory: str) -> dict[str, Any]:
    if memory == AUTO:
        memory = choose_memory_preset(comfy.model_management.get_total_memory())
    chosen = choose(given, goal=goal, memory=memory)
    del chosen["blocks_to_swap"]  # 0 does not leave it open
    del chosen["optimizer"]  # only a step on the device says whether AdamW8bit works
    return chosen
