"""Parts of the figures of results: frames, captions, points over the share that methods tune, names beside points."""

import itertools

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from sklearn.isotonic import isotonic_regression

from peftlib.plots import METHOD_COLOURS
from peftlib.tables import label

INK = "0.25"
NAME_SIZE = 9  # points
BESIDE, FAR = 9, 72  # of a name: points beside its point, and how far up and down it may go
CROWD = 40  # pixels within which points are neighbours


def colour(method: str) -> tuple:
    """The colour of a method in every figure."""
    return METHOD_COLOURS.get(method, (0.35, 0.35, 0.35))


def say(text: str) -> Figure:
    """A figure of one line."""
    figure = plt.figure(figsize=(8, 0.6))
    figure.text(0.01, 0.5, f"Nothing to draw: {text}.", va="center")
    return figure


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
    """Methods down the axis, the first on top."""
    ax.set_yticks(range(len(order)), [label(name) for name in order])
    ax.set_ylim(len(order) - 0.4, -0.6)


def against_share(ax: Axes, table: pd.DataFrame) -> None:
    """Points of methods, with their deviation as a bar. ``name_points`` names them, once the figure is complete.

    Args:
        table: rows of ``peftlib.scoring.summary``: method, mean, std, tuned, in percent.
    """
    shares = table["tuned"].to_numpy()
    low, high = np.floor(np.log10(shares[shares > 0].min(initial=100))), np.log10(max(shares.max(), 100))
    zero = low - 0.6
    x = [zero if share == 0 else np.log10(share) for share in shares]
    for place, row in zip(spread(x, 0.012 * (high - zero)), table.itertuples(), strict=True):
        style = {"color": colour(row.method), "markeredgecolor": INK, "markersize": 9, "elinewidth": 2}
        ax.errorbar(place, row.mean, None if np.isnan(row.std) else row.std, fmt="o", label=label(row.method), **style)
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
    """Write each point's name beside it, so that no name covers a name, a point or a bar; the figure's size is final.

    Args:
        bold: names to stress.
    """
    figure.canvas.draw()
    figure.set_layout_engine("none")  # places are found in the layout that was just drawn
    for ax in figure.axes:
        bars = sorted((bar for bar in ax.containers if bar.get_label()), key=lambda bar: -bar[0].get_ydata()[0])
        marks, written = [box for bar in bars for box in _boxes(ax, bar)], []
        points = ax.transData.transform([bar[0].get_xydata()[0] for bar in bars]) if bars else []
        for i, bar in enumerate(bars):
            beside = [x for x, y in np.delete(points, i, axis=0) - points[i] if abs(y) < CROWD]
            rightmost = min([x for x in beside if x >= 0], default=CROWD) >= CROWD
            left = not rightmost and min([-x for x in beside if x < 0], default=CROWD) >= CROWD
            weight = "bold" if bar.get_label() in bold else "normal"
            written += _name(ax, bar, points[i], marks, written, -1 if left else 1, weight)


def _boxes(ax: Axes, bar) -> list[Bbox]:
    """What a point and its bar cover, in pixels."""
    pixels = ax.figure.dpi / 72
    x, y = ax.transData.transform(np.column_stack(bar[0].get_data()))[0]
    boxes = [Bbox([[x - 5 * pixels, y - 5 * pixels], [x + 5 * pixels, y + 5 * pixels]])]
    for line in bar[2]:
        (x, bottom), (_, top) = ax.transData.transform(line.get_segments()[0])
        boxes.append(Bbox([[x - pixels, bottom], [x + pixels, top]]))
    return boxes


def _name(ax: Axes, bar, point, marks: list[Bbox], written: list[Bbox], side: int, weight: str) -> list[Bbox]:
    """Place one name at the free place nearest its point, rather on one side (1 is right), with a line if it is far.

    Args:
        point: (x, y) in pixels.
        marks: what points and bars cover; written: what names and their lines cover.

    Returns:
        what the name and its line cover.
    """
    where = bar[0].get_xydata()[0]
    style = {"va": "center", "fontsize": NAME_SIZE, "weight": weight, "color": "black", "annotation_clip": False}
    text = ax.annotate(bar.get_label(), where, (0, 0), textcoords="offset points", **style)
    ways = itertools.product((side, -side), (BESIDE, 3 * BESIDE, 6 * BESIDE), range(-FAR, FAR + 1, 3))
    for along, across, up in sorted(ways, key=lambda way: (abs(way[2]) + way[1] + 12 * (way[0] != side), way)):
        text.set_position((along * across, up))
        text.set_ha("left" if along > 0 else "right")
        box, far = text.get_window_extent().padded(1.5), max(across, abs(up)) > BESIDE
        line = _trail(point, np.multiply((along * across, up), ax.figure.dpi / 72)) if far else []
        inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
        if inside and not box.count_overlaps(marks + written) and not any(b.count_overlaps(written) for b in line):
            if far:
                ends = {"arrowstyle": "-", "color": bar[0].get_color(), "linewidth": 1.2, "shrinkA": 0, "shrinkB": 4}
                ax.annotate("", where, (along * across, up), textcoords="offset points", arrowprops=ends)
            return [box, *line]
    return [box]  # no free place: many methods in a small panel


def _trail(point, offset) -> list[Bbox]:
    """What a line from beside a point to an offset from it covers, in pixels, in small squares."""
    return [Bbox.from_extents(*(point + t * offset - 1), *(point + t * offset + 1)) for t in np.linspace(0.3, 0.95, 12)]
