"""The routes of the training panel. What answers them is imported with the first request."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from server import PromptServer

Handler = Callable[[web.Request], Awaitable[web.Response]]


def serve_training_runs() -> None:
    """Add the routes. ComfyUI only accepts them while it loads its nodes."""
    routes = PromptServer.instance.routes
    routes.get("/lora_trainer/runs")(_make_handler("list_runs"))
    routes.get("/lora_trainer/runs/{name}")(_make_handler("get_run"))
    routes.post("/lora_trainer/runs/{name}/finish")(_make_handler("finish"))
    routes.post("/lora_trainer/runs/{name}/pause")(_make_handler("pause"))
    routes.post("/lora_trainer/runs/{name}/list")(_make_handler("list_lora"))


def _make_handler(name: str) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        from .training_runs import TRAINING_RUNS

        return await getattr(TRAINING_RUNS, name)(request)

    return handle
