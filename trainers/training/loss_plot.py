"""The loss curve as an image: a light line for every step, a dark one for the running average, and
dots for the validation.
"""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from ..files.fonts import load_font, replace_missing

SIZE = (900, 420)  # width, height
MARGIN = (96, 44, 30, 76)  # left, top, right, bottom
FONT_SIZE = 24  # pixels: a node shows the plot at about a third of its size
LINE_HEIGHT = 34  # pixels, of a legend
_COLOURS = ("#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#be123c", "#0e7490")
_PAPER, _GRID, _INK, _STEP, _AVERAGE, _VALIDATION = "#ffffff", "#e4e7ec", "#475467", "#b9cdf5", "#1d4ed8", "#c2410c"


def draw_loss_plot(
    losses: Sequence[float], *, title: str = "", validation: Sequence[tuple[int, float]] = ()
) -> Image.Image:
    """Plot the loss of each optimizer step, first to last, and the validation's (step, loss)."""
    image = Image.new("RGB", SIZE, _PAPER)
    pen = ImageDraw.Draw(image)
    averages = running_average(losses)
    low, high = _find_limits(losses)
    high = max([high, *(1.15 * loss for _, loss in validation if math.isfinite(loss))])
    _draw_axes(pen, num_steps=len(losses), low=low, high=high)
    for values, colour, width in ((losses, _STEP, 1), (averages, _AVERAGE, 3)):
        points = [
            _locate_point(step, value, num_steps=len(losses), low=low, high=high) for step, value in enumerate(values)
        ]
        if len(points) > 1:
            pen.line(points, fill=colour, width=width, joint="curve")
        elif points:
            pen.ellipse([coordinate + sign * 2 for sign in (-1, 1) for coordinate in points[0]], fill=colour)
    dots = [
        _locate_point(max(0, step - 1), loss, num_steps=len(losses), low=low, high=high)
        for step, loss in validation
        if math.isfinite(loss)
    ]
    if len(dots) > 1:
        pen.line(dots, fill=_VALIDATION, width=2)
    for x, y in dots:
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=_VALIDATION)
    last = f", last average {averages[-1]:.4f}" if averages else ""
    heading = f"{title or 'loss'}{last}"
    font = load_font(FONT_SIZE, heading)
    pen.text((MARGIN[0], 6), replace_missing(font, heading), fill=_INK, font=font)
    return image


def draw_loss_comparison(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Image.Image:
    """Plot the average losses of several runs in one image: (step, loss) of each, by its name."""
    image = Image.new("RGB", (SIZE[0], SIZE[1] + LINE_HEIGHT * len(curves)), _PAPER)
    pen = ImageDraw.Draw(image)
    low, high = _find_limits([loss for points in curves.values() for _, loss in points])
    num_steps = max((step for points in curves.values() for step, _ in points), default=1)
    _draw_axes(pen, num_steps=num_steps, low=low, high=high)
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [_locate_point(step - 1, loss, num_steps=num_steps, low=low, high=high) for step, loss in points]
        if len(places) > 1:
            pen.line(places, fill=colour, width=3, joint="curve")
        _draw_legend(pen, name, colour, top=SIZE[1] + LINE_HEIGHT * number)
    return image


def _draw_legend(pen: ImageDraw.ImageDraw, name: str, colour: str, *, top: int) -> None:
    font = load_font(FONT_SIZE, name)
    pen.line((MARGIN[0], top + LINE_HEIGHT / 2, MARGIN[0] + 40, top + LINE_HEIGHT / 2), fill=colour, width=5)
    pen.text((MARGIN[0] + 52, top + LINE_HEIGHT / 2), replace_missing(font, name), fill=_INK, font=font, anchor="lm")


def running_average(losses: Sequence[float]) -> list[float]:
    """Return the exponential average, with the weights of the first values corrected: it starts at
    the first loss.
    """
    decay = 1 - 1 / max(10, len(losses) / 25)
    total = weight = 0.0
    averages = []
    for loss in losses:
        total, weight = decay * total + (1 - decay) * loss, decay * weight + (1 - decay)
        averages.append(total / weight)
    return averages


def _find_limits(losses: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the loss axis: 0 and a little above the 99th percentile, so that one
    spike does not flatten the curve.
    """
    if not losses:
        return 0.0, 1.0
    ordered = sorted(losses)
    return 0.0, (ordered[int(0.99 * (len(ordered) - 1))] or 1.0) * 1.15


def _locate_point(step: int, value: float, *, num_steps: int, low: float, high: float) -> tuple[float, float]:
    left, top, right, bottom = MARGIN
    x = left + (SIZE[0] - left - right) * step / max(1, num_steps - 1)
    y = SIZE[1] - bottom - (SIZE[1] - top - bottom) * (min(value, high) - low) / (high - low)
    return x, y


def _draw_axes(pen: ImageDraw.ImageDraw, *, num_steps: int, low: float, high: float) -> None:
    for k in range(5):
        value = low + (high - low) * k / 4
        x, y = _locate_point(0, value, num_steps=num_steps, low=low, high=high)
        pen.line((x, y, SIZE[0] - MARGIN[2], y), fill=_GRID)
        pen.text((x - 8, y), f"{value:.2g}", fill=_INK, font=load_font(FONT_SIZE), anchor="rm")
        step = round((num_steps - 1) * k / 4)
        x, y = _locate_point(step, low, num_steps=num_steps, low=low, high=high)
        pen.text((x, y + 10), str(step + 1), fill=_INK, font=load_font(FONT_SIZE), anchor="mt")
    pen.text((SIZE[0] / 2, SIZE[1] - 6), "optimizer step", fill=_INK, font=load_font(FONT_SIZE), anchor="mb")
