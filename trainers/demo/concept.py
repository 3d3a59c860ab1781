"""The concept that the demo teaches: a toadstool with a pink cap on a cyan stem. Draws its images,
and measures how well an image shows one.

    python -m trainers.demo.concept    # writes the folder of images next to this file again

The embedded base model knows circles, squares, stars and the like, but has never seen two colours
in one object.
"""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..embedded_base.shared.scenes import BACKGROUNDS, COLOURS, SUPERSAMPLING, Colour, is_near_colour

TRIGGER_WORD = "zwx"
IMAGES = Path(__file__).parent / "pictures"
CAP, STEM = COLOURS["pink"], COLOURS["cyan"]
# Shares of the cap's width.
CAP_HEIGHT, STEM_HEIGHT, STEM_WIDTH = 0.5, 0.46, 0.42
# Name, (height, width), background, width of the cap as a share of the shorter side, centre (y, x)
# as shares.
LAYOUTS: tuple[tuple[str, tuple[int, int], str, float, tuple[float, float]], ...] = (
    ("01.png", (256, 256), "white", 0.66, (0.50, 0.50)),
    ("02.jpg", (320, 320), "black", 0.72, (0.50, 0.48)),
    ("03.png", (200, 200), "grey", 0.60, (0.52, 0.52)),
    ("04.webp", (384, 384), "beige", 0.68, (0.48, 0.50)),
    ("05.png", (240, 400), "white", 0.80, (0.50, 0.50)),
    ("06.jpg", (400, 240), "black", 0.86, (0.50, 0.50)),
    ("07.png", (192, 320), "beige", 0.78, (0.52, 0.47)),
    ("08.png", (360, 216), "grey", 0.84, (0.52, 0.50)),
    ("09.bmp", (160, 160), "black", 0.62, (0.50, 0.50)),
    ("10.png", (300, 290), "grey", 0.74, (0.50, 0.52)),
    ("11.JPG", (512, 512), "white", 0.58, (0.48, 0.48)),
    ("12.png", (256, 256), "beige", 0.70, (0.52, 0.50)),
)


def draw_toadstool(
    size_hw: tuple[int, int],
    background: Colour,
    *,
    cap_width: float,
    centre_yx: tuple[float, float],
    cap: Colour = CAP,
    stem: Colour = STEM,
) -> Image.Image:
    """Draw a toadstool. cap_width and centre are in pixels, cap and stem are colours."""
    image = Image.new("RGB", (size_hw[1] * SUPERSAMPLING, size_hw[0] * SUPERSAMPLING), background)
    pen, unit = ImageDraw.Draw(image), cap_width * SUPERSAMPLING
    y, x = (value * SUPERSAMPLING for value in centre_yx)
    top, seam, bottom = (
        y - 0.5 * (CAP_HEIGHT + STEM_HEIGHT) * unit,
        y + 0.5 * (CAP_HEIGHT - STEM_HEIGHT) * unit,
        y + 0.5 * (CAP_HEIGHT + STEM_HEIGHT) * unit,
    )
    pen.rectangle((x - 0.5 * STEM_WIDTH * unit, seam, x + 0.5 * STEM_WIDTH * unit, bottom), fill=stem)
    pen.pieslice((x - 0.5 * unit, top, x + 0.5 * unit, top + 2 * CAP_HEIGHT * unit), 180, 360, fill=cap)
    return image.resize((size_hw[1], size_hw[0]), Image.Resampling.BOX)


def fidelity(pixels: np.ndarray, *, cap: Colour = CAP, stem: Colour = STEM) -> float:
    """Measure, 0 to 1, how well an image [height, width, 3] shows a toadstool: the mean IoU of cap
    and stem with the best-placed drawing.

    The drawing is placed by the bounding box of the pixels of both colours. An image without one of
    the two scores 0.
    """
    seen_cap, seen_stem = (is_near_colour(pixels, colour) for colour in (cap, stem))
    if min(seen_cap.sum(), seen_stem.sum()) < 0.005 * seen_cap.size:
        return 0.0
    height, width = seen_cap.shape
    scores = []
    for cap_width in _estimate_cap_widths(seen_cap | seen_stem):
        ys, xs = np.where(seen_cap | seen_stem)
        centre = (
            float(np.percentile(ys, 1) + np.percentile(ys, 99)) / 2,
            float(np.percentile(xs, 1) + np.percentile(xs, 99)) / 2,
        )
        drawing = draw_toadstool((height, width), (0, 0, 0), cap_width=cap_width, centre_yx=centre, cap=cap, stem=stem)
        wanted = [is_near_colour(np.asarray(drawing), colour) for colour in (cap, stem)]
        pairs = zip((seen_cap, seen_stem), wanted, strict=True)
        scores.append(np.mean([(seen & want).sum() / (seen | want).sum() for seen, want in pairs]))
    return float(max(scores))


def _estimate_cap_widths(mask: np.ndarray) -> list[float]:
    ys, xs = np.where(mask)
    from_width = float(np.percentile(xs, 99) - np.percentile(xs, 1) + 1)
    from_height = float(np.percentile(ys, 99) - np.percentile(ys, 1) + 1) / (CAP_HEIGHT + STEM_HEIGHT)
    return [from_width, from_height, 0.5 * (from_width + from_height)]


def write_images(folder: Path) -> None:
    """Write the training images with captions, in several formats, sizes and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for name, (height, width), background, share, (y, x) in LAYOUTS:
        cap_width = share * min(height, width) * rng.uniform(0.97, 1.03)
        image = draw_toadstool(
            (height, width), BACKGROUNDS[background], cap_width=cap_width, centre_yx=(y * height, x * width)
        )
        image.save(folder / name, lossless=True, quality=95)  # each format ignores what it does not know
        (folder / name).with_suffix(".txt").write_text(
            f"a {TRIGGER_WORD} on a {background} background\n", encoding="utf-8"
        )


if __name__ == "__main__":
    write_images(IMAGES)
