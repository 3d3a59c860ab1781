"""Runs in ComfyUI's interpreter: draws samples while it trains on the graph's SDXL and Z-Image, and
the same images with ComfyUI's KSampler and the saved LoRA. Prints JSON.

Arguments: the pack's folder, an embedded SDXL checkpoint, the embedded Z-Image's model, text
encoder and VAE, a folder for files.
"""

import hashlib
import json
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

pack, checkpoint, z_image, z_image_text_encoder, z_image_vae, folder = map(Path, sys.argv[1:7])


from pack_loader import load_pack

load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")
load_pack(pack, "lora_trainer")

from comfy.cli_args import args

args.fp32_text_enc = True  # in fp16 ComfyUI rounds the LoRA of the text encoders

import comfy.model_management
import comfy.sd
import comfy.utils
import nodes
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingDiscrete, RescaleCFG
from lora_trainer.nodes.host import training_samples
from lora_trainer.nodes.host.flow_model import GraphFlowModel
from lora_trainer.nodes.host.flow_training import choose_family
from lora_trainer.nodes.host.sdxl_samples import SDXLDrawer
from lora_trainer.nodes.host.weights import GraphModel, borrow_model, training_mode
from lora_trainer.trainers.dataset.bucket_config import BucketConfig
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.files.tensor_cache import TensorCache
from lora_trainer.trainers.flow.config import FlowConfig
from lora_trainer.trainers.flow.family import FlowFamily
from lora_trainer.trainers.sdxl.config import SDXLConfig
from lora_trainer.trainers.sdxl.family import SDXLFamily
from lora_trainer.trainers.training.console_host import ConsoleHost
from lora_trainer.trainers.training.events import Interrupted, SamplesDrawn
from lora_trainer.trainers.training.loop import train_lora
from lora_trainer.trainers.training.plan import plan_training
from lora_trainer.trainers.training.run_folder import RunFolder
from lora_trainer.trainers.training.run_settings import RunSettings
from tiny_models import build_tiny

PROMPT, NEGATIVE, SIZE, SAMPLER_STEPS = "a zwx thing", "a blue square", 64, 4
STEPS = 4
USUAL = {
    "rank": 4,
    "alpha": 4.0,
    "max_train_steps": STEPS,
    "train_batch_size": 1,
    "save_dtype": "fp32",
    "validate_every_n_steps": -1,
    "lr_warmup_steps": 0.0,
    "sample_every_n_steps": STEPS,
    "sample_prompt": PROMPT,
    "sample_negative_prompt": NEGATIVE,
    "sample_seeds": "3, 4",
    "sample_steps": SAMPLER_STEPS,
}


class WatchingHost(ConsoleHost):
    """The console. It keeps the samples, and cancels at a check while it samples."""

    def __init__(self, *, cancel_at=None):
        super().__init__(torch.device("cpu"), quiet=True)
        self.images, self.notices, self.cancel_at = {}, [], cancel_at

    def report(self, event):
        super().report(event)
        if isinstance(event, SamplesDrawn):
            self.images[event.step] = np.asarray(event.image)

    def check_interrupted(self):
        super().check_interrupted()
        if self.cancel_at is not None and drawn["model"] is not None:
            drawn["checks"] += 1
            if drawn["checks"] == self.cancel_at:
                raise Interrupted


drawn = {}  # what ComfyUI's sampler was given, and what it returned
ksampler = training_samples.sample


def watch(model, *arguments, **options):
    drawn["model"] = model
    drawn["copied"] = find_addresses(model.model.diffusion_model) - find_addresses(drawn["network"])
    latent = ksampler(model, *arguments, **options)
    drawn["latents"].append(latent)
    drawn["model"] = None
    return latent


training_samples.sample = watch


def find_addresses(module):
    """Of the weights that are not trained."""
    weights = [getattr(weight, "_qdata", weight) for weight in module.parameters() if not weight.requires_grad]
    return {weight.data_ptr() for weight in weights}


def digest(*modules):
    state = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            tensor = getattr(tensor, "_qdata", tensor)
            state.update(name.encode() + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def read_images():
    images, rng = folder / "images", np.random.default_rng(0)
    images.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(images / "0.png")
    (images / "0.txt").write_text("a zwx thing on a table")
    return scan_folder(DatasetConfig(images=str(images), trigger_word="zwx"))


def train(graph, name, host=None, **settings):
    drawn.update(model=None, latents=[], checks=0)
    is_sdxl = type(graph.model.model).__name__ == "SDXL"
    rate = 2e-3 if is_sdxl else 1e-2
    config = (SDXLConfig if is_sdxl else FlowConfig)(**{**USUAL, "learning_rate": rate, **settings})
    plan = plan_training(read_images(), RunSettings(config, BucketConfig(resolution=SIZE, bucket_reso_steps=32)))

    def load(_):
        base = borrow_model(graph) if is_sdxl else GraphFlowModel(graph, choose_family(graph.model))
        drawn["network"] = base.unet if is_sdxl else base.network
        return base

    family = SDXLFamily(load, drawer=SDXLDrawer(graph)) if is_sdxl else FlowFamily(load)
    host = host or WatchingHost()
    with training_mode(), host:
        torch.manual_seed(17)
        before = torch.get_rng_state()
        run_folder = RunFolder(folder / name, "x")
        result = train_lora(family, plan, host, run_folder=run_folder, cache=TensorCache(None), resume="new")
        drawn["random"] = torch.equal(torch.get_rng_state(), before)
    return result, host


def draw_in_graph(graph, lora, *, cfg, sampler="euler", scheduler="normal", guidance=None):
    """LoraLoader, CLIP Text Encode, Empty Latent Image, KSampler and VAE Decode."""
    model, clip = (
        comfy.sd.load_lora_for_models(graph.model, graph.clip, dict(lora), 1.0, 1.0)
        if lora
        else (graph.model, graph.clip)
    )
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, NEGATIVE))
    if guidance is not None:
        positive = [[cond, {**others, "guidance": guidance}] for cond, others in positive]
    latents, images = [], []
    for seed in (3, 4):
        empty = {"samples": torch.zeros(1, 4, SIZE // 8, SIZE // 8), "downscale_ratio_spacial": 8}
        (latent,) = nodes.common_ksampler(
            model, seed, SAMPLER_STEPS, cfg, sampler, scheduler, positive, negative, empty, denoise=1.0
        )
        latents.append(latent["samples"])
        pixels = graph.vae.decode(latent["samples"])
        images.append((255.0 * pixels.reshape(-1, *pixels.shape[-3:])[0]).clamp(0, 255).byte().numpy())
    return latents, np.concatenate(images, axis=1)


def compare(graph, name, *, cfg=5.0, at=STEPS, sampler="euler", scheduler=None, guidance=None, **settings):
    """Compare the samples of a step with what the graph draws with the saved LoRA, or without."""
    parts = (graph.model.model, getattr(graph.vae, "first_stage_model", graph.model.model))
    before = digest(*parts)
    chosen = {"sample_sampler": sampler, **({"sample_scheduler": scheduler} if scheduler else {})}
    result, host = train(graph, name, sample_guidance_scale=guidance or cfg, **chosen, **settings)
    first = 0 if at == 0 else 2
    ours, copied, random = drawn["latents"][first : first + 2], drawn["copied"], drawn["random"]
    loaded = len(comfy.model_management.current_loaded_models)
    usual = "normal" if type(graph.model.model).__name__ == "SDXL" else "simple"
    with torch.inference_mode():
        latents, images = draw_in_graph(
            graph,
            result.state_dict if at else {},
            cfg=cfg,
            sampler=sampler,
            scheduler=scheduler or usual,
            guidance=guidance,
        )
        without = draw_in_graph(graph, {}, cfg=cfg, sampler=sampler, scheduler=scheduler or usual, guidance=guidance)
        comfy.model_management.unload_all_models()
    return {
        "latents": measure_difference(ours, latents),
        "levels": int(np.abs(host.images[at].astype(int) - images.astype(int)).max()),
        "effect": measure_difference(ours, without[0]),
        "copied": len(copied),
        "is_unchanged": digest(*parts) == before,
        "loaded_after": loaded,
        "same_random": random,
        "losses": result.losses,
    }


def measure_difference(ours, theirs):
    """Of latents, relative to the largest."""
    pairs = list(zip(ours, theirs, strict=True))
    return max((mine - other).abs().max().item() / other.abs().max().item() for mine, other in pairs)


def cancel(graph, name, cancel_at):
    """Cancelled by the user while it samples: by the host, and by ComfyUI's own check."""
    calls = []
    host = WatchingHost(cancel_at=cancel_at)
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: (
            calls.append(1) if drawn.get("model") and module is drawn["model"].model.diffusion_model else None
        )
    )
    try:
        train(graph, name, host)
    except Interrupted:
        return {"calls": len(calls), "checks": drawn["checks"]}
    finally:
        hook.remove()
    return {"calls": -1}


def interrupt_in_comfyui(graph, name):
    def stop(*_):
        raise comfy.model_management.InterruptProcessingException

    model = graph.model.clone()
    model.set_model_sampler_post_cfg_function(stop)
    try:
        train(GraphModel(model, graph.clip, graph.vae), name)
    except Interrupted:
        flag = comfy.model_management.processing_interrupted()
        comfy.model_management.interrupt_current_processing(False)
        return flag
    return "not interrupted"


def refuse(**settings):
    try:
        training_samples.check_sampler(FlowConfig(**settings))
    except ValueError as error:
        return str(error)
    return ""


def answer(function, *arguments, **settings):
    try:
        return function(*arguments, **settings)
    except Exception:  # one case's error is its own result
        return {"error": traceback.format_exc(limit=-5)}


@torch.inference_mode()
def load_sdxl(**options):
    return GraphModel(*comfy.sd.load_checkpoint_guess_config(str(checkpoint), **options)[:3])


@torch.inference_mode()
def load_z_image():
    model = comfy.sd.load_diffusion_model(str(z_image))
    clip = comfy.sd.load_clip([str(z_image_text_encoder)], clip_type=comfy.sd.CLIPType.LUMINA2)
    return GraphModel(model, clip, comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(z_image_vae))))


@torch.inference_mode()
def patch_sdxl(graph):
    """What acts outside of the weights."""
    (model,) = ModelSamplingDiscrete().patch(graph.model, "v_prediction", True)
    (model,) = RescaleCFG().patch(model, 0.7)
    (model,) = FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2).result
    return GraphModel(model, graph.clip, graph.vae)


@torch.inference_mode()
def patch_z_image(graph):
    return GraphModel(ModelSamplingAuraFlow().patch_aura(graph.model, 3.0)[0], graph.clip, graph.vae)


@torch.inference_mode()
def load_fp8():
    return load_sdxl(model_options={"dtype": torch.float8_e4m3fn})


def build_flux():
    tiny = build_tiny("FLUX.1")
    return GraphModel(tiny.patcher, tiny.clip, tiny.vae)


sdxl, other_sampler = load_sdxl(), {"sampler": "dpmpp_2m_sde", "scheduler": "karras"}
results = {
    "sdxl": answer(compare, sdxl, "sdxl"),
    "sdxl without": answer(lambda: train(sdxl, "without", sample_every_n_steps=0)[0].losses),
    "sdxl patched": answer(compare, patch_sdxl(sdxl), "patched", **other_sampler),
    "sdxl text encoders": answer(compare, sdxl, "texts", train_text_encoders=True),
    "sdxl streamed": answer(compare, sdxl, "streamed", blocks_to_swap=1000),
    "sdxl dora": answer(compare, sdxl, "dora", adapter="dora", conv_rank=2),
    "sdxl fp8": answer(compare, load_fp8(), "fp8", at=0),
    "z-image": answer(compare, load_z_image(), "z_image"),
    "z-image without": answer(lambda: train(load_z_image(), "z_without", sample_every_n_steps=0)[0].losses),
    "z-image patched": answer(
        compare, patch_z_image(load_z_image()), "z_patched", blocks_to_swap=1000, **other_sampler
    ),
    "flux": answer(compare, build_flux(), "flux", at=0, cfg=1.0, guidance=2.5),
    "cancelled": answer(cancel, sdxl, "cancelled", 3),
    "interrupted": answer(interrupt_in_comfyui, sdxl, "interrupted"),
    "refused": [refuse(), refuse(sample_sampler="magic"), refuse(sample_scheduler="magic")],
}
print("RESULT" + json.dumps(results))
