"""The command `flow`, in ComfyUI's interpreter: loads the model files with ComfyUI's own loaders,
and trains on them without a server. Under `accelerate launch` each process does so.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ...trainers.commands.flow import CONFIGS, split_files
from ...trainers.commands.settings import read_dataset_configs, scan_datasets
from ...trainers.config import select_settings
from ...trainers.dataset.prepared_folder import write_prepared_folder
from ...trainers.files.cache_folder import default_cache_folder
from ...trainers.files.tensor_cache import TensorCache
from ...trainers.flow.family import FlowFamily
from ...trainers.training.console_host import ConsoleHost
from ...trainers.training.distributed import current_world
from ...trainers.training.loop import train_lora
from ...trainers.training.plan import plan_training
from ...trainers.training.presets import describe
from ...trainers.training.resume.choose_run import AUTO
from ...trainers.training.run_folder import RunFolder
from ...trainers.training.trained_lora import TrainedLora

if TYPE_CHECKING:
    from .weights import GraphModel


def train(settings: dict[str, Any], load: "Callable[[Mapping[str, str]], GraphModel] | None" = None) -> TrainedLora:
    """Train with the settings of the command, on the model that `load` returns."""
    world, device = current_world(settings.get("device"))
    _choose_device(device)
    from .flow_memory import GraphMemory
    from .flow_training import FlowLoader, choose_family, list_notices
    from .settings import resolve_flow_settings
    from .training_samples import check_sampler
    from .weights import training_mode

    dataset = scan_datasets(read_dataset_configs(settings))
    graph = (load or load_graph)(settings)
    family = choose_family(graph.model)
    given = {name: value for config in CONFIGS[1:] for name, value in select_settings(config, settings).items()}
    memory = settings.get("memory") or "auto"
    run_settings = resolve_flow_settings(
        given,
        family,
        goal=settings.get("goal") or "object",
        memory=memory,
        dataset=dataset,
        num_processes=world.size,
    )
    run_settings, need = GraphMemory(graph.model, family).fit_resolution(run_settings, given, memory)
    check_sampler(run_settings.training)
    plan = plan_training(dataset, run_settings, num_processes=world.size)
    text = f"{family.name}: {describe(run_settings)}"
    notices = [*list_notices(graph.model, family, dataset), *filter(None, [need])]
    loader = FlowLoader(graph, family, plan, text, notices)
    run_folder = RunFolder(Path(settings.get("output_dir", "output")), settings["output"])
    with training_mode(), ConsoleHost(device, quiet=not world.is_main) as host:
        if settings.get("prepared_dir") and world.is_main:
            write_prepared_folder(plan.crops, Path(settings["prepared_dir"]), check_interrupted=host.check_interrupted)
        return train_lora(
            FlowFamily(loader.load, loader.plan_memory),
            plan,
            host,
            run_folder=run_folder,
            cache=TensorCache(Path(settings.get("cache_dir") or default_cache_folder())),
            world=world,
            resume=settings.get("resume") or AUTO,
        )


def _choose_device(device: torch.device) -> None:
    """ComfyUI asks torch for the current device, and decides for the CPU when it is imported."""
    if device.type == "cpu":
        from comfy.cli_args import args

        args.cpu = True
    elif device.index is not None:
        torch.accelerator.set_device_index(device.index)


def load_graph(files: Mapping[str, str]) -> "GraphModel":
    """Load MODEL, CLIP and VAE as ComfyUI's loaders do.

    Raises:
        ValueError: a file is not what it should be.
    """
    import comfy.sd
    import comfy.utils

    from .flow_training import choose_family
    from .weights import GraphModel

    for path in _list_files(files):
        _check_file(path)
    if files.get("checkpoint"):
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(files["checkpoint"])
        return GraphModel(model, clip, vae)
    model = comfy.sd.load_diffusion_model(files["model"])
    clip_type = _find_clip_type(files.get("clip_type") or choose_family(model).clip_type)
    clip = comfy.sd.load_clip([str(path) for path in split_files(files["text_encoder"])], clip_type=clip_type)
    weights, metadata = comfy.utils.load_torch_file(files["vae"], return_metadata=True)
    vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    vae.throw_exception_if_invalid()
    return GraphModel(model, clip, vae)


def _find_clip_type(name: str) -> Any:
    import comfy.sd

    known = [kind.name.lower() for kind in comfy.sd.CLIPType]
    if name.lower() not in known:
        raise ValueError(f"--clip-type {name!r} is none of ComfyUI's: {', '.join(known)}")
    return comfy.sd.CLIPType[name.upper()]


def _list_files(files: Mapping[str, str]) -> list[Path]:
    names = ("checkpoint", "model", "text_encoder", "vae")
    return [path for name in names if files.get(name) for path in split_files(files[name])]


def _check_file(path: Path) -> None:
    """Tell by its header whether a file is whole: ComfyUI's loaders name none in their errors."""
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}). Is it downloaded completely?") from error
