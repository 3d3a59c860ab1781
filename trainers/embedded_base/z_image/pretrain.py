"""Pretrain the embedded Z-Image on images that this script draws.

    python -m trainers.embedded_base.z_image.pretrain vae   --work DIR
    python -m trainers.embedded_base.z_image.pretrain base  --work DIR   # needs no VAE
    python -m trainers.embedded_base.z_image.pretrain score --work DIR   # 12 prompts x 8 seeds
    python -m trainers.embedded_base.z_image.pretrain ship  --work DIR   # writes float16 weights

It reads Qwen's tokenizer from ComfyUI, which has it on board. Letters: B batch, H W latent height
and width. Latents are scaled.
"""

import argparse
import logging
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import Qwen2Tokenizer

from ...comfyui.find import find_comfyui
from ...flow.objective import shift_level
from ..shared.pretraining import (
    CAPTION_DROPOUT,
    Bucket,
    ScaledVAE,
    TargetLatents,
    draw_buckets,
    load_parts,
    save_parts,
    to_images,
    train_base,
    train_vae,
)
from ..shared.scenes import RESOLUTION
from ..shared.scoring import SCORE_PROMPTS, save_sheet, score_images
from . import DIFFUSION_MODEL, SHIPPED_WEIGHTS, TEXT_ENCODER, TOKEN_TABLE, VAE
from .architecture import (
    LATENT_CHANNELS,
    SAMPLING_SHIFT,
    SCALING_FACTOR,
    SHIFT_FACTOR,
    build_text_encoder,
    build_transformer,
    build_vae,
)
from .layout import text_encoder_to_original, transformer_to_original, vae_to_original, without_zeros

logger = logging.getLogger(__name__)

TOKENIZER = Path("comfy/text_encoders/qwen25_tokenizer")  # in ComfyUI
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
NOT_SAVED = "embed_tokens"
TRAINING_SHIFTS = (SAMPLING_SHIFT, 12.0)


class TextToLatents(nn.Module):
    """All trained parts of the base: the text encoder and the transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder = build_text_encoder()

    def encode_captions(self, ids: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the states before the last layer, [tokens, 64] of each caption."""
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)  # a causal encoder needs no mask for it
        states = self.text_encoder(padded, output_hidden_states=True).hidden_states[-2]
        return [each[: len(own)] for each, own in zip(states, ids, strict=True)]

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, captions: list[torch.Tensor]) -> torch.Tensor:
        """Return the velocity, noise minus latents, [B, 16, H, W]. Z-Image counts time from noise
        to image, and answers with the opposite of the velocity.
        """
        answers = self.transformer(list(noisy.unsqueeze(2)), 1 - sigmas, captions).sample
        return -torch.stack(list(answers)).squeeze(2)

    def parts(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "text_encoder": self.text_encoder}


class Captions:
    """Token ids of captions, within Z-Image's template for a chat."""

    def __init__(self, tokenizer: Path | None = None) -> None:
        self._tokenizer = Qwen2Tokenizer.from_pretrained(tokenizer or find_comfyui().folder / TOKENIZER)
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, caption: str) -> torch.Tensor:
        if caption not in self._known:
            self._known[caption] = torch.tensor(self._tokenizer(TEMPLATE.format(caption))["input_ids"])
        return self._known[caption]


def make_targets() -> TargetLatents:
    return TargetLatents(block=4, detail=0.5)


def compute_loss(model: TextToLatents, buckets: list[Bucket], captions: Captions, batch_size: int) -> torch.Tensor:
    """Compute the loss of flow matching, mean over the batch. Half of the noise levels are spread
    as the sampler's. The other half are higher: only there the text decides about the shape, as at
    lower ones a latent of so few, uniform colours shows it through the noise.
    """
    bucket = random.choices(buckets, [each.share for each in buckets])[0]
    chosen = torch.randint(0, len(bucket.latents), (batch_size,)).tolist()
    texts = ["" if random.random() < CAPTION_DROPOUT else bucket.captions[index] for index in chosen]
    latents = bucket.latents[chosen].float()
    noise = torch.randn_like(latents)
    sigmas = torch.tensor([shift_level(random.random(), random.choice(TRAINING_SHIFTS)) for _ in chosen])
    weight = sigmas[:, None, None, None]
    velocity = model.predict(
        weight * noise + (1 - weight) * latents, sigmas, model.encode_captions([captions(text) for text in texts])
    )
    return functional.mse_loss(velocity, noise - latents)


def train(
    work: Path, *, num_steps: int, learning_rate: float, batch_size: int, num_images: int, seed: int, resume: bool
) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    model = TextToLatents().train()
    if resume:
        load_parts(work, model.parts(), without=NOT_SAVED)
    captions = Captions()
    buckets = draw_buckets(num_images, make_targets(), random.Random(seed))
    logger.info("latents: std %.3f over %d images", buckets[0].latents.std(), num_images)
    longest = max(len(captions(text)) for bucket in buckets for text in bucket.captions)
    logger.info("captions: at most %d tokens", longest)
    train_base(
        model,
        lambda: compute_loss(model, buckets, captions, batch_size),
        lambda: save_parts(work, model.parts(), without=NOT_SAVED),
        num_steps=num_steps,
        learning_rate=learning_rate,
    )


# ---- scoring and shipping ----


def assemble(work: Path) -> tuple[TextToLatents, ScaledVAE]:
    """Load the trained parts, rounded to float16 as they ship."""
    model, vae = TextToLatents().eval(), build_vae().eval()
    load_parts(work, {**model.parts(), "vae": vae}, without=NOT_SAVED)
    return model.half().float(), ScaledVAE(vae.half().float(), SCALING_FACTOR, SHIFT_FACTOR)


@torch.no_grad()
def sample_images(
    model: TextToLatents,
    vae: ScaledVAE,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    guidance_scale: float,
    num_steps: int = 25,
) -> np.ndarray:
    """Draw images uint8 [prompts * seeds, 128, 128, 3], prompt by prompt, with Euler's method."""
    captions = Captions()
    side = RESOLUTION // 8
    images = []
    for prompt in prompts:
        texts = model.encode_captions([captions(prompt), captions("")])
        noise = [
            torch.randn(LATENT_CHANNELS, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds
        ]
        latents = torch.stack(noise)
        levels = [shift_level(1 - number / num_steps, SAMPLING_SHIFT) for number in range(num_steps + 1)]
        for level, following in pairwise(levels):
            sigmas = torch.full((len(seeds),), level)
            positive, negative = (model.predict(latents, sigmas, [text] * len(seeds)) for text in texts)
            latents = latents + (following - level) * (negative + guidance_scale * (positive - negative))
        images.append(to_images(vae.decode(latents)))
    return np.concatenate(images)


def score(work: Path, *, num_seeds: int, guidance_scale: float) -> dict[str, float]:
    """Draw SCORE_PROMPTS, save them as one image, and return their scores."""
    model, vae = assemble(work)
    images = sample_images(model, vae, SCORE_PROMPTS, seeds=range(num_seeds), guidance_scale=guidance_scale)
    save_sheet(images, work / "score.png", num_seeds=num_seeds)
    return score_images(images)


def ship(work: Path) -> None:
    """Write the weights that ship: float16, in the original layout."""
    model, vae = assemble(work)
    parts = {
        DIFFUSION_MODEL: without_zeros(transformer_to_original(model.transformer.state_dict())),
        TEXT_ENCODER: without_zeros(text_encoder_to_original(model.text_encoder.state_dict())),
        VAE: vae_to_original(vae.vae.state_dict()),
    }
    del parts[TEXT_ENCODER][TOKEN_TABLE]
    weights = {
        f"{folder}/{name}": weight.half().contiguous()
        for folder, part in parts.items()
        for name, weight in part.items()
    }
    save_file(weights, SHIPPED_WEIGHTS)
    logger.info("%s: %.1f MB", SHIPPED_WEIGHTS, SHIPPED_WEIGHTS.stat().st_size / 1e6)


def main() -> None:
    options = _read_options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if options.what == "vae":
        scaled = ScaledVAE(build_vae(), SCALING_FACTOR, SHIFT_FACTOR)
        train_vae(scaled, make_targets(), num_steps=options.vae_steps, learning_rate=2e-3, seed=0)
        save_parts(options.work, {"vae": scaled.vae})
    elif options.what == "base":
        train(
            options.work,
            num_steps=options.base_steps,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            num_images=options.pictures,
            seed=2 if options.resume else 1,
            resume=options.resume,
        )
    elif options.what == "score":
        logger.info("%s", score(options.work, num_seeds=options.seeds, guidance_scale=options.guidance_scale))
    else:
        ship(options.work)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vae", "base", "score", "ship"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the float32 weights")
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--base-steps", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--resume", action="store_true", help="start the base from the weights in --work")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
