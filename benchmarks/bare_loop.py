"""The minimal LoRA training step: diffusers' UNet with PEFT's LoRA, forward, backward, AdamW, on
constant inputs: no dataset, no noise schedule, no clipping, no logging, no saving. It uses no code
of this project.

With --floor, PEFT's layers are replaced by this project's, and AdamW is fused on one flat weight:
the least that a step of ours can take.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch.nn.functional import mse_loss

ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
TARGETS = {
    "attention": rf".*\.transformer_blocks\.\d+\.{ATTENTION}",
    "attention_mlp": r".*attentions\.\d+\.(proj_in|proj_out|"
    rf"transformer_blocks\.\d+\.({ATTENTION}|ff\.net\.(0\.proj|2)))",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder")
    parser.add_argument("--targets", choices=tuple(TARGETS), required=True)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--floor", action="store_true", help="with our layers and fused AdamW")
    options = parser.parse_args()
    unet = UNet2DConditionModel.from_pretrained(options.base, subfolder="unet")
    unet.requires_grad_(False)
    add_adapters = add_our_adapters if options.floor else add_peft_adapters
    update = add_adapters(unet.train(), targets=options.targets, rank=options.rank)
    train(unet, update, steps=options.steps, resolution=options.resolution)


def add_peft_adapters(unet: UNet2DConditionModel, *, targets: str, rank: int) -> Callable[[], None]:
    """Return the update after each backward pass."""
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS[targets]))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update


def add_our_adapters(unet: UNet2DConditionModel, *, targets: str, rank: int) -> Callable[[], None]:
    from trainers.sdxl.targets import find_unet_targets
    from trainers.training.adapter_shapes import AdapterSettings
    from trainers.training.adapters import attach_adapters
    from trainers.training.flat_weights import FlatWeights

    settings = AdapterSettings(rank, float(rank), 0.0, 0)
    weights = FlatWeights(attach_adapters(unet, find_unet_targets(unet, targets), settings, component="unet"))
    optimizer = torch.optim.AdamW([weights.flat], lr=1e-4, weight_decay=0.01, fused=True)

    def update() -> None:
        weights.collect_gradients()
        optimizer.step()
        weights.forget_gradients()

    return update


def train(unet: UNet2DConditionModel, update: Callable[[], None], *, steps: int, resolution: int) -> None:
    noisy_latents = torch.randn(1, 4, resolution // 8, resolution // 8)
    noise = torch.randn_like(noisy_latents)
    prompt_embeds = torch.randn(1, 77, 2048)
    conditions = {
        "text_embeds": torch.randn(1, 1280),
        "time_ids": torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]]),
    }
    timesteps = torch.tensor([500])
    for _ in range(steps):
        model_pred = unet(noisy_latents, timesteps, prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
        mse_loss(model_pred, noise).backward()
        update()


if __name__ == "__main__":
    main()
