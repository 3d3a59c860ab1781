"""What the pretraining of both embedded base models shares: the latents they are trained on, the
learning rate, the running average of weights, and the training of a VAE.

Letters: B batch, H W latent height and width.
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from . import scenes
from .scenes import RESOLUTION

logger = logging.getLogger(__name__)

# The sizes of the training images, with their shares: a square, and a portrait and a landscape
# bucket of about the same area.
BUCKETS_HW = {(128, 128): 0.6, (160, 96): 0.2, (96, 160): 0.2}
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.998


def to_pixel_values(drawings: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(drawings)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixel_values: torch.Tensor) -> np.ndarray:
    return ((pixel_values.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


# ---- target latents ----


def describe_blocks(pixel_values: torch.Tensor, side: int) -> torch.Tensor:
    """Describe each block of side x side pixels by its mean colour and by how much brighter its top
    is than its bottom: [B, 3, side * H, side * W] -> [B, 4, H, W].
    """
    halves = functional.avg_pool2d(pixel_values.mean(1, keepdim=True), (side // 2, side))
    return torch.cat([functional.avg_pool2d(pixel_values, side), halves[:, :, 0::2] - halves[:, :, 1::2]], 1)


class TargetLatents:
    """The latents that VAE and base are trained on: block descriptions, whitened over the base
    images.

    Training encoder and decoder separately against fixed latents is several times faster than end
    to end, and the base can be trained without waiting for the VAE. Whitening is symmetric (ZCA),
    so it has no sign to choose.

    Each latent has 4 channels if a block is 8 pixels wide, and 16 if it is 4: those of its four
    blocks. `detail` scales the channel of brightness within a block.
    """

    def __init__(self, *, block: int = 8, detail: float = 1.0) -> None:
        self.block = block
        rng = random.Random(11)
        drawings = [scenes.draw_scene((RESOLUTION, RESOLUTION), rng).pixels for _ in range(1500)]
        features = describe_blocks(to_pixel_values(drawings), block).permute(1, 0, 2, 3).flatten(1).double()
        self.mean = features.mean(1)
        values, vectors = torch.linalg.eigh(torch.cov(features))
        self.whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T
        self.whitening[3] *= detail

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        centred = describe_blocks(pixel_values, self.block) - self.mean.float()[:, None, None]
        whitened = torch.einsum("ij,bjhw->bihw", self.whitening.float(), centred)
        return functional.pixel_unshuffle(whitened, 8 // self.block)


# ---- the VAE ----


@dataclass(frozen=True)
class ScaledVAE:
    """A VAE whose latents are (mean - shift) * scale."""

    vae: AutoencoderKL
    scale: float
    shift: float = 0.0

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        mean = self.vae.encode(pixel_values, return_dict=False)[0].mean
        return (mean - self.shift) * self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents / self.scale + self.shift, return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def train_vae(scaled: ScaledVAE, targets: TargetLatents, *, num_steps: int, learning_rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = scaled.vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), learning_rate, weight_decay=0.0)
    pool = _draw_vae_images(rng, num_images=5000)
    losses: list[float] = []
    for step in range(num_steps):
        set_learning_rate(optimizer, learning_rate, step, num_steps)
        pixel_values = _draw_vae_batch(pool, rng, whole=step > 0.6 * num_steps)
        latents = targets(pixel_values)
        error = scaled.decode(latents + torch.randn_like(latents) * 0.05) - pixel_values
        encoding_error = scaled.encode(pixel_values) - latents
        loss = error.square().mean() + 0.2 * error.abs().mean() + 0.2 * encoding_error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.append(error.square().mean().item())
        if (step + 1) % 100 == 0:
            logger.info("vae step %d: mse %.5f", step + 1, np.mean(losses[-100:]))
    _narrow_posterior(scaled)
    logger.info("vae: %s", measure_vae(scaled, targets))


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
def _narrow_posterior(scaled: ScaledVAE) -> None:
    """Give the posterior a small constant width: only its mean was trained."""
    vae = scaled.vae
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.weight[last.out_channels // 2 :] = 0
    last.bias[last.out_channels // 2 :] = 2 * np.log(0.02 / scaled.scale)


@torch.no_grad()
def measure_vae(scaled: ScaledVAE, targets: TargetLatents) -> dict[str, float]:
    scaled.vae.eval()
    rng = random.Random(99)
    drawings = [scenes.draw_scene((RESOLUTION, RESOLUTION), rng) for _ in range(128)]
    pixel_values = to_pixel_values([drawing.pixels for drawing in drawings])
    latents = torch.cat([scaled.encode(chunk) for chunk in pixel_values.split(16)])
    decoded = torch.cat([scaled.decode(chunk) for chunk in latents.split(16)])
    read = [
        scenes.fits(image, drawing.caption)
        for image, drawing in zip(to_images(decoded), drawings, strict=True)
        if " of " not in drawing.caption and " above " not in drawing.caption
    ]
    colour, shape, background = np.mean(read, axis=0)
    return {
        "psnr_db": (10 * torch.log10(4 / (decoded - pixel_values).square().mean())).item(),
        "scaled_latents_std": latents.std().item(),
        "distance_to_target": (latents - targets(pixel_values)).std().item(),
        "colour": float(colour),
        "shape": float(shape),
        "background": float(background),
    }


# ---- the base ----


@dataclass(frozen=True)
class Bucket:
    """Images of one size: their latents [N, C, H, W], and their captions."""

    size_hw: tuple[int, int]
    share: float
    latents: torch.Tensor
    captions: list[str]


def draw_buckets(num_images: int, targets: TargetLatents, rng: random.Random) -> list[Bucket]:
    """Draw the base set: latents come from the formula, so the base needs no VAE."""
    return [
        _draw_bucket(size_hw, share, int(num_images * share), targets, rng) for size_hw, share in BUCKETS_HW.items()
    ]


def _draw_bucket(
    size_hw: tuple[int, int], share: float, num_images: int, targets: TargetLatents, rng: random.Random
) -> Bucket:
    latents, captions = [], []
    for start in range(0, num_images, 500):
        drawings = [scenes.draw_scene(size_hw, rng) for _ in range(min(500, num_images - start))]
        latents.append(targets(to_pixel_values([drawing.pixels for drawing in drawings])))
        captions += [drawing.caption for drawing in drawings]
    return Bucket(size_hw, share, torch.cat(latents), captions)


def draw_centred_bucket(num_images: int, targets: TargetLatents, rng: random.Random, *, spread: float) -> Bucket:
    return _make_square_bucket([scenes.draw_centred(rng, spread=spread) for _ in range(num_images)], targets)


def draw_small_bucket(num_images: int, targets: TargetLatents, rng: random.Random) -> Bucket:
    """Draw those images of the base set whose caption calls the object small."""
    drawings: list[scenes.Drawing] = []
    while len(drawings) < num_images:
        drawing = scenes.draw_scene((RESOLUTION, RESOLUTION), rng)
        if drawing.caption.startswith("a small"):
            drawings.append(drawing)
    return _make_square_bucket(drawings, targets)


def _make_square_bucket(drawings: Sequence[scenes.Drawing], targets: TargetLatents) -> Bucket:
    latents = targets(to_pixel_values([drawing.pixels for drawing in drawings]))
    return Bucket((RESOLUTION, RESOLUTION), 1.0, latents, [drawing.caption for drawing in drawings])


def train_base(
    model: nn.Module,
    compute_loss: Callable[[float], torch.Tensor],
    save: Callable[[], None],
    *,
    num_steps: int,
    learning_rate: float,
    matrices: Sequence[nn.Parameter] = (),
) -> None:
    """Train all parameters of the model that require grad: `matrices` with Muon, the others with
    AdamW. `compute_loss` gets the progress, from 0 to 1. `save` is called now and then, and at the
    end, while the model holds the running average of its weights.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = [parameter.detach().clone() for parameter in trainable]
    optimizers = _make_optimizers(trainable, matrices, learning_rate)
    losses: list[float] = []
    for step in range(num_steps):
        loss = compute_loss(step / num_steps)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate, step, num_steps)
            optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in trainable], 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            logger.info("base step %d/%d: loss %.4f", step + 1, num_steps, np.mean(losses[-50:]))
        if (step + 1) % 250 == 0 or step + 1 == num_steps:
            _swap(trainable, average)
            save()
            _swap(trainable, average)


def _make_optimizers(
    trainable: Sequence[nn.Parameter], matrices: Sequence[nn.Parameter], learning_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon scales its updates to the size of AdamW's: both have the same learning rate."""
    of_muon = {id(each) for each in matrices}
    others = [each for each in trainable if id(each) not in of_muon]
    usual = torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    if not matrices:
        return [usual]
    muon = torch.optim.Muon(matrices, learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [usual, muon]


@torch.no_grad()
def _swap(first: list[nn.Parameter], second: list[torch.Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, num_steps: int) -> None:
    """Set the learning rate: linear warm-up over 100 steps, then half a cosine down to 2 %."""
    factor = min(1.0, (step + 1) / 100) * max(0.02, 0.5 * (1 + np.cos(np.pi * step / num_steps)))
    for group in optimizer.param_groups:
        group["lr"] = peak * factor


# ---- files ----


def save_parts(work: Path, parts: Mapping[Any, nn.Module], *, without: str = "") -> None:
    """Save one float32 file per part, without the weights that have `without` in their names: they
    are drawn from a seed.
    """
    work.mkdir(parents=True, exist_ok=True)
    for name, module in parts.items():
        weights = {key: value.contiguous() for key, value in module.state_dict().items() if not _has(key, without)}
        save_file(weights, work / f"{name}.safetensors")


def load_parts(work: Path, parts: Mapping[Any, nn.Module], *, without: str = "") -> None:
    for name, module in parts.items():
        missing, unexpected = module.load_state_dict(load_file(work / f"{name}.safetensors"), strict=False)
        assert not unexpected and all(_has(key, without) for key in missing), (missing, unexpected)


def _has(key: str, word: str) -> bool:
    return bool(word) and word in key
