"""Draws the images that the embedded base model knows, writes their captions, and reads an image
back.

Two scripts share it: the pretraining (which draws) and the checker (which says whether a generated
image shows what its prompt asked for). Sizes are (height, width) in pixels; colours are RGB,
0-255.
"""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 30),
    "green": (30, 165, 50),
    "blue": (35, 70, 225),
    "yellow": (245, 220, 30),
    "purple": (140, 40, 180),
    "orange": (250, 135, 20),
    "pink": (250, 110, 180),
    "cyan": (30, 200, 210),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "black": (10, 10, 10),
    "grey": (128, 128, 128),
    "beige": (230, 208, 165),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Centre of the object as a share of the room it has, (y, x), and the words that name it.
POSITIONS: dict[str, tuple[float, float]] = {
    "on the left": (0.5, 0.1),
    "on the right": (0.5, 0.9),
    "at the top": (0.1, 0.5),
    "at the bottom": (0.9, 0.5),
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.15, 0.20), "": (0.22, 0.33), "large": (0.34, 0.40)}
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Drawing:
    """An image [height, width, 3] uint8 and what it shows, in words."""

    pixels: np.ndarray
    caption: str


def draw_scene(size_hw: tuple[int, int], rng: random.Random) -> Drawing:
    """One image of the base set: an object (four times in five) or two, each with a colour, on a
    plain background.
    """
    background = rng.choice(list(BACKGROUNDS))
    image = _canvas(size_hw, BACKGROUNDS[background])
    words = _draw_two(image, rng) if rng.random() < 0.2 else _draw_one(image, rng)
    if rng.random() < 0.75:
        words += f" on a {background} background"
    return Drawing(_to_pixels(image, size_hw), words)


def _draw_one(image: Image.Image, rng: random.Random) -> str:
    colour, shape, size = rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(("", "", "small", "large"))
    position = rng.choice(("", "", *POSITIONS))
    radius = rng.uniform(*SIZES[size]) * min(image.size)
    room_y, room_x = image.height - 2.2 * radius, image.width - 2.2 * radius
    y, x = POSITIONS.get(position, (0.5, 0.5))
    y, x = y + rng.uniform(-0.1, 0.1), x + rng.uniform(-0.1, 0.1)
    draw_shape(
        image,
        shape,
        centre_yx=(1.1 * radius + room_y * y, 1.1 * radius + room_x * x),
        radius=radius,
        colour=_jitter(COLOURS[colour], rng),
    )
    words = " ".join(word for word in (size, colour, shape) if word)
    return with_article(words) + (f" {position}" if position and rng.random() < 0.9 else "")


def _draw_two(image: Image.Image, rng: random.Random) -> str:
    names = []
    vertical = image.height > image.width or (image.height == image.width and rng.random() < 0.5)
    for k in range(2):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        long_side, short_side = max(image.size), min(image.size)
        radius = rng.uniform(0.16, 0.20) * min(short_side, 0.6 * long_side + 0.4 * short_side)
        along = long_side * (0.25 + 0.5 * k + rng.uniform(-0.03, 0.03))
        across = short_side * (0.5 + rng.uniform(-0.08, 0.08))
        draw_shape(
            image,
            shape,
            centre_yx=(along, across) if vertical else (across, along),
            radius=radius,
            colour=_jitter(COLOURS[colour], rng),
        )
        names.append(with_article(f"{colour} {shape}"))
    return f"{names[0]} {'above' if vertical else 'left of'} {names[1]}"


def draw_anything(size_hw: tuple[int, int], rng: random.Random) -> np.ndarray:
    """[height, width, 3] uint8: what the VAE must hold beyond the base set: any colours, gradients,
    stripes, many shapes.
    """
    image = _canvas(size_hw, _any_colour(rng))
    if rng.random() < 0.3:
        top, bottom = np.array(_any_colour(rng), float), np.array(_any_colour(rng), float)
        ramp = np.linspace(top, bottom, image.height)[:, None].repeat(image.width, 1)
        image = Image.fromarray(ramp.astype(np.uint8))
    for _ in range(rng.choice((1, 2, 3, 5))):
        height, width = image.height, image.width
        centre = rng.uniform(0.1, 0.9) * height, rng.uniform(0.1, 0.9) * width
        radius = rng.uniform(0.05, 0.4) * min(image.size)
        draw_shape(image, rng.choice(SHAPES), centre_yx=centre, radius=radius, colour=_any_colour(rng))
    if rng.random() < 0.25:
        pen, step, colour = ImageDraw.Draw(image), rng.uniform(0.05, 0.15) * image.width, _any_colour(rng)
        for k in range(0, 20, 2):
            pen.rectangle((k * step, 0, (k + 1) * step, image.height * rng.choice((0.3, 1.0))), fill=colour)
    return _to_pixels(image, size_hw)


def draw_shape(
    image: Image.Image, shape: str, *, centre_yx: tuple[float, float], radius: float, colour: Colour
) -> None:
    """Draw one of SHAPES onto a canvas; centre and radius in the canvas's own pixels."""
    mask = Image.new("L", image.size)
    pen = ImageDraw.Draw(mask)
    y, x = centre_yx
    if shape == "ring":
        for scale, value in ((1.0, 255), (0.55, 0)):
            pen.ellipse((x - scale * radius, y - scale * radius, x + scale * radius, y + scale * radius), fill=value)
    else:
        pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _outline(shape)], fill=255)
    image.paste(colour, (0, 0), mask)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners (x, y) of a shape around the origin; areas of all shapes are about equal to the unit
    circle's.
    """

    def corners(count: int, radii: tuple[float, ...], start: float) -> list[tuple[float, float]]:
        angles = [start + 2 * np.pi * i / count for i in range(count)]
        return [(radii[i % len(radii)] * np.cos(a), radii[i % len(radii)] * np.sin(a)) for i, a in enumerate(angles)]

    if shape == "circle":
        return corners(64, (1.0,), 0)
    if shape == "square":
        return corners(4, (1.2,), np.pi / 4)
    if shape == "triangle":
        return corners(3, (1.15,), -np.pi / 2)
    if shape == "star":
        return corners(10, (1.15, 0.48), -np.pi / 2)
    if shape == "cross":
        a = 0.34  # half the width of a bar
        return [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}")


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _canvas(size_hw: tuple[int, int], colour: Colour) -> Image.Image:
    return Image.new("RGB", (size_hw[1] * SUPERSAMPLING, size_hw[0] * SUPERSAMPLING), colour)


def _to_pixels(image: Image.Image, size_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(image.resize((size_hw[1], size_hw[0]), Image.Resampling.BOX))


def _jitter(colour: Colour, rng: random.Random) -> Colour:
    red, green, blue = (int(min(255, max(0, value + rng.uniform(-8, 8)))) for value in colour)
    return red, green, blue


def _any_colour(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


# ---- the checker ----


@dataclass(frozen=True)
class Reading:
    """What an image shows; None where nothing can be told. `overlap` is the IoU with the nearest
    shape's template.
    """

    background: str
    colour: str | None
    shape: str | None
    overlap: float


def read_image(pixels: np.ndarray) -> Reading:
    """Read one object on a plain background from pixels [height, width, 3], without knowing the
    prompt.
    """
    pixels = pixels.astype(float)
    edge = np.concatenate(
        [
            pixels[:2].reshape(-1, 3),
            pixels[-2:].reshape(-1, 3),
            pixels[:, :2].reshape(-1, 3),
            pixels[:, -2:].reshape(-1, 3),
        ]
    )
    border = np.median(edge, axis=0)
    mask = _without_specks(np.linalg.norm(pixels - border, axis=-1) > 60)
    background = _nearest(border, BACKGROUNDS)
    silhouette = _silhouette(mask)
    if silhouette is None:
        return Reading(background, None, None, 0.0)
    overlaps = {
        shape: (template & silhouette).sum() / (template | silhouette).sum() for shape, template in _templates().items()
    }
    shape = max(overlaps, key=lambda name: overlaps[name])
    colour = _nearest(np.median(pixels[mask], axis=0), COLOURS)
    return Reading(background, colour, shape if overlaps[shape] >= 0.6 else None, float(overlaps[shape]))


def fits(pixels: np.ndarray, prompt: str) -> tuple[bool, bool, bool]:
    """Whether the image has the prompt's (colour, shape, background); a part the prompt does not
    name counts as right.
    """
    reading, words = read_image(pixels), prompt.replace(",", " ").split()
    named_background = words[words.index("background") - 1] if "background" in words else None
    return reading.colour in words, reading.shape in words, named_background in (None, reading.background)


@cache
def _templates() -> dict[str, np.ndarray]:
    templates = {}
    for shape in SHAPES:
        image = Image.new("RGB", (256, 256))
        draw_shape(image, shape, centre_yx=(128, 128), radius=90, colour=(255, 255, 255))
        templates[shape] = _silhouette(np.asarray(image)[..., 0] > 127)
    return templates


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Drop single pixels: keep what has a neighbour on both sides, vertically or horizontally."""
    padded = np.pad(mask, 1)
    vertical, horizontal = padded[:-2, 1:-1] & padded[2:, 1:-1], padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & (vertical | horizontal)


def _silhouette(mask: np.ndarray) -> np.ndarray | None:
    """The object's mask, cut out, centred in a square and scaled to 32 x 32; None when it is nearly
    nothing or everything.
    """
    ys, xs = np.where(mask)
    if not 0.01 * mask.size < len(ys) < 0.7 * mask.size:
        return None
    cut = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), bool)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    scaled = Image.fromarray(square.astype(np.uint8) * 255).resize((32, 32), Image.Resampling.BOX)
    return np.asarray(scaled) > 127


def _nearest(colour: np.ndarray, table: dict[str, Colour]) -> str:
    return min(table, key=lambda name: float(np.linalg.norm(colour - np.array(table[name]))))
