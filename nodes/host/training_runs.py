"""Answers the training panel: the runs, one run with its curves, requests to finish or to pause.
The run folders are the source, so that the answers survive a restart.
"""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from ...trainers.training.runs.reader import MAX_POINTS, RunNotAlive, RunReader, UnknownRun
from ...trainers.training.runs.record import RunRecord
from . import folders
from .lora_copy import copy_to_loras_folder

DEFAULT_POINTS = 300
MAX_NODES = 100


class TrainingRuns:
    """The handlers, which share a reader. Files are read in a thread: the server goes on."""

    def __init__(self) -> None:
        self._reader = RunReader()

    async def list_runs(self, request: web.Request) -> web.Response:
        """?node=12:5&workflow=ID, both optional, `node` also more than once -> [{"name", "status",
        "step", "total", ...}, ...], the latest first
        """
        nodes = request.query.getall("node", [])
        if len(nodes) > MAX_NODES:
            raise web.HTTPBadRequest(text=f"{len(nodes)} nodes, at most {MAX_NODES} at once")
        runs = await asyncio.to_thread(
            self._reader.list_runs, folders.get_runs_folder(), nodes=nodes, workflow=request.query.get("workflow")
        )
        return web.json_response([asdict(run) for run in runs])

    async def get_run(self, request: web.Request) -> web.Response:
        """?points=300 -> everything about the run, its curve in at most so many points"""
        max_points = _read_points(request)
        name = request.match_info["name"]
        try:
            described = await asyncio.to_thread(self._describe, name, max_points)
        except UnknownRun as error:
            raise web.HTTPNotFound(text=str(error)) from None
        return web.json_response(described)

    async def finish(self, request: web.Request) -> web.Response:
        return await self._ask(request, "finish")

    async def pause(self, request: web.Request) -> web.Response:
        return await self._ask(request, "pause")

    async def list_lora(self, request: web.Request) -> web.Response:
        """{"path": one of the run's LoRAs} -> {"lora_name": as loaders list it, from now on}"""
        _require_json(request)
        name, path = request.match_info["name"], await _read_path(request)
        try:
            lora_name = await asyncio.to_thread(self._list_lora, name, path)
        except UnknownRun as error:
            raise web.HTTPNotFound(text=str(error)) from None
        except OSError as error:  # such as a full disk
            raise web.HTTPConflict(text=str(error)) from None
        return web.json_response({"lora_name": lora_name})

    def _list_lora(self, name: str, path: str) -> str:
        run = self._reader.read_run(folders.get_runs_folder(), name, max_points=1)
        if path not in [lora.path for lora in run.loras]:
            raise UnknownRun(f"{name} has no LoRA {path[:200]}")
        return folders.find_lora_name(Path(path)) or copy_to_loras_folder(Path(path), folder=folders.get_loras_folder())

    def _describe(self, name: str, max_points: int) -> dict[str, Any]:
        return _describe(self._reader.read_run(folders.get_runs_folder(), name, max_points=max_points))

    async def _ask(self, request: web.Request, what: str) -> web.Response:
        """-> {"requested": "finish"}; 409 and a sentence if the run has ended"""
        _require_json(request)
        name = request.match_info["name"]
        try:
            await asyncio.to_thread(self._reader.ask_run, folders.get_runs_folder(), name, what)
        except UnknownRun as error:
            raise web.HTTPNotFound(text=str(error)) from None
        except RunNotAlive as error:
            raise web.HTTPConflict(text=str(error)) from None
        return web.json_response({"requested": what})


def _describe(record: RunRecord) -> dict[str, Any]:
    """The record, with what ComfyUI calls its files."""
    described = asdict(record)
    for sample in described["samples"]:
        subfolder = f"lora_trainer/runs/{record.summary.name}/samples"
        sample["file"] = {"filename": sample["name"], "subfolder": subfolder, "type": "output"}
    for lora in described["loras"]:
        lora["lora_name"] = folders.find_lora_name(Path(lora["path"]))
    return described


def _read_points(request: web.Request) -> int:
    text = request.query.get("points", str(DEFAULT_POINTS))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_POINTS):
        raise web.HTTPBadRequest(text=f"points must be between 1 and {MAX_POINTS}, got {text[:20]}")
    return int(text)


async def _read_path(request: web.Request) -> str:
    try:
        path = (await request.json())["path"]
    except (ValueError, KeyError, TypeError):
        path = None
    if not isinstance(path, str):
        raise web.HTTPBadRequest(text='send {"path": the path of a LoRA}')
    return path


def _require_json(request: web.Request) -> None:
    """Pages of other origins cannot send this type without being asked first, which ComfyUI denies
    them; the others it tells apart by their origin, on this machine only.
    """
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="send Content-Type: application/json")


TRAINING_RUNS = TrainingRuns()
