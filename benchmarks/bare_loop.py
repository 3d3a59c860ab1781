"""The minimal LoRA training step: diffusers' UNet with PEFT's LoRA, forward, backward, AdamW, on
constant inputs.

It is the floor of the comparison: no dataset, no noise schedule, no clipping, no logging, no
saving. It uses no code of this project.
"""

import argparse
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
    options = parser.parse_args()
    unet = load_unet(options.base, targets=options.targets, rank=options.rank)
    train(unet, steps=options.steps, resolution=options.resolution)


def load_unet(base: Path, *, targets: str, rank: int) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS[targets]))
    return unet.train()


def train(unet: UNet2DConditionModel, *, steps: int, resolution: int) -> None:
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
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
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
