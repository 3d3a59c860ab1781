"""Images of soft colours and discs that look clearly different from each other."""

import numpy as np
from PIL import Image, ImageDraw


def paint(seed: int, size: tuple[int, int] = (160, 160)) -> Image.Image:
    """Paint soft colours with discs; a different seed looks clearly different."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for x, y, radius, *colour in zip(
        *(rng.uniform(0, 1, 9) for _ in range(2)),
        rng.uniform(0.05, 0.25, 9),
        *rng.integers(0, 256, (3, 9)),
        strict=True,
    ):
        box = [(centre + sign * radius) * side for sign in (-1, 1) for centre, side in ((x, size[0]), (y, size[1]))]
        pen.ellipse(box, fill=tuple(map(int, colour)))
    return image
