"""Small charts as SVG text for an HTML page, whose colors they use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 26, 12, 44
WIDTH_OF_DIGIT = 7  # at the size of the labels
LABEL_GAP = 10  # between the labels of an axis

# Okabe and Ito's palette, which color-blind readers can distinguish. Yellow is left out, being too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666")
SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Point:
    """A method in a scatter plot."""

    name: str
    x: float
    y: float
    style: int
    x_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """A method in a line plot."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int


@dataclass(frozen=True)
class Axis:
    """Range and ticks of an axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool

    def place(self, value: float, start: float, end: float) -> float:
        """Map a value to a position between `start` and `end`."""
        low, high, at = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return start + (end - start) * (at - low) / (high - low)


def linear_axis(values: Sequence[float], most: int = 6) -> Axis:
    """An axis with round ticks that contains all values with a margin."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high), 1) * 0.05
    low, high = low - room, high + room
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    ticks = tuple(step * i for i in range(first, math.floor(high / step) + 1))
    return Axis(low, high, ticks, False)


def log_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis that contains all values, which must be positive."""
    low, high = min(values) / 1.2, max(values) * 1.2
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = tuple(f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high)
        if len(ticks) >= 3:
            return Axis(low, high, ticks, True)
    return Axis(low, high, (min(values), max(values)) if min(values) < max(values) else (min(values),), True)


def scatter(points: Sequence[Point], front: Sequence[int], x_label: str, x_text: Callable[[float], str]) -> str:
    """PSNR against a cost on a logarithmic axis, with the Pareto front as a stepped line.

    Args:
        front: indices of the points on the front, in order of increasing x.
        x_text: formats a value of the x axis.
    """
    spans = [value for point in points for value in (*(point.x_range or ()), point.x)]
    x, y = log_axis(spans), linear_axis([point.y for point in points])
    body = [_frame(x, y, x_label, x_text)]
    if len(front) > 1:
        stairs: list[str] = []
        for i in front:
            px, py = _at(x, y, points[i].x, points[i].y)
            stairs.append(f"M{px:.1f},{py:.1f}" if not stairs else f"H{px:.1f}V{py:.1f}")
        body.append(f'<path class="front" d="{"".join(stairs)}"/>')
    for point in points:
        px, py = _at(x, y, point.x, point.y)
        title = f"<title>{escape(point.name)}: {point.y:.2f} dB, {escape(x_text(point.x))}</title>"
        if point.x_range:
            ends = [_at(x, y, value, point.y)[0] for value in point.x_range]
            body.append(_stroke(f"M{ends[0]:.1f},{py:.1f}H{ends[1]:.1f}", point.style, 1.5))
        body.append(f"<g>{title}{marker(point.style, px, py)}</g>")
    return _svg(body, f"PSNR against {x_label}")


def line_plot(lines: Sequence[Line], x_label: str, x_text: Callable[[float], str]) -> str:
    """PSNR against time on a logarithmic axis. Several lines of one style are repetitions of one method."""
    points = [point for line in lines for point in line.points]
    x, y = log_axis([point[0] for point in points]), linear_axis([point[1] for point in points])
    body = [_frame(x, y, x_label, x_text)]
    for line in lines:
        places = [_at(x, y, *point) for point in line.points]
        body.append(_stroke("M" + "L".join(f"{px:.1f},{py:.1f}" for px, py in places), line.style, 2))
        for (px, py), (time, value) in zip(places, line.points, strict=True):
            title = f"<title>{escape(line.name)}: {value:.2f} dB after {escape(x_text(time))}</title>"
            body.append(f"<g>{title}{marker(line.style, px, py, 3)}</g>")
    return _svg(body, f"PSNR against {x_label}")


def marker(style: int, x: float, y: float, radius: float = 6) -> str:
    """The marker of a method, with its color and shape."""
    color, shape, r = COLORS[style % len(COLORS)], SHAPES[style // len(COLORS) % len(SHAPES)], radius
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{color}"/>'
    corners = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "diamond": [(0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)],
        "triangle": [(0, -1.2 * r), (1.1 * r, r), (-1.1 * r, r)],
    }[shape]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}" fill="{color}"/>'


def _stroke(path: str, style: int, width: float) -> str:
    return f'<path d="{path}" fill="none" stroke="{COLORS[style % len(COLORS)]}" stroke-width="{width}"/>'


def _at(x: Axis, y: Axis, x_value: float, y_value: float) -> tuple[float, float]:
    return x.place(x_value, LEFT, WIDTH - RIGHT), y.place(y_value, HEIGHT - BOTTOM, TOP)


def _frame(x: Axis, y: Axis, x_label: str, x_text: Callable[[float], str]) -> str:
    parts = []
    for tick in y.ticks:
        at = y.place(tick, HEIGHT - BOTTOM, TOP)
        parts.append(f'<path class="grid" d="M{LEFT},{at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    free = 0.0  # where the next label may start
    for tick in x.ticks:
        at, below = x.place(tick, LEFT, WIDTH - RIGHT), HEIGHT - BOTTOM + 16
        parts.append(f'<path class="grid" d="M{at:.1f},{TOP}V{HEIGHT - BOTTOM}"/>')
        label = x_text(tick)
        half = len(label) * WIDTH_OF_DIGIT / 2
        if at - half >= free:
            parts.append(f'<text x="{at:.1f}" y="{below}" text-anchor="middle">{escape(label)}</text>')
            free = at + half + LABEL_GAP
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    height = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(12 {height}) rotate(-90)" text-anchor="middle">PSNR (dB)</text>')
    return "".join(parts)


def _svg(body: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'
    )
