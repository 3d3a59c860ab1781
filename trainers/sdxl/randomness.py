"""Everything random in a training step, as a pure function of the run's seed, the step and the
item.

No state is carried from step to step, so a resumed run, another batch size, or a preview in between
cannot shift the noise; and nothing touches the global generators of the host process. Numbers are
drawn on the CPU: every device trains on the same noise.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any numbers and words, the same in every process and version."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(*parts))


@dataclass(frozen=True)
class ItemDraw:
    """The draws of one item in one step. Each comes from its own stream: switching one option
    leaves the others as they were.
    """

    timestep: int
    noise: Tensor  # [C, H, W], noise offset included
    drop_caption: bool
    flip: bool
    caption_variant: int = 0
    class_prompt: int = 0


def draw_item(
    *,
    seed: int,
    step: int,
    item: int,
    latent_shape: tuple[int, ...],
    num_timesteps: int,
    noise_offset: float = 0.0,
    caption_dropout: float = 0.0,
    random_flip: bool = False,
    num_caption_variants: int = 1,
    num_class_prompts: int = 1,
) -> ItemDraw:
    """Draw timestep (uniform), noise, caption dropout, flip, the caption's variant and the class
    prompt of `item` in `step`.

    noise_offset adds noise_offset * N(0, 1) to each channel as a whole (crosslabs.org, "Diffusion
    with Offset Noise").
    """
    noise = torch.randn(latent_shape, generator=generator_for(seed, "noise", step, item))
    if noise_offset:
        noise += noise_offset * torch.randn(
            (latent_shape[0], 1, 1), generator=generator_for(seed, "noise_offset", step, item)
        )
    timestep = torch.randint(0, num_timesteps, (), generator=generator_for(seed, "timestep", step, item))
    return ItemDraw(
        timestep=int(timestep),
        noise=noise,
        drop_caption=_chance(caption_dropout, seed, "caption_dropout", step, item),
        flip=random_flip and _chance(0.5, seed, "flip", step, item),
        caption_variant=derived_seed(seed, "caption_variant", step, item) % num_caption_variants,
        class_prompt=derived_seed(seed, "class_prompt", step, item) % num_class_prompts,
    )


def _chance(probability: float, *parts: int | str) -> bool:
    return derived_seed(*parts) / 2**63 < probability
