"""Draws the grid: a column for every LoRA at every strength, a row for every prompt with every
seed, all labelled.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from ..files.fonts import fit, load_font, replace_missing
from ..wording import format_size
from .plan import ComparePlan

MAX_PIXELS = 40_000_000
MAX_SIDE = 16_384  # pixels; browsers and graphics cards show no more
MIN_CELL_SIDE = 64  # pixels; in smaller images nothing can be compared
MARGIN, GAP, GROUP_GAP = 16, 4, 12
PAPER, INK, FAINT, RULE = "#f2f4f7", "#101828", "#667085", "#98a2b3"


@dataclass(frozen=True)
class GridLayout:
    """Where everything is, in pixels. `lefts` and `tops` are of the columns' and rows' images."""

    cell_hw: tuple[int, int]
    label_width: int
    font_size: int
    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    size_hw: tuple[int, int]

    def box(self, column: int, row: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of an image."""
        left, top = self.lefts[column], self.tops[row]
        return left, top, left + self.cell_hw[1], top + self.cell_hw[0]


def lay_out_grid(plan: ComparePlan) -> GridLayout:
    """Lay out the grid at the images' own size, or smaller where it would be too large.

    Raises:
        ValueError: the images would be too small to compare.
    """
    layout = _lay_out(plan, plan.size_hw)
    scale = 1.0
    while max(layout.size_hw) > MAX_SIDE or math.prod(layout.size_hw) > MAX_PIXELS:
        scale *= 0.98
        cell_hw = (round(plan.size_hw[0] * scale), round(plan.size_hw[1] * scale))
        if min(cell_hw) < MIN_CELL_SIDE:
            raise ValueError(
                f"a grid of {len(plan.columns)} columns and {len(plan.rows)} rows of {format_size(plan.size_hw)} "
                f"pixels would show images of less than {MIN_CELL_SIDE} pixels. Give fewer LoRAs, strengths, prompts "
                "or seeds"
            )
        layout = _lay_out(plan, cell_hw)
    return layout


def _lay_out(plan: ComparePlan, cell_hw: tuple[int, int]) -> GridLayout:
    height, width = cell_hw
    font_size = min(max(width // 18, 12), 36)
    label_width = min(max(width // 2, 9 * font_size), 20 * font_size)
    head = MARGIN + 3 * round(1.4 * font_size)
    lefts = _place(MARGIN + label_width + GROUP_GAP, width, [column.number for column in plan.columns])
    tops = _place(head, height, [row.prompt for row in plan.rows])
    size_hw = (tops[-1] + height + MARGIN, lefts[-1] + width + MARGIN)
    return GridLayout(cell_hw, label_width, font_size, lefts, tops, size_hw)


def _place(start: int, side: int, groups: list[int] | list[str]) -> tuple[int, ...]:
    """Place images next to each other, with a wider gap between groups."""
    places = [start]
    for previous, current in pairwise(groups):
        places.append(places[-1] + side + (GAP if previous == current else GROUP_GAP))
    return tuple(places)


class CompareGrid:
    """The image with its labels, into which the images of the plan are put one by one."""

    def __init__(self, plan: ComparePlan) -> None:
        self.layout = lay_out_grid(plan)
        height, width = self.layout.size_hw
        self.image = Image.new("RGB", (width, height), PAPER)
        self._plan = plan
        self._pen = ImageDraw.Draw(self.image)
        self._draw_heads()
        self._draw_row_labels()

    def put(self, column: int, row: int, image: Image.Image) -> None:
        """Put an image in its place, scaled down if the grid's are smaller."""
        height, width = self.layout.cell_hw
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        self.image.paste(image, self.layout.box(column, row)[:2])

    def _draw_heads(self) -> None:
        """Above each group of columns the LoRA with its number, above each column its strength."""
        layout, size = self.layout, self.layout.font_size
        line = round(1.4 * size)
        for number, (first, last) in self._find_groups().items():
            left, right = layout.lefts[first], layout.lefts[last] + layout.cell_hw[1]
            name = f"{number}: {self._plan.checkpoints[number - 1].name}" if number else "without LoRA"
            lines = _wrap_name(name, size, right - left)
            for index, text in enumerate(lines, start=2 - len(lines)):
                self._write((left, MARGIN // 2 + index * line), text, size, INK)
            self._pen.line((left, layout.tops[0] - 4, right - 1, layout.tops[0] - 4), fill=RULE, width=2)
        for column, left in zip(self._plan.columns, layout.lefts, strict=True):
            if column.number:
                text = _shorten_strength(column.strength, size, layout.cell_hw[1])
                self._write((left, MARGIN // 2 + 2 * line), text, size, FAINT)

    def _find_groups(self) -> dict[int, tuple[int, int]]:
        """The first and the last column of each LoRA."""
        groups: dict[int, tuple[int, int]] = {}
        for index, column in enumerate(self._plan.columns):
            first, _ = groups.get(column.number, (index, index))
            groups[column.number] = (first, index)
        return groups

    def _draw_row_labels(self) -> None:
        """The seed at each row, and the prompt at its first seed."""
        layout, size = self.layout, self.layout.font_size
        line = round(1.4 * size)
        for index, (row, top) in enumerate(zip(self._plan.rows, layout.tops, strict=True)):
            lines = []
            if not index or self._plan.rows[index - 1].prompt != row.prompt:
                max_lines = max(1, layout.cell_hw[0] // line - 1)
                lines = _wrap(self._plan.show_prompt(row.prompt), size, layout.label_width, max_lines=max_lines)
            for number, text in enumerate(lines):
                self._write((MARGIN, top + number * line), text, size, INK)
            self._write((MARGIN, top + len(lines) * line), f"seed {row.seed}", size, FAINT)

    def _write(self, place: tuple[int, int], text: str, size: int, colour: str) -> None:
        self._pen.text(place, text, fill=colour, font=load_font(size, text))


def _shorten_strength(strength: float, size: int, width: int) -> str:
    text = f"strength {strength:g}"
    return text if load_font(size).getlength(text) <= width else f"{strength:g}"


def _wrap_name(name: str, size: int, width: int) -> list[str]:
    """One or two lines. A longer name keeps its end, which tells checkpoints apart."""
    first, *others = _wrap(name, size, width, max_lines=3)
    if len(others) < 2:
        return [first, *others]
    font, backwards = load_font(size, name), name[::-1]
    return [first, "..." + backwards[: _count_fitting(backwards, font, width - round(font.getlength("...")))][::-1]]


def _wrap(text: str, size: int, width: int, *, max_lines: int) -> list[str]:
    """Break the text into lines: between words, and inside a word that is wider than a line. The
    last line is cut off with "..." if there is more.
    """
    font = load_font(size, text)
    lines, rest = [], replace_missing(font, text).strip()
    while rest and len(lines) < max_lines - 1:
        end = _find_break(rest, font, width)
        lines.append(fit(rest[:end].rstrip(), font, width))
        rest = rest[end:].lstrip()
    # of the rest only the beginning: `fit` takes off one character after the other
    return [*lines, fit(rest[: _count_fitting(rest, font, width) + 1], font, width)] if rest else lines


def _find_break(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """The length of the first line, which has at least one character."""
    end = max(1, _count_fitting(text, font, width))
    space = text.rfind(" ", 0, end + 1)
    return end if end == len(text) or space <= 0 else space


def _count_fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    return bisect_right(range(len(text) + 1), width, key=lambda end: font.getlength(text[:end])) - 1
