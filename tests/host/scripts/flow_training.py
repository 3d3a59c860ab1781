"""Runs in ComfyUI's interpreter: trains a LoRA on the tiny MODEL of each family as the node does,
and compares what was learned with ComfyUI's own use of the file. Prints JSON.

Arguments: the pack's folder, a folder for files.
"""

import json
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

pack, folder = map(Path, sys.argv[1:3])


from pack_loader import load_pack

load_pack(pack, "lora_trainer")

import comfy.model_management
from comfy.quant_ops import QuantizedTensor
from lora_trainer.nodes.host.flow_model import GraphFlowModel
from lora_trainer.nodes.host.lora import load_lora
from lora_trainer.nodes.host.weights import GraphModel, training_mode
from lora_trainer.trainers.dataset.bucket_config import BucketConfig
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.files.tensor_cache import TensorCache
from lora_trainer.trainers.flow.config import FlowConfig
from lora_trainer.trainers.flow.families import find_family
from lora_trainer.trainers.flow.family import FlowFamily
from lora_trainer.trainers.training.console_host import ConsoleHost
from lora_trainer.trainers.training.events import Interrupted, StepDone
from lora_trainer.trainers.training.loop import train_lora
from lora_trainer.trainers.training.plan import plan_training
from lora_trainer.trainers.training.run_folder import RunFolder
from lora_trainer.trainers.training.run_settings import RunSettings
from tiny_models import SPECS, build_quantized, build_tiny

CAPTION, STEPS = "a small red house", 16
USUAL = {
    "rank": 4,
    "alpha": 4.0,
    "learning_rate": 2e-2,
    "max_train_steps": STEPS,
    "save_dtype": "fp32",
    "validate_every_n_steps": -1,
    "lr_warmup_steps": 0.0,
    "lr_scheduler": "constant",
    "caption_dropout": 0.0,
}


class StoppingHost(ConsoleHost):
    """The console; it raises an error after a number of steps."""

    def __init__(self, *, after=None, error=None):
        super().__init__(torch.device("cpu"), quiet=True)
        self.after, self.error = after, error

    def report(self, event):
        super().report(event)
        if isinstance(event, StepDone) and event.step == self.after:
            raise self.error


def write_images():
    images = folder / "images"
    images.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "0.png")
    (images / "0.txt").write_text(CAPTION)
    return images


def train(tiny, name, host=None, resume="new", **settings):
    """Return the result, the base model that it was trained on, and the clean latents that it
    predicts.
    """
    row = find_family(type(tiny.patcher.model.model_config).__name__)
    config = FlowConfig(**{**USUAL, **settings})
    dataset = scan_folder(DatasetConfig(images=str(write_images()), trigger_word=""))
    plan = plan_training(dataset, RunSettings(config, BucketConfig(resolution=64, bucket_reso_steps=32)))
    bases = []

    def load(_):
        bases.append(GraphFlowModel(GraphModel(tiny.patcher, tiny.clip, tiny.vae), row))
        return bases[0]

    with training_mode(), host or StoppingHost() as host:
        cache = TensorCache(None)
        result = train_lora(
            FlowFamily(load), plan, host, run_folder=RunFolder(folder / name, "x"), cache=cache, resume=resume
        )
        return result, bases[0], predict_as_trained(bases[0], tiny) if not result.was_loaded else None


def make_noisy(tiny):
    noisy = torch.randn(tiny.latent_shape(1, 64, 64), generator=torch.Generator().manual_seed(5))
    sigma = tiny.patcher.model.model_sampling.percent_to_sigma(0.4)
    return noisy, torch.tensor([float(sigma)])


def predict_as_trained(base, tiny):
    (noisy, sigma), text = make_noisy(tiny), base.encode_caption(CAPTION)
    with torch.no_grad(), base.computing():
        return base.denoised(base.predict(noisy, sigma, [text]), noisy, sigma)


@torch.inference_mode()
def predict_in_comfyui(tiny, patches):
    """With the LoRA as ComfyUI applies it to the graph's MODEL."""
    row = find_family(type(tiny.patcher.model.model_config).__name__)
    patcher = tiny.patcher.clone()
    patcher.add_patches(patches, 1.0)
    patcher.patch_model()
    try:
        noisy, sigma = make_noisy(tiny)
        cond, entries = tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(CAPTION))[0]
        given = {**entries, "cross_attn": cond, "noise": noisy, "device": noisy.device, "width": 64, "height": 64}
        given |= {"latent_image": torch.zeros_like(noisy), "prompt_type": "positive"}
        given |= {} if row.needs_guidance is None else {"guidance": row.needs_guidance}
        conds = {name: value.cond for name, value in patcher.model.extra_conds(**given).items()}
        return patcher.model.apply_model(noisy, sigma, **conds)
    finally:
        patcher.unpatch_model()


def copy_weights(tiny):
    return {name: weight.clone() for name, weight in tiny.patcher.model.state_dict().items()}


def is_unchanged(tiny, before):
    return not comfy.model_management.in_training and all(
        torch.equal(weight.view(torch.uint8), before[name].view(torch.uint8)) if weight.ndim else weight == before[name]
        for name, weight in tiny.patcher.model.state_dict().items()
    )


def compare(tiny, name, **settings):
    before = copy_weights(tiny)
    result, base, as_trained = train(tiny, name, **settings)
    shared = dict(tiny.patcher.model.diffusion_model.named_parameters())
    own = {path.replace(".base_layer", ""): weight for path, weight in base.network.named_parameters()}
    loaded = load_lora(result.state_dict, tiny.patcher, None)
    in_comfyui = predict_in_comfyui(tiny, loaded.patches)
    return {
        "weights": len(shared),
        "shared": sum(get_address(own[path]) == get_address(weight) for path, weight in shared.items()),
        "is_unchanged": is_unchanged(tiny, before),
        "in_file": len(result.state_dict) // 3,
        "load": loaded.num_modules,
        "unknown": loaded.unknown,
        "difference": ((as_trained - in_comfyui).abs().max() / in_comfyui.abs().max()).item(),
        "first_loss": float(np.mean(result.losses[:4])),
        "last_loss": float(np.mean(result.losses[-4:])),
        "header": {key: result.metadata.get(key) for key in ("modelspec.architecture", "ss_base_model_version")},
    }


def get_address(weight):
    return getattr(weight, "_qdata", weight).data_ptr()


def stop_and_go_on(tiny):
    """Stopped by a cancel, by an error and by a lack of memory; then it goes on."""
    before, whole = copy_weights(tiny), train(tiny, "whole", lora_dropout=0.1)[0]
    found = {}
    errors = (Interrupted(), KeyError("a bug"), torch.OutOfMemoryError("CUDA out of memory"))
    for after, error in zip((4, 8, 12), errors, strict=True):
        try:
            train(tiny, "parts", StoppingHost(after=after, error=error), resume="auto", lora_dropout=0.1)
        except type(error):
            found[type(error).__name__] = is_unchanged(tiny, before)
    parts = train(tiny, "parts", resume="auto", lora_dropout=0.1)[0]
    again = train(tiny, "parts", resume="auto", lora_dropout=0.1)[0]
    return {
        "unchanged_after": found,
        "same_losses": parts.losses == whole.losses,
        "same_lora": all(torch.equal(weight, whole.state_dict[name]) for name, weight in parts.state_dict.items()),
        "was_loaded": again.was_loaded,
    }


def compare_streamed(build, name):
    """The same training with blocks that come to the device for each use."""
    plain = train(build(), f"resident_{name}")[0]
    tiny = build()
    before = copy_weights(tiny)
    streamed = train(tiny, f"streamed_{name}", blocks_to_swap=1000, gradient_checkpointing=False)[0]
    return {
        "is_unchanged": is_unchanged(tiny, before),
        "same_losses": streamed.losses == plain.losses,
        "same_lora": all(torch.equal(weight, plain.state_dict[name]) for name, weight in streamed.state_dict.items()),
    }


def answer(name, function, *arguments, **settings):
    try:
        return function(*arguments, **settings)
    except Exception:  # one family's error is its own result
        return {"error": f"{name}: {traceback.format_exc(limit=-4)}"}


def refuse(make_weight):
    """Say what comes of a model with one such weight, and how much was encoded before."""
    tiny = build_tiny("Z-Image")
    layer = tiny.patcher.model.diffusion_model.layers[1].attention.qkv
    with torch.inference_mode():
        layer.weight = torch.nn.Parameter(make_weight(layer.weight.detach().clone()), requires_grad=False)
    try:
        train(tiny, "refused")
    except ValueError as error:
        return {"message": str(error), "encoded": [tiny.clip.num_encoded, tiny.vae.num_encoded]}
    return {"message": "", "encoded": []}


class GGMLTensor(torch.Tensor):
    """As ComfyUI-GGUF holds its weights."""


def quantize(layout, **settings):
    return lambda weight: QuantizedTensor.from_float(weight, layout, **settings)


def identify_texts():
    """What tells text encoders apart whose weights are the same."""
    tiny, found = build_tiny("Z-Image"), []

    class OtherKind(type(tiny.clip.cond_stage_model)):
        """Asks the same weights in other words."""

    def identify():
        found.append(GraphFlowModel(GraphModel(tiny.patcher, tiny.clip, tiny.vae), find_family("ZImage")).identify())

    with training_mode():
        identify()
        identify()
        tiny.clip.layer_idx = -2
        identify()
        tiny.clip.cond_stage_model.__class__ = OtherKind
        identify()
    return [each["CLIP"] for each in found]


REFUSED = {
    "GGMLTensor": lambda weight: weight.as_subclass(GGMLTensor),
    "TensorCoreConvRotW4A4Layout": quantize("TensorCoreConvRotW4A4Layout"),
    "AsymW4A8Int8Layout": quantize("AsymW4A8Int8Layout"),
}
results = {
    "refused": {name: answer(name, refuse, make_weight) for name, make_weight in REFUSED.items()},
    "texts": identify_texts(),
    "rotated": answer("rotated", refuse, quantize("TensorWiseINT8Layout", per_channel=True, convrot=True)),
    "families": {name: answer(name, compare, build_tiny(name), name.replace(" ", "_")) for name in SPECS},
    "quantized": {
        kind: answer(kind, compare, build_quantized("Qwen-Image", kind), kind)
        for kind in ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "mxfp8", "nvfp4")
    },
    "bf16": answer("bf16", compare, build_tiny("Z-Image", torch.bfloat16), "bf16"),
    "streamed": {
        "fp32": answer("fp32", compare_streamed, lambda: build_tiny("FLUX.1"), "fp32"),
        "fp8": answer("fp8", compare_streamed, lambda: build_quantized("Qwen-Image", "float8_e4m3fn"), "fp8"),
    },
    "stopped": answer("stopped", stop_and_go_on, build_tiny("Z-Image")),
}
print("RESULT" + json.dumps(results))
