"""Sample images of a running training, by ComfyUI's own sampler on the weights that are trained:
what KSampler will draw with the finished LoRA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from PIL import Image

from ...trainers.training.config import AUTO_SCHEDULER, TrainingConfig
from ...trainers.training.events import Interrupted
from ...trainers.training.generators import seed_globals
from ...trainers.training.host import Host
from ...trainers.training.sample_prompts import SamplePrompt
from .ksampler import SamplerSettings, decode, list_samplers, list_schedulers, sample
from .weights import GraphModel, unload_models


def check_sampler(config: TrainingConfig) -> None:
    """KSampler takes its first sampler for a name that it does not know.

    Raises:
        ValueError: this ComfyUI does not have the sampler or the scheduler of the sample images.
    """
    for setting, known in {
        "sample_sampler": list_samplers(),
        "sample_scheduler": [AUTO_SCHEDULER, *list_schedulers()],
    }.items():
        name = getattr(config, setting)
        if name not in known:
            raise ValueError(f"{setting} {name!r} is none of this ComfyUI's: {', '.join(known)}")


def draw_samples(
    graph: GraphModel,
    trained: Any,
    positive: Any,
    negative: Any,
    prompt: SamplePrompt,
    *,
    sampling: Any,
    scheduler: str,
    cfg: float,
    size_hw: tuple[int, int],
    host: Host,
) -> list[Image.Image]:
    """Draw an image for each seed of the prompt. `trained` is the BaseModel to sample with, by the
    model_sampling `sampling`; what acts on the graph's MODEL outside of its weights acts on it too.
    `positive` and `negative` are CONDITIONINGs, `scheduler` counts for auto.

    Raises:
        Interrupted: the host cancelled.
    """
    settings = SamplerSettings(
        prompt.num_steps,
        cfg,
        prompt.sampler,
        scheduler if prompt.scheduler == AUTO_SCHEDULER else prompt.scheduler,
        prompt.negative_prompt,
    )

    def on_step(*_: Any) -> None:
        host.check_interrupted()

    with _interruptible(), seed_globals(host.device, "samples"):
        with _patched(graph.model, trained, sampling) as patcher:
            latents = [
                sample(patcher, positive, negative, settings, seed=seed, size_hw=size_hw, callback=on_step)
                for seed in prompt.seeds
            ]
        with torch.inference_mode():
            images = [decode(graph.vae, latent) for latent in latents]
        unload_models()  # the VAE
    return images


@contextmanager
def _interruptible() -> Iterator[None]:
    """ComfyUI's own check clears the flag: the training must see it and save first."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        comfy.model_management.interrupt_current_processing(True)
        raise Interrupted("cancelled in ComfyUI") from None


@contextmanager
def _patched(graph_model: Any, trained: Any, sampling: Any) -> Iterator[Any]:
    """A ModelPatcher of the trained BaseModel with the options and patches of the graph's MODEL,
    but for those of weights, which are in the weights already.
    """
    patcher = graph_model.clone(disable_dynamic=True, model_override=(trained, ({}, {}, {}, set())))
    patcher.patches = {}
    patcher.add_object_patch("model_sampling", sampling)
    patcher.remove_additional_models("multigpu")
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "lora_trainer", _leave_weights)
    patcher.patch_model(load_weights=False)
    try:
        yield patcher
    finally:
        patcher.unpatch_model(unpatch_weights=False)


def _leave_weights(_: Any, patcher: Any, noise_shape: Any, conds: Any, *more: Any, **options: Any) -> Any:
    """ComfyUI's prepare_sampling, but for moving the model: its weights are where the training
    wants them.
    """
    others = [*patcher.model_patches_models(), *patcher.get_nested_additional_models()]
    if others:
        comfy.model_management.load_models_gpu(others)
    patcher.model_patches_to(patcher.load_device)
    patcher.model_patches_to(patcher.model_dtype())
    return patcher.model, conds, others
