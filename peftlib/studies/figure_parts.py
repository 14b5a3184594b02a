"""Parts of the figures of results: frames, captions, points over the share that methods tune, names beside points."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from sklearn.isotonic import isotonic_regression

from peftlib.studies.plots import METHOD_COLOURS
from peftlib.studies.tables import label

INK = "0.25"
NAME_SIZE = 9  # points
BESIDE, FAR = 9, 120  # of a name: points beside its point, and how far up and down it may go
CROWD = 50  # points within which others are neighbours


def colour(method: str) -> tuple:
    """The colour of a method in every figure."""
    return METHOD_COLOURS.get(method, (0.35, 0.35, 0.35))


def say(text: str) -> Figure:
    """A figure of one line."""
    figure = plt.figure(figsize=(8, 0.6))
    figure.text(0.01, 0.5, f"Nothing to draw: {text}.", va="center")
    return figure


def bar(std: float) -> float | None:
    """Half the length of an error bar; none where there is no deviation, as of one seed."""
    return None if np.isnan(std) else std


def caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text[:1].upper() + text[1:] + ".", fontsize=9, color=INK, x=0.01, ha="left")


def panels(names: list[str], across: int, size: tuple[float, float], **options) -> tuple[Figure, dict[str, Axes]]:
    """A panel a name, so many across."""
    across = min(across, len(names))
    down = -(-len(names) // across)
    figsize = (max(size[0] * across, 6), size[1] * down)
    figure, axes = plt.subplots(down, across, figsize=figsize, squeeze=False, **options)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    return figure, dict(zip(names, axes.flat, strict=False))


def method_axis(ax: Axes, order: list[str]) -> None:
    """Methods, or what else has a name, down the axis, the first on top."""
    ax.set_yticks(range(len(order)), [label(name) for name in order])
    ax.set_ylim(len(order) - 0.4, -0.6)


def dots(ax: Axes, values: pd.Series, place: float) -> None:
    """Single seeds on a line of ``method_axis``."""
    ax.plot(values, np.full(len(values), place), "o", color=INK, markersize=3.5, markeredgewidth=0)


def against_share(ax: Axes, table: pd.DataFrame) -> None:
    """Points of methods, with their deviation as a bar. ``name_points`` names them, once the figure is complete.

    Args:
        table: rows of ``peftlib.experiments.statistics.summary``: method, mean, std, tuned, in percent.
    """
    shares = table["tuned"].to_numpy()
    low, high = np.floor(np.log10(shares[shares > 0].min(initial=100))), np.log10(max(shares.max(), 100))
    zero = low - 0.6
    x = [zero if share == 0 else np.log10(share) for share in shares]
    for place, row in zip(spread(x, 0.012 * (high - zero)), table.itertuples(), strict=True):
        style: dict[str, Any] = {"color": colour(row.method), "markeredgecolor": INK, "markersize": 9, "elinewidth": 2}
        ax.errorbar(place, row.mean, bar(row.std), fmt="o", label=label(row.method), **style)
    ticks = np.arange(low, int(high) + 1)
    ax.set_xticks([zero, *ticks], ["0", *(f"{10.0**tick:g}" for tick in ticks)])
    ax.set_xticks([tick + np.log10(k) for tick in ticks[:-1] for k in range(2, 10)], minor=True)
    ax.text(low - 0.3, 0, "//", transform=ax.get_xaxis_transform(), ha="center", va="center", backgroundcolor="white")
    ax.set_xlim(zero - 0.3, high + 0.8)  # room for a name
    ax.set_xlabel("tuned share of the encoder, % (log)")
    ax.margins(y=0.12)


def spread(values, gap: float) -> np.ndarray:
    """Numbers moved as little as it takes (least squares) to lie a gap apart, in the same order."""
    values = np.asarray(values, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = gap * np.arange(len(values))
    moved = np.empty_like(values)
    moved[order] = isotonic_regression(values[order] - steps) + steps
    return moved


def name_points(figure: Figure, bold: frozenset[str] = frozenset()) -> None:
    """Write each point's name near it, so that no name covers a name, a point or a bar; the figure's size is final.

    Args:
        bold: names to stress.
    """
    figure.canvas.draw()
    figure.set_layout_engine("none")  # places are found in the layout that was just drawn
    for ax in figure.axes:
        bars = sorted((bar for bar in ax.containers if bar.get_label()), key=lambda bar: -bar[0].get_ydata()[0])
        marks = [box for bar in bars for box in _boxes(ax, bar)]
        names: list[Bbox] = []
        lines: list[Bbox] = []
        points = ax.transData.transform([bar[0].get_xydata()[0] for bar in bars]) if bars else np.empty((0, 2))
        for i, bar in enumerate(bars):
            weight = "bold" if bar.get_label() in bold else "normal"
            text = ax.annotate(
                str(bar.get_label()), bar[0].get_xydata()[0], (0, 0), textcoords="offset points", va="center",
                fontsize=NAME_SIZE, weight=weight, color="black", annotation_clip=False,
            )  # fmt: skip
            others = (np.delete(points, i, axis=0) - points[i]) / _pixels(ax)
            x, y = _place(ax, points[i], text.get_window_extent().size, _leaning(others), marks, names, lines)
            text.set_position((x, y))
            text.set_horizontalalignment("left" if x > 0 else "right")
            names.append(text.get_window_extent().padded(1.5))
            if _is_far(x, y):
                lines += _trail(points[i], np.multiply((x, y), _pixels(ax)))
                line = {"arrowstyle": "-", "color": bar[0].get_color(), "linewidth": 1.2, "shrinkA": 0, "shrinkB": 4}
                ax.annotate("", text.xy, (x, y), textcoords="offset points", arrowprops=line)


def _pixels(ax: Axes) -> float:
    """Pixels a point."""
    return ax.figure.dpi / 72


def _is_far(x: float, y: float) -> bool:
    return max(abs(x), abs(y)) > BESIDE


def _leaning(others: np.ndarray) -> tuple[int, int]:
    """Which side of a point has fewer neighbours: 1 is right, 1 is up. others: (n, 2) seen from the point."""
    near = others[(np.abs(others) < CROWD).all(axis=1)]
    right, up = np.sum(near > 0, axis=0) <= np.sum(near < 0, axis=0)
    return (1 if right else -1), (1 if up else -1)


def _place(ax: Axes, point, size, lean, marks: list[Bbox], names: list[Bbox], lines: list[Bbox]) -> tuple[int, int]:
    """Offset in points of a name from its point: near, on the side it leans to, its line through no name or line.

    Args:
        point, size: (x, y) of the point, (width, height) of the name, in pixels.
        marks, names, lines: what is covered already; a name never lies on it where there is any free place.
    """
    steps = itertools.product((1, -1), (BESIDE, 3 * BESIDE, 6 * BESIDE, 10 * BESIDE), range(-FAR, FAR + 1, 3))
    ways = [(side * across, up) for side, across, up in steps]
    length = {(x, y): abs(y) + abs(x) + 12 * (x * lean[0] < 0) + 6 * (y * lean[1] < 0) for x, y in ways}
    best, least = (lean[0] * BESIDE, 0), float("inf")
    for x, y in sorted(ways, key=lambda way: (length[way], way)):
        if length[x, y] >= least:
            break
        offset = np.multiply((x, y), _pixels(ax))
        left = point[0] + offset[0] - (size[0] if x < 0 else 0)
        box = Bbox.from_bounds(left, point[1] + offset[1] - size[1] / 2, *size).padded(1.5)
        inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
        if inside and not box.count_overlaps(marks + names + lines):
            line = _trail(point, offset) if _is_far(x, y) else []
            cost = length[x, y] + 15 * sum(part.count_overlaps(names) + part.count_overlaps(lines) for part in line)
            if cost < least:
                best, least = (x, y), cost
    return best


def _trail(point, offset) -> list[Bbox]:
    """What a line from beside a point to an offset from it covers, in pixels, in small squares."""
    return [Bbox.from_extents(*(point + t * offset - 1), *(point + t * offset + 1)) for t in np.linspace(0.3, 0.95, 12)]


def _boxes(ax: Axes, bar) -> list[Bbox]:
    """What a point and its bar cover, in pixels."""
    x, y = ax.transData.transform(np.column_stack(bar[0].get_data()))[0]
    half = 5 * _pixels(ax)
    boxes = [Bbox([[x - half, y - half], [x + half, y + half]])]
    for line in bar[2]:
        (x, bottom), (_, top) = ax.transData.transform(line.get_segments()[0])
        boxes.append(Bbox([[x - 1, bottom], [x + 1, top]]))
    return boxes
