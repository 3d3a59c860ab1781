"""Runs Florence-2 in this ComfyUI: finds its folders, chooses device and precision by ComfyUI's
rules, and loads and unloads it like ComfyUI's own models.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from torch import nn

from ...trainers.captions.captioning import CaptionCache, CaptionerConfig, caption_dataset
from ...trainers.captions.florence2.folder import find_models
from ...trainers.dataset.dataset import Dataset
from . import folders
from .progress import ComfyHost, cancellable

# Where other packs keep Florence-2, and where we download it to.
_FOLDER_NAMES = ("LLM", "florence2")
# For the vision tower and the beams, per image of a batch.
_WORKING_BYTES = 500 * 2**20


def list_models() -> list[str]:
    """Return the names of the Florence-2 models here, such as "LLM/Florence-2-base"."""
    return list(_find_models())


def find_model_folder(name: str, model_id: str) -> Path | None:
    """Find the folder of the chosen model; None if `model_id` is not downloaded yet.

    Raises:
        ValueError: neither or both are given, or there is no such model.
    """
    from ...trainers.captions.florence2.download import find_downloaded_model

    if name != folders.NONE and model_id.strip():
        raise ValueError(
            f"model ({name}) and model_id ({model_id.strip()}) are both set. Empty model_id, or set model to "
            f"{folders.NONE}"
        )
    if model_id.strip():
        return find_downloaded_model(model_id, _get_download_root())
    if name == folders.NONE:
        raise ValueError(
            "no model: choose one, or write a model_id such as florence-community/Florence-2-base and turn on "
            f"download. Models are searched in {_list_places()}"
        )
    if name not in _find_models():
        raise ValueError(f"{name}: there is no such Florence-2 model any more. Models are searched in {_list_places()}")
    return _find_models()[name]


def caption_in_graph(
    dataset: Dataset, config: CaptionerConfig, *, model: str, model_id: str, download: bool
) -> Dataset:
    """Caption with a model that is loaded only if needed, and freed from the device and from memory
    afterwards.

    Raises:
        ValueError, RuntimeError: the model cannot be found, downloaded or run, or an image got an
            empty caption; the message says which.
        InterruptProcessingException: the user cancelled; the captions so far are kept.
    """
    # imported late: transformers takes seconds
    from ...trainers.captions.florence2.captioner import Florence2Captioner

    host = ComfyHost()
    with cancellable():
        folder = find_model_folder(model, model_id) or _download(model_id, host, is_allowed=download)
        with _place_on_device(config.batch_size) as place:
            captioner = Florence2Captioner(
                folder, dtype=_choose_dtype(comfy.model_management.text_encoder_device()), place=place
            )
            try:
                return caption_dataset(dataset, captioner, config, host, CaptionCache(folders.get_cache_folder()))
            finally:
                captioner.close()


def is_in_cache(dataset: Dataset) -> bool:
    """Return whether the images are in our own cache, as those from a zip or other nodes are."""
    root = folders.get_work_folder().resolve()
    return any(image.path.resolve().is_relative_to(root) for image in dataset.images)


class _Managed(nn.Module):
    """Wraps transformers' models for ModelPatcher, because their `device` cannot be set."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.device = comfy.model_management.text_encoder_offload_device()


@contextmanager
def _place_on_device(batch_size: int) -> Iterator[Any]:
    """Yield a function that loads a model to the device as ComfyUI loads its own, unloading others
    if needed. Afterwards the model is unloaded.
    """
    patchers: list[Any] = []

    def place(model: nn.Module) -> None:
        load_device, offload_device = (
            comfy.model_management.text_encoder_device(),
            comfy.model_management.text_encoder_offload_device(),
        )
        patchers.append(
            comfy.model_patcher.ModelPatcher(_Managed(model), load_device=load_device, offload_device=offload_device)
        )
        comfy.model_management.load_models_gpu(
            patchers, memory_required=batch_size * _WORKING_BYTES, force_full_load=True
        )

    try:
        yield place
    finally:
        for patcher in patchers:
            comfy.model_management.unload_model_and_clones(patcher, all_devices=True)
        patchers.clear()
        gc.collect()  # modules and their hooks refer to each other
        comfy.model_management.soft_empty_cache()


def _choose_dtype(device: torch.device) -> torch.dtype:
    """Choose half precision if ComfyUI would, except on Apple's devices, where Florence-2 returns
    empty captions in fp16.
    """
    if comfy.model_management.is_device_cpu(device) or comfy.model_management.is_device_mps(device):
        return torch.float32
    if comfy.model_management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32


def _download(model_id: str, host: ComfyHost, *, is_allowed: bool) -> Path:
    from ...trainers.captions.florence2.download import check_model_id, download_model

    model_id = check_model_id(model_id)
    if not is_allowed:
        raise ValueError(
            f"{model_id} is not in {_get_download_root()}. Turn on download to fetch it from huggingface.co (0.5 to 3 "
            "GB), or choose another model"
        )
    return download_model(
        model_id,
        _get_download_root(),
        check_interrupted=host.check_interrupted,
        on_progress=host.make_byte_counter("downloading"),
    )


def _find_models() -> dict[str, Path]:
    """Find the models in all folders that ComfyUI has for these names. If two have the same name,
    the first one wins.
    """
    found: dict[str, Path] = {}
    for folder_name in _FOLDER_NAMES:
        for root in _list_roots(folder_name):
            for model in find_models(root):
                found.setdefault(f"{folder_name}/{model}", root / model)
    return found


def _list_roots(folder_name: str) -> list[Path]:
    """Return the folders of extra_model_paths.yaml, then the one in ComfyUI's models folder, which
    is registered here.
    """
    folder_paths.add_model_folder_path(folder_name, str(Path(folder_paths.models_dir) / folder_name))
    return [Path(root) for root in folder_paths.get_folder_paths(folder_name)]


def _get_download_root() -> Path:
    return _list_roots("florence2")[0]


def _list_places() -> str:
    return ", ".join(str(root) for name in _FOLDER_NAMES for root in _list_roots(name))
