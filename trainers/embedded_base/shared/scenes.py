"""Draws the images that the embedded base model knows with their captions, and reads generated
images back.

The pretraining draws; tests and scores check whether an image shows what its prompt asked for.
Sizes are (height, width) in pixels; colours are RGB, 0-255.
"""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
COLOUR_DISTANCE = 75  # between a colour and what still counts as it

RESOLUTION = 128  # that the base models are made for

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
# The words for a position, and the centre (y, x) as shares of the free space.
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
    """An image [height, width, 3] uint8 and its caption."""

    pixels: np.ndarray
    caption: str


def draw_scene(size_hw: tuple[int, int], rng: random.Random) -> Drawing:
    """Draw one image of the base set: one coloured object (four times in five) or two, on a plain
    background.
    """
    background = rng.choice(list(BACKGROUNDS))
    image = _make_canvas(size_hw, BACKGROUNDS[background])
    words = _draw_two(image, rng) if rng.random() < 0.2 else _draw_one(image, rng)
    if rng.random() < 0.75:
        words += f" on a {background} background"
    return Drawing(_to_pixels(image, size_hw), words)


def draw_centred(rng: random.Random, *, spread: float) -> Drawing:
    """Draw one object near the middle of a square, for a base that learns its first words. From
    0 to 1, `spread` is how much place and size vary.
    """
    size_hw = (RESOLUTION, RESOLUTION)
    background, colour, shape = rng.choice(list(BACKGROUNDS)), rng.choice(list(COLOURS)), rng.choice(SHAPES)
    image = _make_canvas(size_hw, BACKGROUNDS[background])
    y, x = (0.5 + spread * rng.uniform(-0.06, 0.06) for _ in "yx")
    draw_shape(
        image,
        shape,
        centre_yx=(image.height * y, image.width * x),
        radius=(0.28 + spread * rng.uniform(-0.04, 0.04)) * min(image.size),
        colour=_jitter(COLOURS[colour], rng),
    )
    return Drawing(_to_pixels(image, size_hw), f"{add_article(f'{colour} {shape}')} on a {background} background")


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
    return add_article(words) + (f" {position}" if position and rng.random() < 0.9 else "")


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
        names.append(add_article(f"{colour} {shape}"))
    return f"{names[0]} {'above' if vertical else 'left of'} {names[1]}"


def draw_anything(size_hw: tuple[int, int], rng: random.Random) -> np.ndarray:
    """Draw an image [height, width, 3] uint8 that only the VAE sees: any colours, gradients,
    stripes, many shapes.
    """
    image = _make_canvas(size_hw, _pick_colour(rng))
    if rng.random() < 0.3:
        top, bottom = np.array(_pick_colour(rng), float), np.array(_pick_colour(rng), float)
        ramp = np.linspace(top, bottom, image.height)[:, None].repeat(image.width, 1)
        image = Image.fromarray(ramp.astype(np.uint8))
    for _ in range(rng.choice((1, 2, 3, 5))):
        height, width = image.height, image.width
        centre = rng.uniform(0.1, 0.9) * height, rng.uniform(0.1, 0.9) * width
        radius = rng.uniform(0.05, 0.4) * min(image.size)
        draw_shape(image, rng.choice(SHAPES), centre_yx=centre, radius=radius, colour=_pick_colour(rng))
    if rng.random() < 0.25:
        pen, step, colour = ImageDraw.Draw(image), rng.uniform(0.05, 0.15) * image.width, _pick_colour(rng)
        for k in range(0, 20, 2):
            pen.rectangle((k * step, 0, (k + 1) * step, image.height * rng.choice((0.3, 1.0))), fill=colour)
    return _to_pixels(image, size_hw)


def draw_shape(
    image: Image.Image, shape: str, *, centre_yx: tuple[float, float], radius: float, colour: Colour
) -> None:
    """Draw one of SHAPES onto a canvas. Centre and radius are in pixels of the canvas."""
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
    """Return the corners (x, y) of a shape around the origin. Its area is about that of the unit
    circle.
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


def add_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _make_canvas(size_hw: tuple[int, int], colour: Colour) -> Image.Image:
    return Image.new("RGB", (size_hw[1] * SUPERSAMPLING, size_hw[0] * SUPERSAMPLING), colour)


def _to_pixels(image: Image.Image, size_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(image.resize((size_hw[1], size_hw[0]), Image.Resampling.BOX))


def _jitter(colour: Colour, rng: random.Random) -> Colour:
    red, green, blue = (int(min(255, max(0, value + rng.uniform(-8, 8)))) for value in colour)
    return red, green, blue


def _pick_colour(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


# ---- the checker ----


@dataclass(frozen=True)
class Reading:
    """What an image shows; None if that is unclear. `overlap` is the IoU with the template of the
    nearest shape.
    """

    background: str
    colour: str | None
    shape: str | None
    overlap: float


def is_near_colour(pixels: np.ndarray, colour: Colour) -> np.ndarray:
    """Return where pixels [..., height, width, 3] have this colour, [..., height, width] bool."""
    return np.linalg.norm(pixels.astype(float) - np.array(colour), axis=-1) < COLOUR_DISTANCE


def read_image(pixels: np.ndarray) -> Reading:
    """Read one object on a plain background from pixels [height, width, 3], without the prompt."""
    border, mask = find_object(pixels)
    background = _find_nearest(border, BACKGROUNDS)
    silhouette = _cut_silhouette(mask)
    if silhouette is None:
        return Reading(background, None, None, 0.0)
    overlaps = {
        shape: (template & silhouette).sum() / (template | silhouette).sum()
        for shape, template in _draw_templates().items()
    }
    shape = max(overlaps, key=lambda name: overlaps[name])
    colour = _find_nearest(np.median(pixels[mask], axis=0), COLOURS)
    return Reading(background, colour, shape if overlaps[shape] >= 0.6 else None, float(overlaps[shape]))


def find_object(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the background's colour [3], and where something else is, [height, width] of bool."""
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
    return border, _remove_specks(np.linalg.norm(pixels - border, axis=-1) > 60)


def fits(pixels: np.ndarray, prompt: str) -> tuple[bool, bool, bool]:
    """Tell whether the image has the (colour, shape, background) of the prompt. A background that
    the prompt does not name is right.
    """
    reading, words = read_image(pixels), prompt.replace(",", " ").split()
    named_background = words[words.index("background") - 1] if "background" in words else None
    return reading.colour in words, reading.shape in words, named_background in (None, reading.background)


@cache
def _draw_templates() -> dict[str, np.ndarray]:
    templates = {}
    for shape in SHAPES:
        image = Image.new("RGB", (256, 256))
        draw_shape(image, shape, centre_yx=(128, 128), radius=90, colour=(255, 255, 255))
        templates[shape] = _cut_silhouette(np.asarray(image)[..., 0] > 127)
    return templates


def _remove_specks(mask: np.ndarray) -> np.ndarray:
    """Drop single pixels: keep those with neighbours on both sides, vertically or horizontally."""
    padded = np.pad(mask, 1)
    vertical, horizontal = padded[:-2, 1:-1] & padded[2:, 1:-1], padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & (vertical | horizontal)


def _cut_silhouette(mask: np.ndarray) -> np.ndarray | None:
    """Cut out the object's mask, centre it in a square and scale it to 32 x 32. None if the mask is
    almost empty or almost everything.
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


def _find_nearest(colour: np.ndarray, table: dict[str, Colour]) -> str:
    return min(table, key=lambda name: float(np.linalg.norm(colour - np.array(table[name]))))
