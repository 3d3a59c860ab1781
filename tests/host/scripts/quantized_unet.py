"""Runs in ComfyUI's interpreter, on the CPU or on the pretended GPU: trains on an SDXL UNet that
ComfyUI has loaded in 8 or 4 bits, and on a copy of it in floats that ComfyUI itself makes. Prints
JSON.

Arguments: the pack's folder, an embedded base checkpoint, a LoRA file for it, a folder for files.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

pack, checkpoint, lora_file, folder = map(Path, sys.argv[1:])


from pack_loader import load_pack

load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")
load_pack(pack, "lora_trainer")

import comfy.model_management
import comfy.sd
import comfy.utils
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from lora_trainer.nodes.host.lora import apply_lora
from lora_trainer.nodes.host.sdxl_training import _compare_memory
from lora_trainer.nodes.host.weights import GraphModel, borrow_model, imagine_unet, training_mode
from lora_trainer.trainers.dataset.bucket_config import BucketConfig
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.files.tensor_cache import TensorCache
from lora_trainer.trainers.sdxl.config import SDXLConfig
from lora_trainer.trainers.sdxl.family import SDXLFamily
from lora_trainer.trainers.sdxl.model.sdxl_model import build_model, from_ldm
from lora_trainer.trainers.training.console_host import ConsoleHost
from lora_trainer.trainers.training.loop import train_lora
from lora_trainer.trainers.training.plan import plan_training
from lora_trainer.trainers.training.quantized_linear import QuantizedLayer
from lora_trainer.trainers.training.run_folder import RunFolder
from lora_trainer.trainers.training.run_settings import RunSettings
from safetensors.torch import save_file

DEVICE = comfy.model_management.get_torch_device()
PREFIX = "diffusion_model."
SETTINGS = {
    "rank": 2,
    "max_train_steps": 2,  # the second has gradients in all matrices
    "train_batch_size": 1,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 0.0,
    "save_dtype": "fp32",
    "mixed_precision": "bf16",
    "validate_every_n_steps": -1,
}
SCALES = {"nvfp4": {"weight_scale": "block_scale", "weight_scale_2": "scale"}}


def draw_images():
    images, rng = folder / "images", np.random.default_rng(0)
    images.mkdir()
    for number in range(2):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"thing {number}")
    return scan_folder(DatasetConfig(images=str(images), trigger_word="zwx"))


def load_cast(weights, dtype):
    """As Load Diffusion Model does with a weight_dtype of fp8."""
    save_file(weights, folder / "unet.safetensors")
    return comfy.sd.load_diffusion_model(str(folder / "unet.safetensors"), model_options={"dtype": dtype})


def load_quantized(weights, kind):
    """A file whose transformers' matrices are in one of ComfyUI's quantized formats. ComfyUI finds
    out which model it is by the shape of attn2.to_k.
    """
    found, layout = {}, QUANT_ALGOS[kind]["comfy_tensor_layout"]
    for name, weight in weights.items():
        found[name] = weight
        if "transformer_blocks" not in name or weight.ndim != 2 or "attn2.to_k" in name:
            continue
        quantized = QuantizedTensor.from_float(weight.bfloat16(), layout)
        found[name] = quantized._qdata
        for scale, own in SCALES.get(kind, {"weight_scale": "scale"}).items():
            value = getattr(quantized._params, own)
            found[name.removesuffix("weight") + scale] = value.view(torch.uint8) if kind == "mxfp8" else value
        marker = json.dumps({"format": kind}).encode()
        found[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(marker), dtype=torch.uint8)
    save_file(found, folder / "unet.safetensors")
    return comfy.sd.load_diffusion_model(str(folder / "unet.safetensors"))


def list_weights(model):
    return [name for name, _ in model.model.named_parameters() if name.startswith(PREFIX) and "_scale" not in name]


def convert(model, name):
    """What ComfyUI computes with when it samples, as a copy in floats."""
    weight = model.model.get_parameter(name)
    if name in model.patches:
        weight = model.patch_weight_to_device(name, device_to=model.load_device, return_weight=True)
    weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    return (weight.to(torch.bfloat16) if weight.element_size() == 1 else weight).to("cpu", copy=True)


def borrow_converted(model, clip, vae):
    found = borrow_model(GraphModel(model, clip, vae))
    weights = {name.removeprefix(PREFIX): convert(model, name) for name in list_weights(model)}
    parts = {"text_encoder": found.text_encoder, "text_encoder_2": found.text_encoder_2, "vae": found.vae}
    state_dicts = {part: part_module.state_dict() for part, part_module in parts.items()}
    return build_model({"unet": from_ldm("unet", weights), **state_dicts}, name="converted")


def train(base, name, **settings):
    plan = plan_training(dataset, RunSettings(SDXLConfig(**{**SETTINGS, **settings}), BucketConfig(resolution=64)))
    run_folder = RunFolder(folder / name, "x")
    (folder / name).mkdir()
    host = ConsoleHost(DEVICE, quiet=True)
    result = train_lora(
        SDXLFamily(lambda _: base), plan, host, run_folder=run_folder, cache=TensorCache(None), resume="new"
    )
    weights = [weight for key, weight in base.unet.named_parameters() if "lora_" not in key]
    return result, {str(weight.device) for weight in weights}, sum(weight.nbytes for weight in weights)


def digest(model):
    state = hashlib.sha256()
    for name, weight in sorted(model.model.named_parameters()):
        weight = weight._qdata if isinstance(weight, QuantizedTensor) else weight
        state.update(name.encode() + weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def is_equal(first, second):
    same = all(torch.equal(first.state_dict[key], weight) for key, weight in second.state_dict.items())
    return same and first.losses == second.losses


def compare(kind, model):
    before = digest(model)
    with training_mode():
        base = borrow_model(GraphModel(model, clip, vae))
        pointers = {weight.data_ptr() for weight in base.unet.parameters()}
        imagined = imagine_unet(model)
        shapes = [
            [(key, each.shape, each.dtype) for key, each in unet.named_parameters()] for unet in (base.unet, imagined)
        ]
        num_layers = sum(isinstance(layer, QuantizedLayer) for layer in base.unet.modules())
        text = _compare_memory(base, plan).text()
        own, devices, own_bytes = train(base, f"{kind} as it is")
        copied, _, copied_bytes = train(borrow_converted(model, clip, vae), f"{kind} converted")
        streamed, *_ = train(borrow_model(GraphModel(model, clip, vae)), f"{kind} streamed", blocks_to_swap=1000)
    held = [model.model.get_parameter(name) for name in list_weights(model)]
    packed = [weight for weight in held if isinstance(weight, QuantizedTensor) or weight.element_size() == 1]
    return {
        "is equal": is_equal(own, copied),
        "is equal when streamed": is_equal(own, streamed),
        "learned": any(bool(weight.any()) for key, weight in own.state_dict.items() if "lora_up" in key),
        "layers": num_layers,
        "share of bytes": own_bytes / copied_bytes,
        "devices": sorted(devices),
        "shares the memory": all(each.data_ptr() in pointers for each in packed if each.ndim > 1)
        or bool(model.patches),
        "imagined is equal": shapes[0] == shapes[1] and all(each.is_meta for each in imagined.parameters()),
        "graph is unchanged": digest(model) == before,
        "text": text,
    }


with torch.inference_mode():
    dataset = draw_images()
    plan = plan_training(dataset, RunSettings(SDXLConfig(**SETTINGS), BucketConfig(resolution=64)))
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
    weights = {
        name: weight.cpu().contiguous().clone() for name, weight in model.model.diffusion_model.state_dict().items()
    }
    loaders = {
        str(dtype).removeprefix("torch."): (load_cast, dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    }
    kinds = ("float8_e4m3fn", "int8_tensorwise", "nvfp4", "mxfp8")
    loaders |= {f"scaled {kind}": (load_quantized, kind) for kind in kinds}
    for kind, (load, argument) in loaders.items():
        found = load(weights, argument)
        print("RESULT" + json.dumps([kind, compare(kind, found)]))
        # ComfyUI rounds patched weights of 8 bits by CUDA's generator; the pretended GPU has none
        if DEVICE.type == "cpu" and kind in ("float8_e4m3fn", "scaled float8_e4m3fn"):
            lora = comfy.utils.load_torch_file(str(lora_file))
            patched, _, _ = apply_lora(found, clip, lora, strength_model=0.7, strength_clip=1.0)
            print("RESULT" + json.dumps([f"{kind} with a LoRA", compare(f"{kind} with a LoRA", patched)]))
