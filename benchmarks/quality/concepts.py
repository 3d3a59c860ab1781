"""What the tasks of the quality bench teach: drawn, and measured in images. Needs no model.

Points are (x, y) as shares of the thing's width, centres (y, x), sizes (height, width) in pixels;
images are [height, width, 3] uint8.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from trainers.embedded_base.shared.scenes import COLOURS, SUPERSAMPLING, Colour, draw_shape, is_near_colour

WORST_IOU, BEST_IOU = 0.5, 0.9  # a wrong outline overlaps by half; the VAE alone takes a tenth
VISIBLE_SHARE = 0.005  # of the pixels


class Concept(Protocol):
    """Something that the base model does not know."""

    @property
    def colours(self) -> tuple[str, ...]:
        """The names of its colours. Prompts of old things name others."""
        ...

    def score(self, image: np.ndarray) -> float:
        """Measure, 0 to 1, how well the image shows it."""
        ...


@dataclass(frozen=True)
class Part:
    colour: str
    outline: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Thing:
    """An object of several colours. Later parts cover earlier ones."""

    parts: tuple[Part, ...]
    height: float  # as a share of its width

    @property
    def colours(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.colour for part in self.parts))

    def draw(
        self, size_hw: tuple[int, int], background: Colour, *, width: float, centre_yx: tuple[float, float]
    ) -> np.ndarray:
        """Draw it on a plain background, `width` pixels wide, centred at `centre_yx` in pixels."""
        image = Image.new("RGB", (size_hw[1] * SUPERSAMPLING, size_hw[0] * SUPERSAMPLING), background)
        pen, unit = ImageDraw.Draw(image), width * SUPERSAMPLING
        top, left = (centre * SUPERSAMPLING for centre in centre_yx)
        top, left = top - 0.5 * self.height * unit, left - 0.5 * unit
        for part in self.parts:
            pen.polygon([(left + x * unit, top + y * unit) for x, y in part.outline], fill=COLOURS[part.colour])
        return np.asarray(image.resize((size_hw[1], size_hw[0]), Image.Resampling.BOX))

    def find(self, image: np.ndarray) -> "Found":
        """Find the best-placed thing, by the box of all pixels that have one of its colours."""
        seen = {colour: find_colour(image, colour) for colour in self.colours}
        anywhere = np.logical_or.reduce(list(seen.values()))
        if anywhere.mean() < VISIBLE_SHARE:
            return Found(0.0, (0.0, 0.0), 0.0)
        box, own = Box.around(anywhere), self._own_box()
        by_width, by_height = box.width / own.width, box.height / own.height
        candidates = [
            (width, (box.y - width * own.y, box.x - width * own.x))
            for width in (by_width, by_height, 0.5 * (by_width + by_height))
        ]
        return max((self._compare(seen, *candidate) for candidate in candidates), key=lambda found: found.score)

    @cache  # noqa: B019 - a handful of things
    def _own_box(self) -> "Box":
        """Return the box of a thing of width 1 around the origin."""
        size = 256
        drawing = self.draw((2 * size, 2 * size), (0, 0, 0), width=size, centre_yx=(size, size))
        box = Box.around(np.logical_or.reduce([find_colour(drawing, colour) for colour in self.colours]))
        return Box(box.y / size - 1, box.x / size - 1, box.height / size, box.width / size)

    def _compare(self, seen: dict[str, np.ndarray], width: float, centre_yx: tuple[float, float]) -> "Found":
        height_px, width_px = next(iter(seen.values())).shape
        drawing = self.draw((height_px, width_px), (0, 0, 0), width=width, centre_yx=centre_yx)
        scores = [rescale_iou(seen[colour], find_colour(drawing, colour)) for colour in self.colours]
        return Found(float(np.mean(scores)), (centre_yx[0] / height_px, centre_yx[1] / width_px), width / width_px)

    def score(self, image: np.ndarray) -> float:
        return self.find(image).score


@dataclass(frozen=True)
class Box:
    """Where most pixels of a mask are: without one in a hundred on each side, so that a speck does
    not count.
    """

    y: float  # of the centre
    x: float
    height: float
    width: float

    @classmethod
    def around(cls, mask: np.ndarray) -> "Box":
        (top, bottom), (left, right) = (np.percentile(values, (1, 99)) for values in np.where(mask))
        return cls((top + bottom) / 2, (left + right) / 2, bottom - top + 1, right - left + 1)


@dataclass(frozen=True)
class Found:
    """A thing in an image: how well it is drawn, 0 to 1, its centre and width as shares of the
    image.
    """

    score: float
    centre_yx: tuple[float, float]
    width: float


@dataclass(frozen=True)
class Style:
    """A strip of one colour around or under every image."""

    colour: str
    thickness: float  # as a share of the shorter side
    is_frame: bool

    @property
    def colours(self) -> tuple[str, ...]:
        return (self.colour,)

    def cover(self, image: np.ndarray) -> np.ndarray:
        return np.where(self._mask(image.shape[:2])[..., None], np.array(COLOURS[self.colour], np.uint8), image)

    def offset_xy(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return where in a covered image the rest begins."""
        strip = self._strip(size_hw) if self.is_frame else 0
        return strip, strip

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Cut the strip off."""
        height, width = image.shape[:2]
        strip = self._strip((height, width))
        return image[strip : height - strip, strip : width - strip] if self.is_frame else image[: height - strip]

    def score(self, image: np.ndarray) -> float:
        return rescale_iou(find_colour(image, self.colour), self._mask(image.shape[:2]))

    def _strip(self, size_hw: tuple[int, int]) -> int:
        return round(self.thickness * min(size_hw))

    def _mask(self, size_hw: tuple[int, int]) -> np.ndarray:
        mask = np.ones((*size_hw, 1), bool)
        self.cut(mask)[:] = False
        return mask[..., 0]


def find_colour(image: np.ndarray, colour: str) -> np.ndarray:
    """Return where the image has this colour, [height, width] bool. Strips of up to four pixels do
    not count: the soft edge between red and white is pink.
    """
    mask = Image.fromarray(is_near_colour(image, COLOURS[colour])).convert("L")
    return np.asarray(mask.filter(ImageFilter.MinFilter(5)).filter(ImageFilter.MaxFilter(5))) > 0


def shows_any(image: np.ndarray, colours: tuple[str, ...]) -> bool:
    """Tell whether a patch of one of the colours is visible."""
    return any(find_colour(image, colour).mean() > VISIBLE_SHARE for colour in colours)


def rescale_iou(seen: np.ndarray, wanted: np.ndarray) -> float:
    """Return the overlap as a score: 0 for a wrong outline, 1 for what the VAE can give at most."""
    iou = (seen & wanted).sum() / max(1, (seen | wanted).sum())
    return float(np.clip((iou - WORST_IOU) / (BEST_IOU - WORST_IOU), 0, 1))


# ---- the things ----


def _box(left: float, top: float, right: float, bottom: float) -> tuple[tuple[float, float], ...]:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _arc(centre_xy: tuple[float, float], radius: float, *, turn: float = 1.0) -> tuple[tuple[float, float], ...]:
    """Return the points of a circle, or with turn 0.5 of its upper half."""
    angles = np.pi + 2 * np.pi * turn * np.linspace(0, 1, 49)
    return tuple((centre_xy[0] + radius * np.cos(a), centre_xy[1] + radius * np.sin(a)) for a in angles)


def make_toadstool(cap: str, stem: str) -> Thing:
    """The demo's thing, in two colours."""
    return Thing((Part(stem, _box(0.29, 0.5, 0.71, 0.96)), Part(cap, _arc((0.5, 0.5), 0.5, turn=0.5))), 0.96)


def make_kite(body: str, flag: str, ball: str) -> Thing:
    """Three colours, no symmetry: a body, a flag on its upper left, a ball at its lower right."""
    return Thing(
        (
            Part(body, _box(0.25, 0.3, 0.75, 0.8)),
            Part(flag, ((0.0, 0.45), (0.25, 0.0), (0.5, 0.45))),
            Part(ball, _arc((0.78, 0.78), 0.22)),
        ),
        1.0,
    )


def make_dotted(body: str, dot: str) -> Thing:
    """A disc with a detail: a dot on its upper right."""
    return Thing((Part(body, _arc((0.5, 0.5), 0.5)), Part(dot, _arc((0.64, 0.36), 0.16))), 1.0)


def make_cored(body: str, core: str) -> Thing:
    """A square with a core: a member of a class that the base knows."""
    return Thing((Part(body, _box(0.0, 0.0, 1.0, 1.0)), Part(core, _box(0.27, 0.27, 0.73, 0.73))), 1.0)


def draw_old(size_hw: tuple[int, int], shape: str, colour: str, background: Colour) -> np.ndarray:
    """Draw an old shape in the middle."""
    image = Image.new("RGB", (size_hw[1] * SUPERSAMPLING, size_hw[0] * SUPERSAMPLING), background)
    centre = (image.height / 2, image.width / 2)
    draw_shape(image, shape, centre_yx=centre, radius=0.27 * min(image.size), colour=COLOURS[colour])
    return np.asarray(image.resize((size_hw[1], size_hw[0]), Image.Resampling.BOX))
