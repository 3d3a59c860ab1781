"""Runs in ComfyUI's interpreter: calls borrow_model with MODEL, CLIP and VAE in every state that a
graph can produce. Prints JSON.

Arguments: the pack's folder, an embedded base checkpoint, a LoRA file for it, a folder for files.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

pack, checkpoint, lora_file, folder = map(Path, sys.argv[1:])


from pack_loader import load_pack

load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")
load_pack(pack, "lora_trainer")

import comfy.model_management
import comfy.sd
import comfy.utils
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from lora_trainer.nodes.host.lora import apply_lora
from lora_trainer.nodes.host.weights import GraphModel, borrow_model, training_mode
from safetensors.torch import save_file

results = {}


def load():
    return comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]


def borrow(model, clip, vae):
    with training_mode():
        return borrow_model(GraphModel(model, clip, vae))


def pointers(*modules):
    return {parameter.data_ptr() for module in modules for parameter in module.parameters()}


def digest(module):
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(name.encode() + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def refusal(model, clip, vae):
    try:
        borrow(model, clip, vae)
    except ValueError as error:
        return str(error)
    return "accepted"


def unet_layer(base):
    return base.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k


def unet_weight(base):
    return unet_layer(base).weight


KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

with torch.inference_mode():
    model, clip, vae = load()
    parts = (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model)
    before, host_pointers = [digest(part) for part in parts], pointers(*parts)
    base = borrow(model, clip, vae)
    borrowed = pointers(base.unet, base.text_encoder, base.text_encoder_2, base.vae)
    results["shared"] = {
        "weights": len(borrowed),
        "copied": len(borrowed - host_pointers),
        "inference": sum(parameter.is_inference() for parameter in base.unet.parameters()),
        "trainable": sum(parameter.requires_grad for parameter in base.unet.parameters()),
        "prediction": [base.prediction_type, base.zero_terminal_snr],
        "name": base.name,
    }

    # A backward pass through the borrowed weights, and its effects on the models.
    with training_mode():
        latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
        conditions = {"text_embeds": torch.zeros(1, 128), "time_ids": torch.zeros(1, 6)}
        base.unet(latents, 10, torch.zeros(1, 77, 192), added_cond_kwargs=conditions).sample.sum().backward()
        results["gradient"] = float(latents.grad.abs().sum())
    results["unchanged"] = [digest(part) for part in parts] == before
    results["inference_mode_is_back"] = torch.is_inference_mode_enabled()

    # Patched models: another LoRA, and a merge.
    with_lora, _, _ = apply_lora(
        model, clip, comfy.utils.load_torch_file(str(lora_file)), strength_model=0.7, strength_clip=1.0
    )
    sampled = with_lora.patch_weight_to_device(KEY, return_weight=True)
    base = borrow(with_lora, clip, vae)
    borrowed = pointers(base.unet)
    results["with_lora"] = {
        "difference_to_sampler": float((unet_weight(base) - sampled).abs().max()),
        "difference_to_base": float(
            (unet_weight(base) - model.model.diffusion_model.get_parameter(KEY.removeprefix("diffusion_model.")))
            .abs()
            .max()
        ),
        "copied": len(borrowed - host_pointers),
        "path": base.path and str(base.path),
    }
    other, _, _ = load()
    for parameter in other.model.parameters():
        parameter.data.mul_(1.5)
    merged = model.clone()
    merged.add_patches(other.get_key_patches("diffusion_model."), 0.5, 0.5)
    base = borrow(merged, clip, vae)
    expected = model.model.get_parameter(KEY) * 1.25
    results["merged"] = float((unet_weight(base) - expected).abs().max())

    # After sampling, the model's weights may still be patched: borrowing must return the originals.
    comfy.model_management.load_models_gpu([with_lora])
    base = borrow(model, clip, vae)
    results["after_sampling_with_a_lora"] = len(pointers(base.unet) - host_pointers)

    # The same on a machine with a GPU, whose list of devices lacks the CPU: borrowing the plain
    # model sees no LoRA, and the patched one sees it once.
    list_devices = comfy.model_management.get_all_torch_devices
    comfy.model_management.get_all_torch_devices = lambda exclude_current=False: []
    plain_weight = model.model.get_parameter(KEY).clone()
    for name, wanted, expected in (("plain", model, plain_weight), ("patched", with_lora, sampled)):
        comfy.model_management.load_models_gpu([with_lora])
        is_patched = not torch.equal(model.model.get_parameter(KEY), plain_weight)
        difference = float((unet_weight(borrow(wanted, clip, vae)) - expected).abs().max())
        results["beside_a_gpu_" + name] = [is_patched, difference]
    comfy.model_management.get_all_torch_devices = list_devices

    # With --highvram unloaded models stay on the GPU: they are moved to main memory.
    moved = []
    for owner in (model, clip.patcher, vae.patcher):
        owner.offload_device, owner.unpatch_model = torch.device("cuda", 0), moved.append
    borrow(model, clip, vae)
    results["moved_from_the_gpu"] = sorted({str(device) for device in moved})
    for owner in (model, clip.patcher, vae.patcher):
        owner.offload_device = torch.device("cpu")
        del owner.unpatch_model

    # Patches are applied on the device; their results are brought back to main memory.
    brought_back, cpu = [], torch.Tensor.cpu
    torch.Tensor.cpu = lambda weight: brought_back.append(weight) or cpu(weight)
    borrow(with_lora, clip, vae)
    torch.Tensor.cpu = cpu
    results["patched_weights_brought_back"] = len(brought_back)

    # Number formats: those of 8 bits stay.
    unet_file = folder / "unet.safetensors"
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in model.model.diffusion_model.state_dict().items()},
        unet_file,
    )
    float8 = comfy.sd.load_diffusion_model(str(unet_file), model_options={"dtype": torch.float8_e4m3fn})
    layer, given = unet_layer(borrow(float8, clip, vae)), float8.model.get_parameter(KEY)
    results["float8"] = {
        "kind": type(layer).__name__,
        "shares the memory": layer.weight.data_ptr() == given.data_ptr(),
        "difference": float((layer.dequantize(torch.float32) - given.float()).abs().max()),
    }
    quantized, _, _ = load()
    owner = quantized.model.get_submodule(KEY.removesuffix(".weight"))
    weight = owner.weight.data.clone()
    owner.weight = torch.nn.Parameter(
        QuantizedTensor.from_float(weight, "TensorCoreFP8E4M3Layout"), requires_grad=False
    )
    owner.input_scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
    layer = unet_layer(borrow(quantized, clip, vae))
    results["quantized"] = {
        "kind": type(layer).__name__,
        "shares the memory": layer.weight.data_ptr() == owner.weight.data_ptr(),
        "difference": float((layer.dequantize(torch.float32) - weight).abs().max() / weight.abs().max()),
    }

    class GGMLTensor(torch.Tensor):
        pass

    strange, _, _ = load()
    owner = strange.model.get_submodule(KEY.removesuffix(".weight"))
    owner.weight = torch.nn.Parameter(owner.weight.data.clone().as_subclass(GGMLTensor), requires_grad=False)
    results["gguf"] = refusal(strange, clip, vae)

    # Models that are not SDXL, and patches outside of the weights.
    bypassed, _ = comfy.sd.load_bypass_lora_for_models(
        model, None, comfy.utils.load_torch_file(str(lora_file)), 1.0, 0.0
    )
    skipped = clip.clone()
    skipped.clip_layer(-3)
    results["refused"] = {
        "bypass": refusal(bypassed, clip, vae),
        "clip_skip": refusal(model, skipped, vae),
        "no_clip": refusal(model, None, vae),
        "no_vae": refusal(model, clip, None),
        "no_vae_in_file": refusal(model, clip, comfy.sd.VAE(sd={})),
        "edm": refusal(ModelSamplingDiscrete().patch(model, "x0", False)[0], clip, vae),
    }
    penultimate = clip.clone()
    penultimate.clip_layer(-2)
    results["clip_skip_2"] = refusal(model, penultimate, vae)
    v_prediction = borrow(ModelSamplingDiscrete().patch(model, "v_prediction", True)[0], clip, vae)
    results["v_prediction"] = [v_prediction.prediction_type, v_prediction.zero_terminal_snr]

print("RESULT" + json.dumps(results))
