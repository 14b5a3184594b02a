"""One style, one colour a method, pictures of images and tokens, figures that are saved the same way each time."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

import peftlib.deflect  # noqa: F401  registers its method and input
from peftlib.files import atomic_path, figures_dir
from peftlib.methods import INPUTS, METHODS

INK = "0.25"
# A colour a method, by its place in the registry; the two that are compared most are fixed and stand out.
METHOD_COLOURS = dict(zip(METHODS, sns.husl_palette(len(METHODS), h=0.12, s=0.6, l=0.6), strict=True)) | {
    "deflect": (0.76, 0.12, 0.28),
    "lora": (0.10, 0.25, 0.52),
}
_PALETTE = sns.color_palette("colorblind")
# Of the covers of spectral_scenes: a hue a pair, light and dark for its members.
_TWELVE = sns.color_palette("Paired")
COVER_COLOURS = (*_TWELVE[2:4], *_TWELVE[6:8], *_TWELVE[4:6], *_TWELVE[8:10], _PALETTE[0], (0.5, 0.5, 0.5))

# Data sets and metrics as people write them; what is not here stands as it is named.
DATASET_NAMES = {
    "eurosat": "EuroSAT", "marida": "MARIDA", "spectral_scenes": "simulated scenes", "so2sat": "So2Sat",
    "phenology": "simulated time series", "brick_kiln": "brick kilns", "forestnet": "ForestNet", "mados": "MADOS",
    "burn_scars": "burn scars",
}  # fmt: skip
METRIC_NAMES = {"macro_f1": "macro F1", "mF1": "macro F1", "miou": "mIoU", "iou_burnt": "IoU"}


def label(name: str) -> str:
    """A method, input, data set or metric as people write it; what has no such name stays as it is."""
    config = METHODS.get(name) or INPUTS.get(name)
    return config.label[:1].upper() + config.label[1:] if config else (DATASET_NAMES | METRIC_NAMES).get(name, name)


def cell_label(input: str, method: str) -> str:
    """``EMB × LoRA``; a method that has one input of its own is named alone."""
    return label(method) if METHODS[method].needs_auxiliary else f"{label(input)} × {label(method)}"


def student_interval(values) -> tuple[float, float]:
    """Student's 95% interval of a mean, for seaborn's ``errorbar``; (nan, nan) for one value."""
    if len(values) < 2:
        return np.nan, np.nan
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def runs_and_intervals(ax: Axes, rows: pd.DataFrame, x: str, y: str, palette: dict, **options) -> None:
    """Down the y axis, for each name: single runs as small dots, beside them the mean with its 95% interval.

    Args:
        palette: name -> colour; its order is that of the axis.
        options: of ``sns.pointplot``, such as another ``errorbar``.
    """
    order = list(palette)
    shared = {"data": rows, "x": x, "y": y, "order": order, "hue": y, "palette": palette, "legend": False, "ax": ax}
    sns.stripplot(**shared, jitter=False, size=3.5, alpha=0.6)
    for dots in ax.collections:
        dots.set_offsets(np.add(dots.get_offsets(), (0, 0.22)))
    style = {"errorbar": student_interval, "linestyle": "none", "markersize": 6, "err_kws": {"linewidth": 1.8}}
    sns.pointplot(**shared | style | options)
    ax.set_ylabel("")


def scale_bar(ax: Axes, metres_per_pixel: float, metres: float) -> None:
    """A bar of so many metres in the lower left corner of a picture."""
    height, outline = ax.get_ylim()[0] + 0.5, [patheffects.withStroke(linewidth=2.5, foreground="black")]
    x, y, length = 0.05 * height, 0.93 * height, metres / metres_per_pixel
    ax.plot([x, x + length], [y, y], color="white", linewidth=2.5, path_effects=outline)
    text = f"{metres:g} m" if metres < 1000 else f"{metres / 1000:g} km"
    ax.text(x, y - 0.03 * height, text, color="white", fontsize=8, path_effects=outline)


def panel_letters(figure: Figure, axes=None) -> None:
    """a, b, c ... in bold at the upper left of each panel."""
    for letter, ax in zip("abcdefghijkl", figure.axes if axes is None else axes, strict=False):
        ax.annotate(
            letter, (0, 1), (-4, 6), xycoords="axes fraction", textcoords="offset points", weight="bold", ha="right"
        )


def use_style() -> None:
    """The style of every figure; call it once at the top of a notebook."""
    sizes = {"axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9, "legend.title_fontsize": 9}
    sizes |= {"xtick.labelsize": 9, "ytick.labelsize": 9, "figure.dpi": 80, "savefig.dpi": 200, "pdf.fonttype": 42}
    frame = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    layout = {"figure.constrained_layout.use": True, "image.interpolation": "nearest"}
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", rc={**sizes, **frame, **layout})


def save_figure(figure: Figure, name: str, profile: str) -> list[Path]:
    """Write ``figures/<profile>/<name>.png`` and ``.pdf``, by rename; the same picture gives the same bytes."""
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    paths = {suffix: figures_dir(profile) / f"{name}.{suffix}" for suffix in metadata}
    for suffix, path in paths.items():
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata[suffix], bbox_inches="tight")
    return list(paths.values())


def show_paths(paths: list[Path]) -> None:
    """Print the figures written, by profile and name."""
    for path in paths:
        print(f"wrote {path.parent.name}/{path.name}")


def composite(image: Tensor, bands: tuple[str, ...], shown: tuple[str, str, str]) -> np.ndarray:
    """Three bands as red, green and blue, each stretched to its 2nd..98th percentile: (C, H, W) -> (H, W, 3)."""
    stack = image[[bands.index(band) for band in shown]].float().cpu().numpy()
    low, high = np.percentile(stack, [2, 98], axis=(1, 2), keepdims=True)
    return np.clip((stack - low) / np.maximum(high - low, 1e-9), 0, 1).transpose(1, 2, 0)


def show_image(ax: Axes, picture: np.ndarray | Tensor, title: str = "", **options):
    """A picture without axes."""
    shown = ax.imshow(np.asarray(picture), **options)
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return shown


def show_map(ax: Axes, values: Tensor, grid: tuple[int, int], title: str = "", label: str = "", **options):
    """One number a patch, as a map with its colour bar. values: (n,)."""
    shown = show_image(ax, values.reshape(grid).float().cpu().numpy(), title, **({"cmap": "viridis"} | options))
    ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)
    return shown


def show_truth(ax: Axes, mask: Tensor, names: tuple[str, ...], title: str = "", ignore_index: int = -1):
    """Class numbers in fixed colours, white where unknown. mask: (H, W). The key is ``class_key``."""
    shown = np.ma.masked_equal(np.asarray(mask), ignore_index)
    return show_image(
        ax, shown, title, cmap=ListedColormap(class_colours(len(names))), vmin=-0.5, vmax=len(names) - 0.5
    )


def class_colours(count: int) -> list[tuple]:
    """A colour a class: those of the simulated covers for ten classes, else an even wheel."""
    return list(COVER_COLOURS) if count == len(COVER_COLOURS) else sns.color_palette("husl", count)


def class_key(figure: Figure, names: tuple[str, ...], ncols: int = 5) -> None:
    """The key of ``show_truth`` under a figure."""
    keys = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in class_colours(len(names))]
    figure.legend(keys, names, loc="outside lower center", ncols=ncols)


def live(draw: Callable[..., Figure], **controls) -> None:
    """Show a figure under widgets that draw it anew. Where no kernel runs, it stands as it was first.

    ``controls``: argument of ``draw`` -> widget with a ``value``. Of ``Figure`` itself, not pyplot's: it is drawn from
    another thread.
    """
    from IPython.display import display
    from ipywidgets import HBox, Image, VBox

    def png() -> bytes:
        figure = draw(**{name: control.value for name, control in controls.items()})
        figure.savefig(buffer := io.BytesIO(), format="png", dpi=80)
        return buffer.getvalue()

    shown = Image(value=png())
    for control in controls.values():
        control.observe(lambda _: setattr(shown, "value", png()), "value")
    view = VBox([HBox(list(controls.values())), shown])
    display(view._repr_mimebundle_() | {"image/png": base64.b64encode(shown.value).decode()}, raw=True)
