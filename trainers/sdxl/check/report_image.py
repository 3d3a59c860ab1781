"""The flight check as a picture: its numbers, the buckets in true proportion, what cropping costs,
near-duplicates, and the findings.
"""

from collections.abc import Iterator, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from ...dataset.buckets import Size, shown_size
from ...dataset.dataset import counted
from .report import CheckFinding, FlightReport, Level, PictureUse

WIDTH, MARGIN, GAP, PADDING = 1280, 28, 20, 22
INNER_WIDTH = WIDTH - 2 * MARGIN
_PAPER, _CARD, _EDGE, _INK, _FAINT, _BAR, _TRACK = (
    "#f2f4f7",
    "#ffffff",
    "#e4e7ec",
    "#101828",
    "#667085",
    "#2563eb",
    "#e4e7ec",
)
_GOOD, _FAIR, _BAD = "#17b26a", "#f79009", "#d92d20"
_LEVEL_COLOURS: dict[Level, str] = {"error": _BAD, "warning": _FAIR, "note": "#98a2b3"}
MAX_BUCKETS, MAX_WORST, MAX_GROUPS, MAX_FINDINGS = 18, 8, 6, 24
LOSS_BINS = (0.01, 0.05, 0.10, 0.15, 0.20, 0.25, 0.35, 1.0)  # upper ends, of the area


def draw_flight_check(report: FlightReport) -> Image.Image:
    """RGB, 1280 pixels wide; as high as it needs."""
    sections = [_header(report), _numbers(report)]
    if report.uses:
        sections += [_buckets(report), _cropping(report)]
    if report.duplicate_groups:
        sections.append(_duplicates(report))
    if report.findings:
        sections.append(_findings(report.findings))
    picture = Image.new("RGB", (WIDTH, sum(section.height + GAP for section in sections) + 2 * MARGIN - GAP), _PAPER)
    top = MARGIN
    for section in sections:
        picture.paste(section, (MARGIN, top))
        top += section.height + GAP
    return picture


# ---- header and numbers ----


def _header(report: FlightReport) -> Image.Image:
    section = Image.new("RGB", (INNER_WIDTH, 52), _PAPER)
    pen = ImageDraw.Draw(section)
    verdict, font = report.verdict, _font(20)
    badge_width = round(pen.textlength(verdict, font)) + 36
    pen.text(
        (0, 26),
        _fitted(f"Flight check: {report.name}", _font(32), INNER_WIDTH - badge_width - GAP),
        fill=_INK,
        font=_font(32),
        anchor="lm",
    )
    colour = _BAD if report.is_refused else _FAIR if report.of_level("error") or report.of_level("warning") else _GOOD
    pen.rounded_rectangle((INNER_WIDTH - badge_width, 6, INNER_WIDTH - 1, 46), radius=20, fill=colour)
    pen.text((INNER_WIDTH - badge_width / 2, 26), verdict, fill="#ffffff", font=font, anchor="mm")
    return section


def _numbers(report: FlightReport) -> Image.Image:
    """A tile for each number, and below it what it consists of."""
    tiles = report.tiles()
    width = (INNER_WIDTH - GAP * (len(tiles) - 1)) // len(tiles)
    section = Image.new("RGB", (INNER_WIDTH, 118), _PAPER)
    for index, (title, value, detail) in enumerate(tiles):
        tile, pen = _card(width, 118)
        pen.text((PADDING, 18), title, fill=_FAINT, font=_font(15))
        pen.text((PADDING, 42), _fitted(value, _font(28), width - 2 * PADDING), fill=_INK, font=_font(28))
        pen.text((PADDING, 84), _fitted(detail, _font(14), width - PADDING - 8), fill=_FAINT, font=_font(14))
        section.paste(tile, (index * (width + GAP), 0))
    return section


# ---- buckets ----

_RECTANGLE, _CELL_WIDTH = 150, 196
_CELL_HEIGHT = _RECTANGLE + 82


def _buckets(report: FlightReport) -> Image.Image:
    buckets = report.buckets
    shown = sorted(buckets, key=lambda size: -_num_samples(buckets[size]))[:MAX_BUCKETS]
    shown = [size for size in buckets if size in shown]
    per_row = (INNER_WIDTH - 2 * PADDING) // _CELL_WIDTH
    num_rows = -(-len(shown) // per_row)
    hidden = len(buckets) - len(shown)
    card, pen = _card(INNER_WIDTH, 56 + num_rows * (_CELL_HEIGHT + 10) + (34 if hidden else 4))
    _title(pen, "Buckets", f"{counted(len(buckets), 'size')} at which the pictures are trained, in true proportion")
    longest = max(max(size) for size in shown)
    most = max(map(_num_samples, buckets.values()))
    for index, size in enumerate(shown):
        row, column = divmod(index, per_row)
        cell = _bucket(report, size, buckets[size], scale=_RECTANGLE / longest, most=most)
        card.paste(cell, (PADDING + column * _CELL_WIDTH, 60 + row * (_CELL_HEIGHT + 10)))
    if hidden:
        pen.text(
            (PADDING, card.height - 32),
            f"and {counted(hidden, 'more bucket')} with fewer pictures",
            fill=_FAINT,
            font=_font(15),
        )
    return card


def _num_samples(uses: Sequence[PictureUse]) -> int:
    return sum(use.num_samples for use in uses)


def _bucket(report: FlightReport, size: Size, uses: Sequence[PictureUse], *, scale: float, most: int) -> Image.Image:
    """Some of its pictures in a rectangle of its shape, its size, and a bar as long as its
    share.
    """
    cell = Image.new("RGB", (_CELL_WIDTH, _CELL_HEIGHT), _CARD)
    pen = ImageDraw.Draw(cell)
    height, width = (max(8, round(side * scale)) for side in size)
    left, top = (_CELL_WIDTH - 16 - width) // 2, _RECTANGLE - height
    cell.paste(_mosaic(report, uses, width, height), (left, top))
    pen.rectangle((left, top, left + width - 1, top + height - 1), outline=_INK)
    middle, samples = (_CELL_WIDTH - 16) / 2, _num_samples(uses)
    pen.text((middle, _RECTANGLE + 22), shown_size(size), fill=_INK, font=_font(17), anchor="mm")
    pen.rounded_rectangle((0, _RECTANGLE + 38, _CELL_WIDTH - 16, _RECTANGLE + 45), radius=3, fill=_TRACK)
    pen.rounded_rectangle(
        (0, _RECTANGLE + 38, max(7, (_CELL_WIDTH - 16) * samples / most), _RECTANGLE + 45), radius=3, fill=_BAR
    )
    text = counted(len(uses), "picture") + (f", {samples} samples" if samples != len(uses) else "")
    pen.text((middle, _RECTANGLE + 62), text, fill=_FAINT, font=_font(14), anchor="mm")
    return cell


def _mosaic(report: FlightReport, uses: Sequence[PictureUse], width: int, height: int) -> Image.Image:
    """One, four or nine pictures as they are trained: their tiles have the bucket's own shape."""
    side = 3 if len(uses) >= 9 else 2 if len(uses) >= 4 else 1
    mosaic = Image.new("RGB", (width, height), _TRACK)
    for index, use in enumerate(uses[: side * side]):
        row, column = divmod(index, side)
        left, top = column * width // side, row * height // side
        right, bottom = (column + 1) * width // side, (row + 1) * height // side
        thumbnail = report.thumbnails[use.image.name]
        tile = thumbnail.resize(
            (max(1, right - left), max(1, bottom - top)), Image.Resampling.LANCZOS, _crop_box(use, thumbnail)
        )
        mosaic.paste(tile, (left, top))
    return mosaic


def _crop_box(use: PictureUse, thumbnail: Image.Image) -> tuple[float, float, float, float]:
    """What of the thumbnail is trained: left, top, right, bottom."""
    crop = use.crop
    x_scale, y_scale = thumbnail.width / crop.resized_hw[1], thumbnail.height / crop.resized_hw[0]
    top, left = crop.top_left_yx
    return left * x_scale, top * y_scale, (left + crop.target_hw[1]) * x_scale, (top + crop.target_hw[0]) * y_scale


# ---- cropping ----

_HISTOGRAM_WIDTH, _CROPPING_HEIGHT, _WORST_SIZE = 430, 458, 140


def _cropping(report: FlightReport) -> Image.Image:
    section = Image.new("RGB", (INNER_WIDTH, _CROPPING_HEIGHT), _PAPER)
    section.paste(_loss_histogram(report.uses), (0, 0))
    section.paste(_worst_cropped(report), (_HISTOGRAM_WIDTH + GAP, 0))
    return section


def _loss_histogram(uses: Sequence[PictureUse]) -> Image.Image:
    card, pen = _card(_HISTOGRAM_WIDTH, _CROPPING_HEIGHT)
    _title(pen, "Loss by cropping", "pictures, by share of area")
    starts = (0.0, *LOSS_BINS[:-1])
    counts = [sum(start <= use.lost_share < end for use in uses) for start, end in zip(starts, LOSS_BINS, strict=True)]
    base, top, left = _CROPPING_HEIGHT - 66, 96, PADDING
    step = (_HISTOGRAM_WIDTH - 2 * PADDING) / len(LOSS_BINS)
    pen.line((left, base, _HISTOGRAM_WIDTH - PADDING, base), fill=_FAINT)
    for index, (count, end) in enumerate(zip(counts, LOSS_BINS, strict=True)):
        x, height = left + index * step, (base - top) * count / max(counts)
        if count:
            pen.rectangle((x + 4, base - max(3, height), x + step - 4, base - 1), fill=_loss_colour(starts[index]))
            pen.text((x + step / 2, base - max(3, height) - 6), str(count), fill=_INK, font=_font(15), anchor="mb")
        label = f"< {end:.0%}" if index == 0 else f"{starts[index]:.0%}" + ("+" if end == LOSS_BINS[-1] else "")
        pen.text((x + step / 2, base + 10), label, fill=_FAINT, font=_font(13), anchor="mt")
    mean = sum(use.lost_share for use in uses) / len(uses)
    pen.text((PADDING, _CROPPING_HEIGHT - 34), f"{mean:.1%} on average", fill=_FAINT, font=_font(14))
    return card


def _loss_colour(share: float) -> str:
    return _BAD if share >= 0.25 else _FAIR if share >= 0.10 else _GOOD


def _worst_cropped(report: FlightReport) -> Image.Image:
    width = INNER_WIDTH - _HISTOGRAM_WIDTH - GAP
    card, pen = _card(width, _CROPPING_HEIGHT)
    _title(pen, "Cropped most", "what is trained is bright and framed")
    worst = sorted(report.uses, key=lambda use: -use.lost_share)[:MAX_WORST]
    step = (width - 2 * PADDING) // 4
    for index, use in enumerate(worst):
        row, column = divmod(index, 4)
        left, top = PADDING + column * step, 64 + row * 196
        picture = _framed(report.thumbnails[use.image.name], use)
        card.paste(picture, (left, top + _WORST_SIZE - picture.height))
        pen.text(
            (left, top + _WORST_SIZE + 8), _fitted(use.image.name, _font(13), step - 14), fill=_FAINT, font=_font(13)
        )
        pen.text(
            (left, top + _WORST_SIZE + 25),
            f"{use.lost_share:.0%} cut away",
            fill=_loss_colour(use.lost_share),
            font=_font(14),
        )
    return card


def _framed(thumbnail: Image.Image, use: PictureUse) -> Image.Image:
    """The whole picture, dimmed where it is cut away."""
    picture = thumbnail.copy()
    picture.thumbnail((_WORST_SIZE, _WORST_SIZE), Image.Resampling.LANCZOS)
    box = [round(edge) for edge in _crop_box(use, picture)]
    dimmed = Image.blend(picture, Image.new("RGB", picture.size, "#ffffff"), 0.65)
    dimmed.paste(picture.crop((box[0], box[1], box[2], box[3])), (box[0], box[1]))
    _outline(dimmed)
    ImageDraw.Draw(dimmed).rectangle(
        (box[0], box[1], box[2] - 1, box[3] - 1), outline=_loss_colour(use.lost_share), width=2
    )
    return dimmed


# ---- near-duplicates ----

_TWIN_SIZE = 112


def _duplicates(report: FlightReport) -> Image.Image:
    """Groups side by side, as many to a row as there is room for."""
    groups = [_duplicate_group(report, names) for names in report.duplicate_groups[:MAX_GROUPS]]
    rows: list[list[Image.Image]] = [[]]
    for group in groups:
        if rows[-1] and sum(one.width + 28 for one in rows[-1]) + group.width > INNER_WIDTH - 2 * PADDING:
            rows.append([])
        rows[-1].append(group)
    card, pen = _card(INNER_WIDTH, 66 + len(rows) * (groups[0].height + 12))
    hidden = len(report.duplicate_groups) - len(groups)
    _title(
        pen,
        "Near-duplicates",
        counted(len(report.duplicate_groups), "group") + (f", the first {len(groups)} shown" if hidden else ""),
    )
    for index, row in enumerate(rows):
        left = PADDING
        for group in row:
            card.paste(group, (left, 60 + index * (group.height + 12)))
            left += group.width + 28
    return card


def _duplicate_group(report: FlightReport, names: Sequence[str]) -> Image.Image:
    shown = names[:4]
    group = Image.new("RGB", (len(shown) * (_TWIN_SIZE + 8), _TWIN_SIZE + 26), _CARD)
    pen = ImageDraw.Draw(group)
    for index, name in enumerate(shown):
        picture = report.thumbnails[name].copy()
        picture.thumbnail((_TWIN_SIZE, _TWIN_SIZE), Image.Resampling.LANCZOS)
        _outline(picture)
        left = index * (_TWIN_SIZE + 8)
        group.paste(picture, (left, _TWIN_SIZE - picture.height))
        text = f"and {len(names) - 3} more" if index == 3 and len(names) > 4 else name
        pen.text((left, _TWIN_SIZE + 7), _fitted(text, _font(13), _TWIN_SIZE), fill=_FAINT, font=_font(13))
    return group


# ---- findings ----


def _findings(findings: Sequence[CheckFinding]) -> Image.Image:
    lines = [line for finding in findings[:MAX_FINDINGS] for line in _finding_lines(finding)]
    card, pen = _card(INNER_WIDTH, 66 + sum(height for _, _, height in lines) + 10)
    _title(pen, "Findings", "")
    top = 60
    for colour, text, height in lines:
        if colour:
            pen.ellipse((PADDING, top + 4, PADDING + 12, top + 16), fill=colour)
        pen.text(
            (PADDING + 26, top),
            text,
            fill=_INK if colour or height == 24 else _FAINT,
            font=_font(17 if colour or height == 24 else 14),
        )
        top += height
    return card


def _finding_lines(finding: CheckFinding) -> Iterator[tuple[str, str, int]]:
    """(colour of the dot, text, height): the message, wrapped, then up to three pictures."""
    width = INNER_WIDTH - 2 * PADDING - 26
    for index, line in enumerate(_wrapped(finding.message, _font(17), width)):
        yield _LEVEL_COLOURS[finding.level] if index == 0 else "", line, 24
    for line in (
        finding.picture_lines(3 if all(picture.reason for picture in finding.pictures) else 8)
        if finding.pictures
        else ()
    ):
        yield "", _fitted(line, _font(14), width), 20
    yield "", "", 10


# ---- shared ----


def _card(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    card = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(card)
    pen.rounded_rectangle((0, 0, width - 1, height - 1), radius=12, fill=_CARD, outline=_EDGE)
    return card, pen


def _outline(picture: Image.Image) -> None:
    """A white one would melt into the card."""
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=_EDGE)


def _title(pen: ImageDraw.ImageDraw, title: str, explanation: str) -> None:
    pen.text((PADDING, 32), title, fill=_INK, font=_font(21), anchor="ls")
    pen.text(
        (PADDING + pen.textlength(title, _font(21)) + 14, 32), explanation, fill=_FAINT, font=_font(15), anchor="ls"
    )


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fitted(line, font, width) for line in lines]


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut off with "...", where it is too long."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
