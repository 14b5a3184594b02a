"""Figures and tables of the study of time series: what dates show, and what each approach makes of them."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from peftlib.data import Phenology
from peftlib.data.simulated.phenology import CALENDARS, CLASSES, DAYS, JITTER, greenness
from peftlib.experiments.statistics import paired_gain
from peftlib.studies.figure_parts import INK, caption, dots, method_axis, panels
from peftlib.studies.plots import METHOD_COLOURS, class_colours, class_key, composite, show_image, show_truth
from peftlib.studies.series import APPROACHES, KNOWABLE, SEES, scores
from peftlib.studies.tables import interval, over_seeds

FALSE_COLOURS = ("B08", "B11", "B05")
COMPARED = (  # pairs of approaches whose difference is asked for
    ("DEFLECT, set of dates", "LoRA, dates as bands"),
    ("DEFLECT, sequence of dates", "LoRA, dates as bands"),
    ("DEFLECT, set of dates", "DEFLECT, sequence of dates"),
    ("DEFLECT, set of dates", "DEFLECT, mean over dates with days"),
    ("DEFLECT, mean over dates with days", "DEFLECT, mean over dates"),
    ("DEFLECT, mean over dates with days", "LoRA, mean over dates with days"),
    ("DEFLECT, set of dates", "DEFLECT, set without days"),
)


def scene_figure(scene: int = 0) -> Figure:
    """The dates of one test scene, in red, green and blue and in false colours, and the calendars of its fields.

    Args:
        scene: of the test part.
    """
    data = Phenology("test", scene + 1, 56, view="best")
    images, days, mask = data.scene(scene)
    names = [*(f"{kind}, day {day}" for kind in ("RGB", "infrared") for day in days), "calendars", "when green"]
    figure, frames = panels(names, across=5, size=(2.3, 2.3))
    order = [*names[:4], "calendars", *names[4:8], "when green"]
    for name, ax in zip(order, frames.values(), strict=True):
        if name == "calendars":
            show_truth(ax, mask, CLASSES, "calendar")
        elif name == "when green":
            _draw_calendars(ax)
        else:
            kind, day = name.split(", day ")
            shown = ("B04", "B03", "B02") if kind == "RGB" else FALSE_COLOURS
            image = images[list(days).index(int(day))]
            show_image(ax, composite(image, data.band_set.names, shown), f"{kind}, day {day}")
    class_key(figure, CLASSES, ncols=8)
    return figure


def _draw_calendars(ax) -> None:
    """When each calendar is green, a line of its own, over the days on which pictures are taken."""
    year = np.arange(1, 366)
    for place, (name, colour) in enumerate(zip(CALENDARS, class_colours(len(CLASSES)), strict=False)):
        ax.fill_between(year, place + 0.4, place + 0.4 - 0.8 * greenness(name, year), color=colour, linewidth=0)
    for day in DAYS:
        ax.axvspan(day - JITTER, day + JITTER, color=INK, alpha=0.2, linewidth=0)
    ax.set_yticks([])
    ax.set_ylim(len(CALENDARS) - 0.5, -0.5)
    ax.set_xticks(DAYS)
    ax.set_title("when green, and pictures")


def series_figure(rows: pd.DataFrame) -> Figure:
    """Share of fields' pixels whose calendar is told: means as bars, seeds as dots, what can be known as a line.

    Args:
        rows: of ``peftlib.studies.series.study``.
    """
    found = scores(rows)
    order = [name for name in APPROACHES if name in set(found["approach"])]
    figure, frames = panels(["fields"], across=1, size=(8.2, 0.36 * len(order) + 1.2))
    ax = frames["fields"]
    for place, name in enumerate(order):
        percent = found.loc[found["approach"] == name, "percent"]
        known = KNOWABLE[SEES[name]]
        ax.barh(place, known, height=0.9, color="0.93")
        ax.plot([known, known], [place - 0.45, place + 0.45], color=INK, linewidth=1.5)
        ax.barh(place, percent.mean(), height=0.6, color=METHOD_COLOURS[name.split(",")[0].lower()])
        dots(ax, percent, place)
        ax.annotate(f"{percent.mean():.0f}", (0, place), (4, 0), textcoords="offset points", va="center", color="white")
    method_axis(ax, order)
    ax.set_xlim(0, 102)
    ax.set_xlabel("fields' pixels whose calendar is told, % (six calendars)")
    seeds = found["seed"].nunique()
    caption(
        figure, f"Bars: means of {seeds} seeds, which are the dots. Line and grey: the most that can be known of it"
    )
    return figure


def series_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Approaches down; what can be known, fields and mIoU in percent (mean ± standard deviation over seeds), rate."""
    fields, miou = (scores(rows, metric).groupby("approach") for metric in ("fields", "scene_miou"))
    columns = {
        "knowable, %": {name: f"{KNOWABLE[SEES[name]]:.0f}" for name in APPROACHES},
        "fields, %": fields["percent"].agg(over_seeds),
        "mIoU, %": miou["percent"].agg(over_seeds),
        "tuned": fields["tuned"].first().map("{:,.0f}".format),
        "learning rate": fields["lr"].first().map("{:g}".format),
    }
    order = [name for name in APPROACHES if name in fields.groups]
    return pd.DataFrame(columns, index=pd.Index(order, name="approach"))


def series_gain_text(rows: pd.DataFrame, first: str, second: str) -> str:
    """What one approach tells of fields above another, seed by seed, with its 95% interval, as a line."""
    found = scores(rows).pivot(index="seed", columns="approach", values="percent")
    return f"{first} - {second}: {interval(*paired_gain(found[first], found[second]))}"
