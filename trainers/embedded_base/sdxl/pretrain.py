"""Pretrain the embedded SDXL on images that this script draws.

    python -m trainers.embedded_base.sdxl.pretrain vae   --work DIR   # 15 minutes on one core
    python -m trainers.embedded_base.sdxl.pretrain base  --work DIR   # 90 minutes; needs no VAE
    python -m trainers.embedded_base.sdxl.pretrain score --work DIR   # 12 prompts x 8 seeds
    python -m trainers.embedded_base.sdxl.pretrain ship  --work DIR   # writes the float16 weights

Letters: B batch, H W latent height and width. Latents are scaled (times 0.13025) unless a name says
otherwise.
"""

import argparse
import logging
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...captions.clip_tokenizer import END_TOKEN, tokenize
from ...sdxl.model.export import write_checkpoint
from ...sdxl.model.layout import Part
from ...sdxl.model.noise_schedule import alphas_cumprod
from ...sdxl.model.sampling import sample_images
from ...sdxl.model.sdxl_model import SDXLModel, build_model
from ...sdxl.step import Batch, Objective, weighted_losses
from ..shared.pretraining import (
    CAPTION_DROPOUT,
    Bucket,
    ScaledVAE,
    TargetLatents,
    draw_buckets,
    load_parts,
    save_parts,
    train_base,
    train_vae,
)
from ..shared.scenes import RESOLUTION
from ..shared.scoring import SCORE_PROMPTS, save_sheet, score_images
from . import SHIPPED_WEIGHTS, TOKEN_TABLES
from .architecture import SCALING_FACTOR, build_text_encoders, build_unet, build_vae

logger = logging.getLogger(__name__)

NOT_SAVED = "token_embedding"  # drawn from the seed


class TextToLatents(nn.Module):
    """All trained parts of the base: both text encoders and the UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder, self.text_encoder_2 = build_text_encoders()

    def encode_captions(self, ids_1: torch.Tensor, ids_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the penultimate hidden states [B, 77, 192] and pooled embeddings [B, 128]."""
        states_1 = self.text_encoder(ids_1, output_hidden_states=True).hidden_states[-2]
        output_2 = self.text_encoder_2(ids_2, output_hidden_states=True)
        return torch.cat([states_1, output_2.hidden_states[-2]], -1), output_2.text_embeds

    def parts(self) -> dict[Part, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}


# ---- text encoders and UNet ----


def train(
    work: Path,
    *,
    num_steps: int,
    learning_rate: float,
    batch_size: int,
    num_images: int,
    min_snr_gamma: float,
    noise_offset: float,
    seed: int,
    resume: bool,
) -> None:
    torch.manual_seed(seed)
    model = TextToLatents().train()
    if resume:
        load_parts(work, model.parts(), without=NOT_SAVED)
    objective = Objective(alphas_cumprod(zero_terminal_snr=False), "epsilon", min_snr_gamma)
    rng = random.Random(seed)
    buckets = [_TokenizedBucket(bucket) for bucket in draw_buckets(num_images, TargetLatents(), rng)]
    shares = [each.bucket.share for each in buckets]
    train_base(
        model,
        lambda _: _compute_loss(model, objective, rng.choices(buckets, shares)[0], batch_size, noise_offset),
        lambda: save_parts(work, model.parts(), without=NOT_SAVED),
        num_steps=num_steps,
        learning_rate=learning_rate,
    )


class _TokenizedBucket:
    """A bucket with the token ids of its captions. Row 0 is the empty one, for caption dropout."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.ids_1 = torch.cat(tokenize(["", *bucket.captions], pad_token=END_TOKEN))
        self.ids_2 = torch.cat(tokenize(["", *bucket.captions], pad_token=0))


def _compute_loss(
    model: TextToLatents, objective: Objective, tokenized: _TokenizedBucket, batch_size: int, noise_offset: float
) -> torch.Tensor:
    """Compute the loss of epsilon prediction with min-SNR-gamma (Hang et al. 2023), mean over the
    batch.

    At the end of SDXL's schedule the noise still has a trace of the image's mean colour. With 16 x
    16 latents the base learns to read the background from it, and a sampler's pure noise then gives
    a random background. The noise offset hides the trace.
    """
    bucket = tokenized.bucket
    chosen = torch.randint(0, len(bucket.latents), (batch_size,))
    captions = torch.where(torch.rand(batch_size) < CAPTION_DROPOUT, 0, chosen + 1)
    prompt_embeds, pooled = model.encode_captions(tokenized.ids_1[captions], tokenized.ids_2[captions])
    latents = bucket.latents[chosen]
    noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (batch_size,))
    noise += noise_offset * torch.randn(batch_size, 4, 1, 1)
    batch = Batch(latents, noise, timesteps, prompt_embeds, pooled, _draw_size_ids(bucket.size_hw, batch_size))
    return weighted_losses(model.unet, batch, objective).mean()


def _draw_size_ids(size_hw: tuple[int, int], batch_size: int) -> torch.Tensor:
    """Draw size ids [B, 6]: half of them as samplers send them (original = target, no crop), the
    others with any original size and crop, so that these do not matter.
    """
    height, width = size_hw
    ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).repeat(batch_size, 1)
    other = torch.rand(batch_size) < 0.5
    scale = torch.exp(torch.rand(batch_size) * np.log(16)) / 2  # 0.5 to 8 times the target
    ids[other, 0:2] = (ids[other, 0:2] * scale[other, None]).round()
    ids[other, 2:4] = (torch.rand(int(other.sum()), 2) ** 2 * 64).round()
    return ids


# ---- scoring and shipping ----


def assemble(work: Path) -> SDXLModel:
    """Build a model of the trained parts, rounded to float16 as they ship."""
    model, vae = TextToLatents(), build_vae()
    parts: dict[Part, nn.Module] = {**model.parts(), "vae": vae}
    load_parts(work, parts, without=NOT_SAVED)
    state_dicts: dict[Part, dict[str, torch.Tensor]] = {
        name: {key: value.half().float() for key, value in part.state_dict().items()} for name, part in parts.items()
    }
    return build_model(state_dicts, name="embedded base")


def score(model: SDXLModel, *, num_seeds: int, guidance_scale: float, image: Path) -> dict[str, float]:
    """Draw SCORE_PROMPTS, save them as one image, and return their scores."""
    size_hw = (RESOLUTION, RESOLUTION)
    sampled = sample_images(
        model, SCORE_PROMPTS, seeds=range(num_seeds), size_hw=size_hw, guidance_scale=guidance_scale
    )
    save_sheet(sampled, image, num_seeds=num_seeds)
    return score_images(sampled)


def ship(work: Path) -> None:
    """Write the weights that ship: float16, LDM layout, without the token tables."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(assemble(work), Path(folder) / "model.safetensors")
        weights = load_file(Path(folder) / "model.safetensors")
    kept = {name: weight.half().contiguous() for name, weight in weights.items() if name not in TOKEN_TABLES}
    save_file(kept, SHIPPED_WEIGHTS)
    logger.info("%s: %.1f MB", SHIPPED_WEIGHTS, SHIPPED_WEIGHTS.stat().st_size / 1e6)


def main() -> None:
    options = _read_options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    if options.what == "vae":
        scaled = ScaledVAE(build_vae(), SCALING_FACTOR)
        train_vae(scaled, TargetLatents(), num_steps=options.vae_steps, learning_rate=2e-3, seed=0)
        save_parts(options.work, {"vae": scaled.vae})
    elif options.what == "base":
        train(
            options.work,
            num_steps=options.base_steps,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            num_images=options.pictures,
            min_snr_gamma=options.min_snr_gamma,
            noise_offset=options.noise_offset,
            seed=2 if options.resume else 1,
            resume=options.resume,
        )
    elif options.what == "score":
        logger.info(
            "%s",
            score(
                assemble(options.work),
                num_seeds=options.seeds,
                guidance_scale=options.guidance_scale,
                image=options.work / "score.png",
            ),
        )
    else:
        ship(options.work)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vae", "base", "score", "ship"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the float32 weights")
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--base-steps", type=int, default=5200)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--min-snr-gamma", type=float, default=5.0)
    parser.add_argument("--noise-offset", type=float, default=0.15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=30000)
    parser.add_argument("--resume", action="store_true", help="start the base from the weights in --work")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
