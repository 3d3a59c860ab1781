"""Pretrain the embedded base model on images that this script draws.

    python -m trainers.embedded_base.pretrain vae   --work DIR   # 15 minutes on one core
    python -m trainers.embedded_base.pretrain base  --work DIR   # 90 minutes; needs no VAE
    python -m trainers.embedded_base.pretrain score --work DIR   # 12 prompts x 8 seeds
    python -m trainers.embedded_base.pretrain ship  --work DIR   # writes the float16 weights

Letters: B batch, H W latent height and width. Latents are scaled (times 0.13025) unless a name says
otherwise.
"""

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ..captions.clip_tokenizer import END_TOKEN, tokenize
from ..sdxl.encode import encode_means
from ..sdxl.model.export import write_checkpoint
from ..sdxl.model.layout import Part
from ..sdxl.model.noise_schedule import alphas_cumprod
from ..sdxl.model.sampling import decode_means, sample_images
from ..sdxl.model.sdxl_model import SDXLModel, build_model
from ..sdxl.step import Batch, Objective, weighted_losses
from . import SHIPPED_WEIGHTS, TOKEN_TABLES, scenes
from .architecture import RESOLUTION, SCALING_FACTOR, build_text_encoders, build_unet, build_vae

logger = logging.getLogger(__name__)

# The sizes of the training images, with their shares: a square, and a portrait and a landscape
# bucket of about the same area.
BUCKETS_HW = {(128, 128): 0.6, (160, 96): 0.2, (96, 160): 0.2}
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.998

SCORE_PROMPTS = (
    "a red circle on a white background",
    "a blue square on a white background",
    "a yellow star on a black background",
    "a green triangle on a white background",
    "a purple cross on a grey background",
    "an orange ring on a black background",
    "a pink star on a grey background",
    "a cyan triangle on a black background",
    "a blue ring on a beige background",
    "a small red cross on a beige background",
    "a large green circle on the left on a black background",
    "a small yellow square at the bottom on a grey background",
)


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


# ---- target latents ----


def describe_blocks(pixel_values: torch.Tensor) -> torch.Tensor:
    """Describe each 8 x 8 block by its mean colour and by how much brighter its top is than its
    bottom: [B, 3, 8H, 8W] -> [B, 4, H, W].
    """
    halves = functional.avg_pool2d(pixel_values.mean(1, keepdim=True), (4, 8))
    return torch.cat([functional.avg_pool2d(pixel_values, 8), halves[:, :, 0::2] - halves[:, :, 1::2]], 1)


class TargetLatents:
    """The latents that VAE and base are trained on: block descriptions, whitened over the base
    images.

    Training encoder and decoder separately against fixed latents is several times faster than end
    to end, and the base can be trained without waiting for the VAE. Whitening is symmetric (ZCA),
    so it has no sign to choose.
    """

    def __init__(self) -> None:
        rng = random.Random(11)
        drawings = [scenes.draw_scene((RESOLUTION, RESOLUTION), rng).pixels for _ in range(1500)]
        features = describe_blocks(to_pixel_values(drawings)).permute(1, 0, 2, 3).flatten(1).double()
        self.mean = features.mean(1)
        values, vectors = torch.linalg.eigh(torch.cov(features))
        self.whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        centred = describe_blocks(pixel_values) - self.mean.float()[:, None, None]
        return torch.einsum("ij,bjhw->bihw", self.whitening.float(), centred)


def to_pixel_values(drawings: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(drawings)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixel_values: torch.Tensor) -> np.ndarray:
    return ((pixel_values.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


# ---- the VAE ----


def train_vae(work: Path, *, num_steps: int, learning_rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae, targets = build_vae().train(), TargetLatents()
    optimizer = torch.optim.AdamW(vae.parameters(), learning_rate, weight_decay=0.0)
    pool = _draw_vae_images(rng, num_images=5000)
    losses: list[float] = []
    for step in range(num_steps):
        set_learning_rate(optimizer, learning_rate, step, num_steps)
        pixel_values = _draw_vae_batch(pool, rng, whole=step > 0.6 * num_steps)
        latents = targets(pixel_values)
        means = encode_means(vae, pixel_values)
        decoded = decode_means(vae, (latents + torch.randn_like(latents) * 0.05) / SCALING_FACTOR)
        error = decoded - pixel_values
        loss = (
            error.square().mean() + 0.2 * error.abs().mean() + 0.2 * (means * SCALING_FACTOR - latents).square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.append(error.square().mean().item())
        if (step + 1) % 100 == 0:
            logger.info("vae step %d: mse %.5f", step + 1, np.mean(losses[-100:]))
    _narrow_posterior(vae)
    save_parts(work, {"vae": vae})
    logger.info("vae: %s", measure_vae(vae.eval(), targets))


def _draw_vae_images(rng: random.Random, *, num_images: int) -> torch.Tensor:
    """Draw images uint8 [N, 128, 128, 3]: one in three from the base set, the rest anything."""
    square = (RESOLUTION, RESOLUTION)
    drawings = [
        scenes.draw_scene(square, rng).pixels if i % 3 == 0 else scenes.draw_anything(square, rng)
        for i in range(num_images)
    ]
    return torch.from_numpy(np.stack(drawings))


def _draw_vae_batch(pool: torch.Tensor, rng: random.Random, *, whole: bool) -> torch.Tensor:
    """Draw a batch: at first crops of half the side, for four times the steps per second, later
    whole images. Half of the batches are mirrored.
    """
    batch = pool[torch.randint(0, len(pool), (4 if whole else 16,))].permute(0, 3, 1, 2).float() / 127.5 - 1
    if not whole:
        top, left = (rng.randrange(0, RESOLUTION // 2 + 1) for _ in "yx")
        batch = batch[:, :, top : top + RESOLUTION // 2, left : left + RESOLUTION // 2]
    return batch.flip(-1) if rng.random() < 0.5 else batch


@torch.no_grad()
def _narrow_posterior(vae: AutoencoderKL) -> None:
    """Give the posterior a small constant width: only its mean was trained."""
    assert vae.quant_conv is not None and vae.quant_conv.bias is not None
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = 2 * np.log(0.02 / SCALING_FACTOR)


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, targets: TargetLatents) -> dict[str, float]:
    rng = random.Random(99)
    drawings = [scenes.draw_scene((RESOLUTION, RESOLUTION), rng) for _ in range(128)]
    pixel_values = to_pixel_values([drawing.pixels for drawing in drawings])
    means = torch.cat([encode_means(vae, chunk) for chunk in pixel_values.split(16)])
    decoded = torch.cat([decode_means(vae, chunk) for chunk in means.split(16)])
    read = [
        scenes.fits(image, drawing.caption)
        for image, drawing in zip(to_images(decoded), drawings, strict=True)
        if " of " not in drawing.caption and " above " not in drawing.caption
    ]
    colour, shape, background = np.mean(read, axis=0)
    return {
        "psnr_db": (10 * torch.log10(4 / (decoded - pixel_values).square().mean())).item(),
        "scaled_latents_std": (means * SCALING_FACTOR).std().item(),
        "distance_to_target": (means * SCALING_FACTOR - targets(pixel_values)).std().item(),
        "colour": float(colour),
        "shape": float(shape),
        "background": float(background),
    }


# ---- text encoders and UNet ----


def train_base(
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
        load_parts(work, model.parts())
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    objective = Objective(alphas_cumprod(zero_terminal_snr=False), "epsilon", min_snr_gamma)
    rng = random.Random(seed)
    buckets = _encode_images(num_images, rng)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(num_steps):
        set_learning_rate(optimizer, learning_rate, step, num_steps)
        loss = _compute_base_loss(
            model, objective, rng.choices(buckets, [b.share for b in buckets])[0], batch_size, noise_offset
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable.values(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in trainable.values()], 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            logger.info(
                "base step %d/%d: loss %.4f, %d s",
                step + 1,
                num_steps,
                np.mean(losses[-50:]),
                time.monotonic() - started,
            )
        if (step + 1) % 500 == 0 or step + 1 == num_steps:
            _save_average(work, average)


class _Bucket:
    """Images of one size, as latents [N, 4, H, W] and token ids."""

    def __init__(
        self, size_hw: tuple[int, int], share: float, num_images: int, targets: TargetLatents, rng: random.Random
    ) -> None:
        self.size_hw, self.share = size_hw, share
        latents, captions = [], []
        for start in range(0, num_images, 500):
            drawings = [scenes.draw_scene(size_hw, rng) for _ in range(min(500, num_images - start))]
            latents.append(targets(to_pixel_values([drawing.pixels for drawing in drawings])))
            captions += [drawing.caption for drawing in drawings]
        self.latents = torch.cat(latents)
        # Row 0 is the empty caption, for caption dropout.
        self.ids_1 = torch.cat(tokenize(["", *captions], pad_token=END_TOKEN))
        self.ids_2 = torch.cat(tokenize(["", *captions], pad_token=0))


def _encode_images(num_images: int, rng: random.Random) -> list[_Bucket]:
    targets = TargetLatents()
    buckets = [_Bucket(size_hw, share, int(num_images * share), targets, rng) for size_hw, share in BUCKETS_HW.items()]
    logger.info("latents: std %.3f over %d images", torch.cat([b.latents.flatten() for b in buckets]).std(), num_images)
    return buckets


def _compute_base_loss(
    model: TextToLatents, objective: Objective, bucket: _Bucket, batch_size: int, noise_offset: float
) -> torch.Tensor:
    """Compute the loss of epsilon prediction with min-SNR-gamma (Hang et al. 2023), mean over the
    batch.

    At the end of SDXL's schedule the noise still has a trace of the image's mean colour. With 16 x
    16 latents the base learns to read the background from it, and a sampler's pure noise then gives
    a random background. The noise offset hides the trace.
    """
    chosen = torch.randint(0, len(bucket.latents), (batch_size,))
    captions = torch.where(torch.rand(batch_size) < CAPTION_DROPOUT, 0, chosen + 1)
    prompt_embeds, pooled = model.encode_captions(bucket.ids_1[captions], bucket.ids_2[captions])
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


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, num_steps: int) -> None:
    """Set the learning rate: linear warm-up over 100 steps, then half a cosine down to 2 %."""
    factor = min(1.0, (step + 1) / 100) * max(0.02, 0.5 * (1 + np.cos(np.pi * step / num_steps)))
    for group in optimizer.param_groups:
        group["lr"] = peak * factor


def _save_average(work: Path, average: dict[str, torch.Tensor]) -> None:
    model = TextToLatents()
    model.load_state_dict(average, strict=False)
    save_parts(work, model.parts())


# ---- files ----


def save_parts(work: Path, parts: Mapping[Part, nn.Module]) -> None:
    """Save one float32 file per part, without the token tables, which are drawn from the seed."""
    work.mkdir(parents=True, exist_ok=True)
    for name, module in parts.items():
        weights = {
            key: value.contiguous() for key, value in module.state_dict().items() if "token_embedding" not in key
        }
        save_file(weights, work / f"{name}.safetensors")


def load_parts(work: Path, parts: Mapping[Part, nn.Module]) -> None:
    for name, module in parts.items():
        missing, unexpected = module.load_state_dict(load_file(work / f"{name}.safetensors"), strict=False)
        assert not unexpected and all("token_embedding" in key for key in missing), (missing, unexpected)


# ---- scoring and shipping ----


def assemble(work: Path) -> SDXLModel:
    """Build a model of the trained parts, rounded to float16 as they ship."""
    model, vae = TextToLatents(), build_vae()
    parts: dict[Part, nn.Module] = {**model.parts(), "vae": vae}
    load_parts(work, parts)
    state_dicts: dict[Part, dict[str, torch.Tensor]] = {
        name: {key: value.half().float() for key, value in part.state_dict().items()} for name, part in parts.items()
    }
    return build_model(state_dicts, name="embedded base")


def score(model: SDXLModel, *, num_seeds: int, guidance_scale: float, image: Path) -> dict[str, float]:
    """Draw SCORE_PROMPTS, save them as one image, and return the shares with the right colour,
    shape, background, and all three.
    """
    sampled = sample_images(
        model, SCORE_PROMPTS, seeds=range(num_seeds), size_hw=(RESOLUTION, RESOLUTION), guidance_scale=guidance_scale
    )
    read = np.array([scenes.fits(pixels, SCORE_PROMPTS[i // num_seeds]) for i, pixels in enumerate(sampled)])
    rows = [np.concatenate(list(sampled[i : i + num_seeds]), 1) for i in range(0, len(sampled), num_seeds)]
    Image.fromarray(np.concatenate(rows)).save(image)
    shares = dict(zip(("colour", "shape", "background"), read.mean(0).tolist(), strict=True))
    return {name: round(value, 3) for name, value in {**shares, "all three": float(read.all(1).mean())}.items()}


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
        train_vae(options.work, num_steps=options.vae_steps, learning_rate=2e-3, seed=0)
    elif options.what == "base":
        train_base(
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
