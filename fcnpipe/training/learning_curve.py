"""Learning curve of a training as a PNG file, and line charts in general."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 900, 540
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 50, 64
COLOURS = ((31, 95, 168), (214, 96, 20), (44, 140, 70), (150, 50, 140), (110, 110, 110))
INK, PALE = (40, 40, 40), (226, 226, 226)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Content of a line chart."""

    title: str
    """Text above the chart."""
    x_label: str
    """Text below the x axis."""
    y_label: str
    """Text along the y axis."""
    lines: Mapping[str, Points] = field(default_factory=dict)
    """Points (x, y) of each line, by its name in the legend."""
    log_x: bool = False
    """Whether the x axis is logarithmic."""
    log_y: bool = False
    """Whether the y axis is logarithmic."""
    marks: bool = False
    """Whether each point has a dot and its x value a tick label."""
    bars: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Half the height of the error bar at each point, by the line's name; on a logarithmic axis a
    bar that would reach 0 or less is cut off."""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    begin: int
    end: int
    log: bool

    def to_pixel(self, value: float) -> float:
        """Return the pixel position of a value."""
        part = (self._transform(value) - self._transform(self.low)) / (
            self._transform(self.high) - self._transform(self.low)
        )
        return self.begin + part * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return round values within the axis."""
        if not self.log:
            step = _round_up_step((self.high - self.low) / 8)
            first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
            return [n * step for n in range(first, last + 1)]
        decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high > 30 * self.low else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
        found = [m * 10.0**d for d in decades for m in steps]
        return [v for v in found if self.low * 0.999 <= v <= self.high * 1.001]

    def _transform(self, value: float) -> float:
        return log10(value) if self.log else value


def draw_learning_curve(log: Path) -> Path | None:
    """Draw the losses in the log of a training into a PNG file next to the log.

    A step that was logged twice, before and after a resume, is drawn once.

    Returns
    -------
    Path or None
        The PNG file; None if there is no log or it has no losses.
    """
    if not log.exists():
        return None
    found: dict[str, dict[float, float]] = {}
    with log.open(newline="") as file:
        for row in csv.DictReader(file):
            if float(row["loss"]) > 0:
                found.setdefault(row["what"], {})[float(row["step"])] = float(row["loss"])
    lines = {what: sorted(points.items()) for what, points in found.items()}
    chart = Chart("Learning curve", "step", "loss", lines, log_y=True)
    return draw_chart(chart, log.with_suffix(".png")) if lines else None


def draw_chart(chart: Chart, path: Path) -> Path:
    """Draw a chart into a PNG file and return its path."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    points = [point for line in chart.lines.values() for point in line]
    bars = {name: _error_bars(chart, name) for name in chart.bars}
    ends = [end for line in bars.values() for _, *pair in line for end in pair]
    x = _axis([p[0] for p in points], LEFT, WIDTH - RIGHT, chart.log_x)
    y = _axis([p[1] for p in points] + ends, HEIGHT - BOTTOM, TOP, chart.log_y)
    _draw_grid(pen, x, y, sorted({p[0] for p in points}) if chart.marks else x.ticks())
    for colour, (name, line) in zip(COLOURS * len(chart.lines), chart.lines.items(), strict=False):
        places = [(x.to_pixel(a), y.to_pixel(b)) for a, b in line]
        pen.line(places, fill=colour, width=2, joint="curve")
        if chart.marks or len(line) == 1:
            for a, b in places:
                pen.ellipse((a - 4, b - 4, a + 4, b + 4), fill=colour)
        for a, *pair in bars.get(name, []):
            pen.line([(x.to_pixel(a), y.to_pixel(end)) for end in pair], fill=colour, width=1)
    _write_legend(pen, list(chart.lines), [(x.to_pixel(a), y.to_pixel(b)) for a, b in points])
    pen.text((LEFT, 14), chart.title, fill=INK, font=_font(18))
    pen.text(((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 14), chart.x_label, INK, _font(15), anchor="ms")
    _write_vertical(picture, chart.y_label)
    draft = path.with_name(path.name + ".part")
    picture.save(draft, "PNG")
    draft.replace(path)
    return path


def _error_bars(chart: Chart, name: str) -> list[tuple[float, float, float]]:
    """Return (x, lower end, upper end) of each error bar of a line."""
    lowest = (
        min(y for line in chart.lines.values() for _, y in line) / 2 if chart.log_y else -np.inf
    )
    pairs = zip(chart.lines[name], chart.bars[name], strict=True)
    return [(x, max(y - half, lowest), y + half) for (x, y), half in pairs]


def _axis(values: Sequence[float], begin: int, end: int, log: bool) -> _Axis:
    low, high = float(np.min(values)), float(np.max(values))
    if log:
        low, high = low / 1.05, high * 1.05
    else:
        room = 0.04 * (high - low) or 0.5
        low, high = low - (room if low else 0), high + room
    return _Axis(low, high, begin, end, log)


def _round_up_step(step: float) -> float:
    size = 10.0 ** floor(log10(step))
    return next(m * size for m in (1, 2, 5, 10) if m * size >= step * 0.999)


def _draw_grid(pen: ImageDraw.ImageDraw, x: _Axis, y: _Axis, columns: list[float]) -> None:
    format_value: Callable[[float], str] = "{:.6g}".format
    for value in y.ticks():
        pen.line((x.begin, y.to_pixel(value), x.end, y.to_pixel(value)), fill=PALE)
        pen.text((x.begin - 8, y.to_pixel(value)), format_value(value), INK, _font(13), anchor="rm")
    for value in columns:
        pen.line((x.to_pixel(value), y.begin, x.to_pixel(value), y.end), fill=PALE)
        pen.text((x.to_pixel(value), y.begin + 8), format_value(value), INK, _font(13), anchor="mt")
    pen.line((x.begin, y.end, x.begin, y.begin, x.end, y.begin), fill=INK)


def _write_legend(
    pen: ImageDraw.ImageDraw, names: list[str], places: list[tuple[float, float]]
) -> None:
    """Write the names of the lines where they hide the fewest points, preferably at the top right."""
    width, height = 250, 22 * len(names)
    lefts = (WIDTH - RIGHT - width, LEFT + 20, (LEFT + WIDTH - RIGHT - width) // 2)
    corners = [(left, top) for top in (TOP + 6, HEIGHT - BOTTOM - height - 6) for left in lefts]

    def count_hidden(corner: tuple[int, int]) -> int:
        return sum(
            corner[0] <= x <= corner[0] + width and corner[1] <= y <= corner[1] + height
            for x, y in places
        )

    left, top = min(corners, key=count_hidden)
    for number, name in enumerate(names):
        middle, colour = top + 11 + 22 * number, COLOURS[number % len(COLOURS)]
        pen.line((left, middle, left + 30, middle), fill=colour, width=3)
        pen.text((left + 38, middle), name, INK, _font(14), anchor="lm")


def _write_vertical(picture: Image.Image, text: str) -> None:
    label = Image.new("RGB", (HEIGHT - TOP - BOTTOM, 22), "white")
    pen = ImageDraw.Draw(label)
    pen.text((label.width // 2, 11), text, INK, _font(15), anchor="mm")
    picture.paste(label.rotate(90, expand=True), (8, TOP))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
