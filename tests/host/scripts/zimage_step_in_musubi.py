"""Runs in Musubi Tuner's interpreter, with tests/musubi/shim and Musubi's sources on PYTHONPATH:
computes the step that flow_step.py recorded with Musubi's own model, LoRA and training step.

Arguments: the recorded step, the file to write. Writes the loss and the gradients under Musubi's
names. `loss_as_is` is Musubi's loss with its own timestep, one thousandth above the noise level.
"""

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import torch
from musubi_tuner.networks import lora_zimage
from musubi_tuner.zimage import zimage_config, zimage_model
from musubi_tuner.zimage_train_network import ZImageNetworkTrainer
from safetensors.torch import load_file, save_file

source, target = sys.argv[1:3]
recorded = load_file(source)
RANK, ALPHA = 4, 2.0
CPU = torch.device("cpu")


def get_group(prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in recorded.items() if name.startswith(prefix)}


def load_model():
    """Musubi's own loader, which splits ComfyUI's fused matrices, at the size of these weights."""
    weights = get_group("weight.")
    dim = weights["x_embedder.weight"].shape[0]
    zimage_config.DEFAULT_TRANSFORMER_DIM = dim
    zimage_config.DEFAULT_TRANSFORMER_N_HEADS = zimage_config.DEFAULT_TRANSFORMER_N_KV_HEADS = dim // 64
    zimage_config.DEFAULT_TRANSFORMER_N_LAYERS = 1 + max(
        int(name.split(".")[1]) for name in weights if name.startswith("layers.")
    )
    zimage_config.DEFAULT_TRANSFORMER_CAP_FEAT_DIM = weights["cap_embedder.0.weight"].shape[0]
    zimage_config.ROPE_AXES_DIMS = [16, 24, 24]
    embedder, mid_size = zimage_model.TimestepEmbedder, weights["t_embedder.mlp.0.weight"].shape[0]
    zimage_model.TimestepEmbedder = lambda out_size, **_: embedder(out_size, mid_size=mid_size)
    save_file(weights, f"{target}.model.safetensors")
    return zimage_model.load_zimage_model(
        CPU, f"{target}.model.safetensors", "torch", False, CPU, torch.float32
    ).requires_grad_(False)


def split_adapters():
    """One LoRA on a fused matrix is three on its parts, all with the same `down`."""
    found = {}
    for name, tensor in get_group("adapter.").items():
        module, half = name.removeprefix("diffusion_model.").rsplit(".", 1)
        if module.endswith("attention.qkv"):
            parts = tensor.chunk(3) if half == "up" else [tensor] * 3
            for part, value in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                found[f"{module.removesuffix('qkv')}{part}.{half}"] = value
        else:
            found[f"{module.replace('attention.out', 'attention.to_out.0')}.{half}"] = tensor
    return found


def attach(model):
    network = lora_zimage.create_arch_network(1.0, RANK, ALPHA, None, [], model)
    network.apply_to([], model, apply_text_encoder=False, apply_unet=True)
    network.prepare_grad_etc(model)
    adapters = split_adapters()
    own = {f"lora_unet_{name.rsplit('.', 1)[0].replace('.', '_')}": name.rsplit(".", 1)[0] for name in adapters}
    assert {lora.lora_name for lora in network.unet_loras} == set(own), "the trainers choose other layers"
    with torch.no_grad():
        for lora in network.unet_loras:
            lora.lora_down.weight.copy_(adapters[f"{own[lora.lora_name]}.down"])
            lora.lora_up.weight.copy_(adapters[f"{own[lora.lora_name]}.up"])
    return network, own


class ExactTimesteps(ZImageNetworkTrainer):
    """Musubi adds 1 of 1000 to the timestep, and not to the noise level."""

    def get_noisy_model_input_and_timesteps(self, *arguments):
        noisy, timesteps = super().get_noisy_model_input_and_timesteps(*arguments)
        return noisy, timesteps - 1


def compute_loss(trainer_class, model, network):
    arguments = argparse.Namespace(
        timestep_sampling="uniform",
        min_timestep=None,
        max_timestep=None,
        preserve_distribution_shape=False,
        weighting_scheme="none",
        split_attn=False,
        gradient_checkpointing=False,
    )
    accelerator = SimpleNamespace(device=CPU, autocast=nullcontext, unwrap_model=lambda module: module)
    batch = {
        "timesteps": recorded["sigmas"].tolist(),
        "llm_embed": [recorded[f"conditions.{number}"][0] for number in range(len(recorded["sigmas"]))],
    }
    step = partial(trainer_class().process_batch, arguments, accelerator, model, network, batch)
    return step(recorded["latents"], recorded["noise"], None, torch.float32, torch.float32, None, 0)[0]


model = load_model().train()
network, own_names = attach(model)
loss = compute_loss(ExactTimesteps, model, network)
loss.backward()
found = {"loss": loss.detach(), "loss_as_is": compute_loss(ZImageNetworkTrainer, model, network).detach()}
for lora in network.unet_loras:
    for half, layer in (("down", lora.lora_down), ("up", lora.lora_up)):
        found[f"gradient.{own_names[lora.lora_name]}.{half}"] = layer.weight.grad
save_file(found, target)
