"""Drawings of the method, with real pixels and maps: what stays as pretrained, what is new. Lengths in inches."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, FancyBboxPatch, Rectangle
from torch import Tensor

from peftlib.studies.plots import INK

RGB, SPECTRAL = (0.16, 0.42, 0.66), (0.85, 0.40, 0.05)  # the two parts of a token
FROZEN, NEW, PLAIN, BLOCK = "#d6e6f5", "#ffdeb8", "#ffffff", "#f9f9f9"  # boxes


def canvas(height: float) -> tuple[Figure, Axes]:
    """An empty drawing as wide as a page; its texts can be read at half of that."""
    figure = plt.figure(figsize=(7.2, height))
    figure.set_layout_engine("none")  # given to plt.figure, it warns when saved
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.2), ylim=(0, height), autoscale_on=False)
    ax.axis("off")
    return figure, ax


def text(ax: Axes, x: float, y: float, words: str, size: float = 10, colour=INK, ha: str = "center") -> None:
    ax.text(x, y, words, size=size, color=colour, ha=ha, va="center", linespacing=1.15, zorder=3)


def box(ax: Axes, x: float, y: float, width: float, height: float, words: str, fill=PLAIN, below: str = "") -> None:
    """A box around (x, y), with a line below it; a frozen one has a lock, a new one a thick edge."""
    edge, thick = {FROZEN: (RGB, 1.1), NEW: (SPECTRAL, 1.8), PLAIN: (INK, 1.1), BLOCK: ("0.6", 1.0)}[fill]
    corner, shape = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.07"
    ax.add_patch(FancyBboxPatch(corner, width, height, shape, fc=fill, ec=edge, lw=thick, zorder=2))
    text(ax, x, y, words, 12 if "$" in words else 9)
    text(ax, x, y - height / 2 - 0.16, below, 9)
    if fill == FROZEN:
        x, y = x + width / 2 - 0.17, y + height / 2 - 0.17
        ax.add_patch(Rectangle((x, y), 0.11, 0.08, color=edge, lw=0.5, zorder=4))
        ax.add_patch(Arc((x + 0.055, y + 0.08), 0.07, 0.10, theta2=180, color=edge, lw=1.2, zorder=4))


def arrow(ax: Axes, *points, colour=INK) -> None:
    """A line through points, with a head at the last."""
    (*way, before, end) = points
    ax.plot(*zip(*way, before, strict=True), color=colour, lw=1.6, solid_capstyle="round", zorder=2.5)
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    ax.annotate("", end, before, arrowprops=style, zorder=2.5)


def across(ax: Axes, y: float, *spans, colour=INK) -> None:
    """Arrows to the right, each from one x to another."""
    for left, right in spans:
        arrow(ax, (left, y), (right, y), colour=colour)


def plus(ax: Axes, y: float, *places: float) -> None:
    for x in places:
        ax.add_patch(Circle((x, y), 0.13, fc="white", ec=INK, lw=1.1, zorder=3))
        ax.plot([x - 0.07, x + 0.07], [y, y], [x, x], [y - 0.07, y + 0.07], color=INK, lw=1.3, zorder=4)


def picture(ax: Axes, x: float, y: float, width: float, height: float, values, edge=INK, **options) -> None:
    """Pixels in a frame around (x, y)."""
    left, bottom = x - width / 2, y - height / 2
    extent = (left, left + width, bottom, bottom + height)
    ax.imshow(np.asarray(values), extent=extent, aspect="auto", zorder=2, **options)
    ax.add_patch(Rectangle((left, bottom), width, height, fill=False, ec=edge, lw=1.2, zorder=2))


def key(ax: Axes, x: float, y: float, right: float, down: float) -> None:
    """What the two kinds of boxes are, and how far the second is from the first."""
    for i, (fill, words) in enumerate(((FROZEN, "frozen, as pretrained"), (NEW, "new, trained"))):
        box(ax, x + i * right, y - i * down, 0.44, 0.24, "", fill)
        text(ax, x + i * right + 0.3, y - i * down, words, 9, ha="left")


def emb(rgb: np.ndarray, spectral: Mapping[str, Tensor], x_P: Tensor, x_A: Tensor) -> Figure:
    """EMB: one patch becomes x = x_P + x_A.

    rgb: (p, p, 3) in [0, 1]; spectral: name -> (p, p), what f reads of each pixel; x_P, x_A: (d,) of this patch.
    """
    figure, ax = canvas(3.35)
    top, low, middle, pixel = 2.55, 0.85, 1.7, 0.8 / len(rgb)
    text(ax, 0.6, top + 0.57, "red, green, blue", 9)
    picture(ax, 0.6, top, 0.9, 0.9, rgb)
    text(ax, 0.6, low + 0.64, ", ".join(spectral), 9)
    for i, values in enumerate(reversed(list(spectral.values()))):
        picture(ax, 0.72 - 0.12 * i, low + 0.12 - 0.12 * i, 0.8, 0.8, values, cmap="gray")
    ax.add_patch(Rectangle((0.48, low - 0.12), pixel, pixel, fill=False, ec=SPECTRAL, lw=1.8, zorder=3))
    across(ax, top, (1.05, 2.35), (4.25, 5.43), colour=RGB)
    across(ax, low, (1.12, 1.42), (2.02, 2.42), (3.18, 3.5), (4.44, 4.68), (5.2, 5.43), colour=SPECTRAL)
    box(ax, 3.3, top, 1.9, 0.62, "patch embedding", FROZEN)
    box(ax, 1.72, low, 0.6, 0.62, "$f$", NEW, "each pixel")
    box(ax, 3.97, low, 0.94, 0.62, "mean,\ndeviation", below="over the patch")
    box(ax, 4.94, low, 0.52, 0.62, "$g$", NEW)
    spots = np.random.default_rng(3).uniform((2.5, low - 0.3), (3.1, low + 0.3), (28, 2))
    shades = np.asarray(next(iter(spectral.values()))).flatten()[:: len(rgb) ** 2 // 28][:28]
    ax.scatter(spots[:, 0], spots[:, 1], c=shades, s=22, cmap="Oranges", ec=SPECTRAL, lw=0.5, zorder=2)
    text(ax, 2.8, low - 0.47, "a set", 9)
    tokens = (5.52, top, x_P, "$x_P$", RGB), (5.52, low, x_A, "$x_A$", SPECTRAL), (6.82, middle, x_P + x_A, "$x$", INK)
    limit = max(float(values[:9].abs().max()) for _, _, values, _, _ in tokens)
    for x, y, values, name, colour in tokens:  # the first entries of each
        picture(ax, x, y, 0.18, 1.0, values[:9, None], colour, cmap="PuOr_r", vmin=-limit, vmax=limit)
        text(ax, x, y - 0.66, name, 12, colour)
    arrow(ax, (5.61, top), (6.15, top), (6.15, middle + 0.13), colour=RGB)
    arrow(ax, (5.61, low), (6.15, low), (6.15, middle - 0.13), colour=SPECTRAL)
    plus(ax, middle, 6.15)
    across(ax, middle, (6.28, 6.72))
    key(ax, 1.6, middle, 2.05, 0)
    return figure


def uatt(maps: Mapping[tuple[str, str], Tensor], attention: Tensor, image: np.ndarray, query: Sequence[int]) -> Figure:
    """uAtt: the four products of one query, and the attention that their sum gives.

    maps: (query part, key part) -> (rows, columns) of logits, centred; attention: (rows, columns); image: (H, W, 3);
    query: (row, column) of the patch that asks.
    """
    figure, ax = canvas(4.2)

    def framed(x: float, y: float, side: float, values, **options) -> None:
        """A picture with a frame around the query patch."""
        patch = side / len(attention)
        corner = (x - side / 2 + query[1] * patch, y + side / 2 - (query[0] + 1) * patch)
        picture(ax, x, y, side, side, values, **options)
        ax.add_patch(Rectangle(corner, patch, patch, fill=False, ec="lime", lw=1.6, zorder=3))

    parts = {"RGB": (2.6, 2.4, 0.0, "$n_P$", RGB), "spectral": (4.15, 0.85, 0.37, "$n_A$", SPECTRAL)}
    for part, (column, row, beside, name, colour) in parts.items():
        for x, y, kind, matrix in ((column, 3.6, "key", "K"), (0.8, row, "query", "Q")):
            text(ax, x, y + 0.37, f"{kind}: {part}, {name}", 10, colour)
            box(ax, x - beside, y, 0.6, 0.4, f"$W_{matrix}$  ", FROZEN)
            if beside:
                text(ax, x, y, "+", 11)
                box(ax, x + beside, y, 0.6, 0.4, f"$UV_{matrix}$", NEW)
        arrow(ax, (column, 3.4), (column, 3.1), colour=colour)
        across(ax, row, (1.1 + beside, 1.9), colour=colour)
    limit = max(float(values.abs().quantile(0.99)) for values in maps.values())
    for (asks, asked), values in maps.items():
        framed(parts[asked][0], parts[asks][1], 1.4, values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    framed(0.8, 3.58, 0.95, image)
    framed(6.4, 1.625, 1.5, attention, cmap="magma", vmin=0, vmax=float(attention.quantile(0.995)))
    text(ax, 6.4, 2.53, "attention")
    ax.plot([4.93, 5.0, 5.0, 4.93], [0.15, 0.15, 3.1, 3.1], color=INK, lw=1.4)
    text(ax, 5.3, 1.93, "sum,\nsoftmax", 9)
    across(ax, 1.625, (5.0, 5.62))
    key(ax, 5.35, 3.97, 0, 0.36)
    return figure


def deflect(true_colour: np.ndarray, beyond: Tensor) -> Figure:
    """DEFLECT as a whole: the two embeddings, a block with its new parts, and the norm constraint.

    true_colour: (H, W, 3) in [0, 1]; beyond: (H, W), a band that RGB does not show.
    """
    figure, ax = canvas(3.55)
    top, low = 2.6, 0.6  # z, and z_A
    for behind in (0.1, 0.05, 0.0):
        box(ax, 4.44 + behind, 1.745 + behind, 3.96, 3.25, "", BLOCK)
    text(ax, 5.9, 0.28, "block 1 to $L$", 9, "0.4")
    for y, words, values, colour in ((top, "RGB", true_colour, RGB), (low, "other bands", beyond, SPECTRAL)):
        picture(ax, 0.46, y, 0.78, 0.78, values, cmap="gray")
        text(ax, 0.46, y + 0.52, words, 10, colour)
        across(ax, y, (0.85, 1.05), colour=colour)
    box(ax, 1.47, top, 0.84, 0.6, "patch\nembedding", FROZEN)
    box(ax, 1.47, low, 0.84, 0.6, "EMB", NEW)
    across(ax, top, (1.89, 2.02), colour=RGB)
    arrow(ax, (2.15, low), (2.15, top - 0.13), colour=SPECTRAL)
    names = (2.03, top + 0.22, "$x_P$", RGB), (1.99, 1.0, "$x_A$", SPECTRAL), (2.34, top + 0.13, "$z$", INK)
    for x, y, name, ink in names:
        text(ax, x, y, name, 11, ink)
    across(ax, top, (2.28, 2.66), (3.52, 3.76), (4.92, 5.07), (5.33, 5.5), (5.94, 6.07), (6.33, 6.69))
    plus(ax, top, 2.15, 5.2, 6.2)
    for left, right in ((2.53, 5.2), (5.4, 6.2)):  # past attention, past the MLP
        arrow(ax, (left, top), (left, 3.12), (right, 3.12), (right, top + 0.13))
    box(ax, 3.09, top, 0.86, 0.6, "attention", FROZEN)
    box(ax, 5.72, top, 0.44, 0.6, "MLP", FROZEN)
    box(ax, 6.92, top, 0.46, 0.6, "head", NEW)
    across(ax, low, (1.89, 6.85), colour=SPECTRAL)
    text(ax, 5.2, low + 0.17, "$z_A = x_A$, the same for every block", 9, SPECTRAL)
    box(ax, 3.09, 1.42, 0.86, 0.44, "$UV$", NEW)
    for start, end in ((low, 1.2), (1.64, top - 0.3)):
        arrow(ax, (3.09, start), (3.09, end), colour=SPECTRAL)
    box(ax, 4.34, 2.14, 1.16, 1.5, "", below="norm constraint")
    ax.add_patch(Arc((3.95, 1.68), 1.1, 1.1, theta1=-10, theta2=100, ec="0.5", ls=":", lw=1.4, zorder=3))
    turned = (4.5, 1.68, RGB, "$D_{ref}$"), (4.53, 2.49, "0.6", "$D$"), (4.27, 2.127, SPECTRAL, "$D$′")
    for (x, y, shade, name), aside in zip(turned, ((-0.18, -0.15), (0.14, -0.05), (-0.2, -0.03)), strict=True):
        arrow(ax, (3.95, 1.68), (x, y), colour=shade)
        text(ax, x + aside[0], y + aside[1], name, 10, shade)
    key(ax, 0.29, 1.85, 0, 0.32)
    return figure
