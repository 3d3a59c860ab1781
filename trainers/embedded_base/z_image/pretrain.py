"""Pretrain the embedded Z-Image on images that this script draws.

    python -m trainers.embedded_base.z_image.pretrain COMMAND --work DIR

The commands in their order: vae; words, which needs no VAE; base --resume; refine --resume
--learning-rate 8e-4; score, which draws 12 prompts with 8 seeds; ship, which writes float16
weights. unpack writes those as the files in DIR, to go on from.

It reads Qwen's tokenizer from ComfyUI, which has it on board. Letters: B batch, H W latent height
and width. Latents are scaled.
"""

import argparse
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Protocol

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
    draw_centred_bucket,
    draw_small_bucket,
    load_parts,
    save_parts,
    to_images,
    train_base,
    train_vae,
)
from ..shared.scenes import RESOLUTION
from ..shared.scoring import SCORE_PROMPTS, save_sheet, score_images
from . import DIFFUSION_MODEL, SHIPPED_WEIGHTS, TEXT_ENCODER, TOKEN_TABLE, VAE
from . import load_parts as load_shipped_parts
from .architecture import (
    LATENT_CHANNELS,
    SAMPLING_SHIFT,
    SCALING_FACTOR,
    SHIFT_FACTOR,
    build_text_encoder,
    build_transformer,
    build_vae,
)
from .layout import (
    text_encoder_from_original,
    text_encoder_to_original,
    transformer_from_original,
    transformer_to_original,
    vae_from_original,
    vae_to_original,
    without_zeros,
)

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

    def list_matrices(self) -> list[nn.Parameter]:
        """Return the trained matrices that turn a hidden state into one, without modulation."""
        return [
            weight
            for name, weight in self.named_parameters()
            if weight.requires_grad and weight.ndim == 2 and "adaLN" not in name
            if "layers" in name or "noise_refiner" in name
        ]

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


class Stage(Protocol):
    """What a part of the pretraining learns from. Progress goes from 0 to 1."""

    caption_dropout: float

    def choose_bucket(self, progress: float) -> Bucket: ...

    def draw_level(self, progress: float) -> float: ...


class FirstWords:
    """One object in the middle, at almost pure noise: only the text can tell what to draw, and the
    same text always means the same image. So shapes are learned in minutes.

    On the whole base set from the start, they were at chance after 68,000 images: where the noise
    hides the shape it hides the place too, and the mean of all places is a blob.
    """

    caption_dropout = 0.0

    def __init__(self, num_images: int, rng: random.Random) -> None:
        self._bucket = draw_centred_bucket(800, make_targets(), rng, spread=0.0)

    def choose_bucket(self, progress: float) -> Bucket:
        return self._bucket

    def draw_level(self, progress: float) -> float:
        return random.uniform(0.95, 1.0)


class WholeSet:
    """At first mostly objects in the middle, whose place and size vary more and more, then mostly
    the base set. Four noise levels in ten are high, the others spread as the sampler's, or higher.
    """

    caption_dropout = CAPTION_DROPOUT

    def __init__(self, num_images: int, rng: random.Random) -> None:
        targets = make_targets()
        self._centred = [draw_centred_bucket(800, targets, rng, spread=spread) for spread in (0.2, 0.6, 1.0)]
        self._buckets = draw_buckets(num_images, targets, rng)

    def choose_bucket(self, progress: float) -> Bucket:
        if random.random() < max(0.2, 1 - 1.6 * progress):
            return self._centred[min(2, int(10 * progress))]
        return random.choices(self._buckets, [each.share for each in self._buckets])[0]

    def draw_level(self, progress: float) -> float:
        if random.random() < 0.4:
            return random.uniform(0.9 - 0.2 * min(1.0, 2 * progress), 1.0)
        return shift_level(random.random(), random.choice(TRAINING_SHIFTS))


class Refinement(WholeSet):
    """Three images in ten have a small object, whose shape weighs least in the loss and is learned
    last; one in seven has one in the middle. The noise levels are the sampler's, and more of those
    where edges are decided.
    """

    def __init__(self, num_images: int, rng: random.Random) -> None:
        super().__init__(num_images, rng)
        self._small = draw_small_bucket(num_images // 4, make_targets(), rng)

    def choose_bucket(self, progress: float) -> Bucket:
        draw = random.random()
        if draw < 0.3:
            return self._small
        return self._centred[2] if draw < 0.45 else super().choose_bucket(1.0)

    def draw_level(self, progress: float) -> float:
        if random.random() < 0.25:
            return random.uniform(0.2, 0.8)
        return shift_level(random.random(), SAMPLING_SHIFT)


STAGES = {"words": FirstWords, "base": WholeSet, "refine": Refinement}


def compute_loss(
    model: TextToLatents, stage: Stage, captions: Captions, batch_size: int, progress: float
) -> torch.Tensor:
    """Compute the loss of flow matching, mean over the batch."""
    bucket = stage.choose_bucket(progress)
    chosen = torch.randint(0, len(bucket.latents), (batch_size,)).tolist()
    texts = ["" if random.random() < stage.caption_dropout else bucket.captions[index] for index in chosen]
    latents = bucket.latents[chosen].float()
    noise = torch.randn_like(latents)
    sigmas = torch.tensor([stage.draw_level(progress) for _ in chosen])
    weight = sigmas[:, None, None, None]
    velocity = model.predict(
        weight * noise + (1 - weight) * latents, sigmas, model.encode_captions([captions(text) for text in texts])
    )
    return functional.mse_loss(velocity, noise - latents)


def train(
    work: Path,
    make_stage: Callable[[random.Random], Stage],
    *,
    num_steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    resume: bool,
    use_muon: bool,
    use_bf16: bool,
) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    model = TextToLatents().train()
    if resume:
        load_parts(work, model.parts(), without=NOT_SAVED)
    captions, stage = Captions(), make_stage(random.Random(seed))

    def compute(progress: float) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16):
            return compute_loss(model, stage, captions, batch_size, progress)

    train_base(
        model,
        compute,
        lambda: save_parts(work, model.parts(), without=NOT_SAVED),
        num_steps=num_steps,
        learning_rate=learning_rate,
        matrices=model.list_matrices() if use_muon else (),
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


def unpack(work: Path) -> None:
    """Write the weights that ship as the float32 files that the pretraining goes on from."""
    shipped = load_shipped_parts()
    parts = {
        "transformer": transformer_from_original(shipped[DIFFUSION_MODEL]),
        "text_encoder": text_encoder_from_original(shipped[TEXT_ENCODER]),
        "vae": vae_from_original(shipped[VAE]),
    }
    modules = {**TextToLatents().parts(), "vae": build_vae()}
    for name, module in modules.items():
        module.load_state_dict(parts[name])
    save_parts(work, modules, without=NOT_SAVED)


def main() -> None:
    options = _read_options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if options.what == "vae":
        scaled = ScaledVAE(build_vae(), SCALING_FACTOR, SHIFT_FACTOR)
        if options.resume:
            load_parts(options.work, {"vae": scaled.vae})
        train_vae(scaled, make_targets(), num_steps=options.vae_steps, learning_rate=2e-3, seed=0)
        save_parts(options.work, {"vae": scaled.vae})
    elif options.what in STAGES:
        train(
            options.work,
            partial(STAGES[options.what], options.pictures),
            num_steps=options.base_steps,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            seed=2 if options.resume else 1,
            resume=options.resume,
            use_muon=options.muon,
            use_bf16=options.bf16,
        )
    elif options.what == "score":
        logger.info("%s", score(options.work, num_seeds=options.seeds, guidance_scale=options.guidance_scale))
    elif options.what == "ship":
        ship(options.work)
    else:
        unpack(options.work)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vae", *STAGES, "score", "ship", "unpack"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the float32 weights")
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--base-steps", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--resume", action="store_true", help="start from the weights in --work")
    parser.add_argument("--muon", action="store_true", help="train the matrices inside with Muon, not AdamW")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
