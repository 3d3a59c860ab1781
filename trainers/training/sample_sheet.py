"""Sample images put together: a grid of one step, and a sheet that grows with the run."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin

from ..files.atomic_write import atomic_write
from ..files.fonts import load_font, replace_missing

CELL = 192  # pixels of the longer side
HEAD, LABEL = 24, 22  # pixels above the sheet, and above each row
MAX_COLUMNS = 24
FONT_SIZE = 14
_PAPER, _INK = "#ffffff", "#475467"
_KEY = "lora_trainer_columns"  # in the PNG: the steps of the columns, and the sizes of the rows

SampleRows = Sequence[Sequence[Image.Image]]  # one row per prompt, one image per seed


def draw_grid(rows: SampleRows) -> Image.Image:
    """Put the images of each row side by side, and the rows below each other."""
    widths = [sum(image.width for image in row) for row in rows]
    heights = [max(image.height for image in row) for row in rows]
    grid = Image.new("RGB", (max(widths), sum(heights)), _PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            grid.paste(image, (left, top))
            left += image.width
        top += height
    return grid


def extend_sheet(path: Path, rows: SampleRows, *, labels: Sequence[str], step: int) -> None:
    """Add a column with the first image of each row to the sheet at `path`, or begin one. Of more
    than MAX_COLUMNS, every second column goes, but never the first.

    Raises:
        OSError: the sheet cannot be written.
    """
    cells = [_shrink(row[0]) for row in rows]
    columns = {**_read_columns(path, [cell.size for cell in cells]), step: cells}
    steps = thin_out(sorted(columns))
    sheet = _draw_sheet([columns[each] for each in steps], steps, labels)
    facts = PngImagePlugin.PngInfo()
    facts.add_text(_KEY, json.dumps({"steps": steps, "sizes": [cell.size for cell in cells]}))
    with atomic_write(path, overwrite=True) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=facts)


def thin_out(steps: Sequence[int]) -> list[int]:
    """Drop every second step of too many: the first stays, and the last, which is the newest."""
    if len(steps) <= MAX_COLUMNS:
        return list(steps)
    *earlier, last = steps
    return [*earlier[::2], last]


def _shrink(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((CELL, CELL))
    return small


def _read_columns(path: Path, sizes: list[tuple[int, int]]) -> dict[int, list[Image.Image]]:
    """Return the cells by step; nothing if there is no sheet, or one of other prompts or sizes."""
    try:
        with Image.open(path) as sheet:
            facts = json.loads(str(sheet.info[_KEY]))
            if [tuple(size) for size in facts["sizes"]] != sizes:
                return {}
            return {int(step): _cut_column(sheet, column, sizes) for column, step in enumerate(facts["steps"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _cut_column(sheet: Image.Image, column: int, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    left = column * _count_column_width(sizes)
    return [
        sheet.crop((left, top, left + width, top + height))
        for (width, height), top in zip(sizes, _list_tops(sizes), strict=True)
    ]


def _count_column_width(sizes: Sequence[tuple[int, int]]) -> int:
    return max(width for width, _ in sizes)


def _list_tops(sizes: Sequence[tuple[int, int]]) -> list[int]:
    tops, top = [], HEAD
    for _, height in sizes:
        tops.append(top + LABEL)
        top += LABEL + height
    return tops


def _draw_sheet(columns: list[list[Image.Image]], steps: list[int], labels: Sequence[str]) -> Image.Image:
    sizes = [cell.size for cell in columns[0]]
    width, tops = _count_column_width(sizes), _list_tops(sizes)
    sheet = Image.new("RGB", (width * len(columns), tops[-1] + sizes[-1][1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (step, cells) in enumerate(zip(steps, columns, strict=True)):
        pen.text((column * width + 4, 4), f"step {step}", fill=_INK, font=load_font(FONT_SIZE))
        for cell, top in zip(cells, tops, strict=True):
            sheet.paste(cell, (column * width, top))
    for label, top in zip(labels, tops, strict=True):
        font = load_font(FONT_SIZE, label)
        pen.text((4, top - LABEL + 3), replace_missing(font, label), fill=_INK, font=font)
    return sheet
