"""Serves the Review Captions widget: incoming captions, thumbnails, token counts and changes to
many captions.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from aiohttp import web
from server import PromptServer

from ...trainers.captions.edits import change_captions, compute_review_key, inspect_caption
from ...trainers.dataset.dataset import Dataset
from ...trainers.dataset.image import TrainingImage
from ...trainers.files.atomic_write import atomic_write
from . import folders

THUMBNAIL_SIZE = 320
_CONTENT_HASH = re.compile(r"[0-9a-f]{64}")
# The response for a content hash never changes.
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


def keep_review(dataset: Dataset) -> str:
    """Store the images' thumbnails and captions for the widget. Return their key, which is still
    valid after a restart.
    """
    key = compute_review_key(dataset)
    progress = comfy.utils.ProgressBar(len(dataset.images))  # without a text, which would cover half of the widget
    for number, image in enumerate(dataset.images, start=1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        _keep_thumbnail(image)
        progress.update_absolute(number)
    review = {
        "key": key,
        "pictures": [_describe_image(image, dataset.get_trigger_word(image)) for image in dataset.images],
    }
    with atomic_write(_get_review_file(key), overwrite=True) as temporary:
        temporary.write_text(json.dumps(review), encoding="utf-8")
    return key


def _describe_image(image: TrainingImage, trigger_word: str) -> dict[str, Any]:
    height, width = image.size_hw
    entry = {"sha256": image.sha256, "name": image.name, "caption": image.caption, "trigger_word": trigger_word}
    return {**entry, "width": width, "height": height, "thumbnail": _make_thumbnail_id(image)}


def _make_thumbnail_id(image: TrainingImage) -> str:
    return hashlib.sha256(f"{image.sha256} {image.alpha_background}".encode()).hexdigest()


def _keep_thumbnail(image: TrainingImage) -> None:
    path = _get_thumbnail_file(_make_thumbnail_id(image))
    if path.is_file():
        return
    with atomic_write(path, overwrite=True) as temporary:
        image.read_thumbnail(THUMBNAIL_SIZE).save(temporary, format="JPEG", quality=85)


def _get_review_file(key: str) -> Path:
    return folders.get_cache_folder() / "reviews" / f"{key}.json"


def _get_thumbnail_file(thumbnail_id: str) -> Path:
    return folders.get_cache_folder() / "thumbnails" / f"{thumbnail_id}.jpg"


def serve_caption_review() -> None:
    """Add the routes. ComfyUI only accepts them while it loads its nodes."""
    routes = PromptServer.instance.routes
    routes.get("/lora_trainer/reviews/{key}")(_get_review)
    routes.get("/lora_trainer/thumbnails/{key}")(_get_thumbnail)
    routes.post("/lora_trainer/captions/inspect")(_inspect)
    routes.post("/lora_trainer/captions/change")(_change)


async def _get_review(request: web.Request) -> web.StreamResponse:
    return _respond_with_file(request, _get_review_file, {"Content-Type": "application/json"})


async def _get_thumbnail(request: web.Request) -> web.StreamResponse:
    return _respond_with_file(request, _get_thumbnail_file, {"Content-Type": "image/jpeg"} | _FOREVER)


def _respond_with_file(
    request: web.Request, file_of: Callable[[str], Path], headers: dict[str, str]
) -> web.StreamResponse:
    key = request.match_info["key"]
    if not _CONTENT_HASH.fullmatch(key) or not (path := file_of(key)).is_file():
        raise web.HTTPNotFound(text="Nothing is stored under this name. Run the prompt once")
    return web.FileResponse(path, headers=headers)


async def _inspect(request: web.Request) -> web.Response:
    """{"captions": [...], "trigger_words": [...]} -> [{"num_tokens", "num_chunks",
    "has_trigger_word"}, ...]
    """
    captions, trigger_words = await _read_texts(request, "captions", "trigger_words")
    if len(captions) != len(trigger_words):
        raise web.HTTPBadRequest(
            text=f"{len(captions)} captions, but {len(trigger_words)} trigger_words. Give one per caption"
        )
    return web.json_response([asdict(inspect_caption(*pair)) for pair in zip(captions, trigger_words, strict=True)])


async def _change(request: web.Request) -> web.Response:
    """{"captions": [...], "operation", "text", "replacement", "match_case", "whole_words"} -> the
    changed captions.
    """
    (captions,) = await _read_texts(request, "captions")
    body = await request.json()
    settings = {"match_case": bool(body.get("match_case", False)), "whole_words": bool(body.get("whole_words", True))}
    try:
        changed = change_captions(
            captions, body.get("operation", ""), str(body.get("text", "")), str(body.get("replacement", "")), **settings
        )
    except ValueError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
    return web.json_response(changed)


async def _read_texts(request: web.Request, *names: str) -> list[list[str]]:
    """Read these lists of texts from the request's JSON object."""
    try:
        body = await request.json()
    except ValueError:
        raise web.HTTPBadRequest(text="the request must be JSON") from None
    lists: list[Any] = [body.get(name) if isinstance(body, dict) else None for name in names]
    if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
        raise web.HTTPBadRequest(text=f"the request must be an object with a list of texts as {' and '.join(names)}")
    return lists
