"""Scores a base model: which share of its images shows what the prompt asked for, and a sheet with
all of them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .scenes import fits

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


def score_images(images: np.ndarray, prompts: Sequence[str] = SCORE_PROMPTS) -> dict[str, float]:
    """Return the shares with the right colour, shape, background, and all three. The images are
    [prompts * seeds, height, width, 3], prompt by prompt.
    """
    num_seeds = len(images) // len(prompts)
    read = np.array([fits(pixels, prompts[index // num_seeds]) for index, pixels in enumerate(images)])
    shares = dict(zip(("colour", "shape", "background"), read.mean(0).tolist(), strict=True))
    return {name: round(value, 3) for name, value in {**shares, "all three": float(read.all(1).mean())}.items()}


def save_sheet(images: np.ndarray, path: Path, *, num_seeds: int) -> None:
    """Save the images as one, with a row for each prompt."""
    rows = [np.concatenate(list(images[start : start + num_seeds]), 1) for start in range(0, len(images), num_seeds)]
    Image.fromarray(np.concatenate(rows)).save(path)
