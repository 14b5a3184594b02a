"""Figures and tables of the study of sensors: what the grid of wavelengths reads, and what it scores where."""

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from peftlib.data import load
from peftlib.data.simulated.spectral_scenes import CLASSES
from peftlib.experiments.statistics import paired_gain
from peftlib.sensors.bands import band_set
from peftlib.sensors.wavelengths import KNOTS, resampling, surface_bands
from peftlib.studies.figure_parts import caption, dots, method_axis, panels
from peftlib.studies.plots import METHOD_COLOURS
from peftlib.studies.sensors import HYPERSPECTRAL, INTERPOLATED, NEAREST, OWN, REFITTED, SOURCE, TRANSFER
from peftlib.studies.tables import interval, over_seeds

SENSOR_NAMES = {SOURCE: "Sentinel-2", "hls": "HLS", "landsat8": "Landsat 8", HYPERSPECTRAL: "180 bands"}
_WAVELENGTHS, _BANDS, _LORA = METHOD_COLOURS["deflect"], METHOD_COLOURS["lora"], METHOD_COLOURS["slr"]
# (what reads the bands, how it came to them) -> name and colour, from floor to ceiling.
APPROACHES = {
    ("lora, RGB", TRANSFER): ("LoRA, RGB alone", (0.55, 0.55, 0.55)),
    ("bands", NEAREST): ("by bands, nearest band fills in", _BANDS),
    ("bands", INTERPOLATED): ("by bands, interpolated bands fill in", _BANDS),
    ("wavelengths", TRANSFER): ("by wavelengths", _WAVELENGTHS),
    ("wavelengths", REFITTED): ("by wavelengths, statistics refitted", _WAVELENGTHS),
    ("lora, RGB", OWN): ("trained here: LoRA, RGB alone", (0.55, 0.55, 0.55)),
    ("lora", OWN): ("trained here: LoRA, all bands", _LORA),
    ("wavelengths", OWN): ("trained here: by wavelengths", _WAVELENGTHS),
    ("bands", OWN): ("trained here: by bands", _BANDS),
}


def reader(method: str, options: str) -> str:
    """What reads the bands, by a row's method and options."""
    config = json.loads(options)
    if method == "lora":
        return "lora, RGB" if config["new_bands"] == "ignore" else "lora"
    return config.get("spectral", "bands")


def scored(rows: pd.DataFrame, metric: str = "miou") -> pd.DataFrame:
    """Scores in percent, a row a seed: columns sensor, reader, reading, seed, percent. ``rows``: of ``study``."""
    kept = rows[(rows["metric"] == metric) & (rows["split"] == "test")]
    readers = [reader(*pair) for pair in zip(kept["method"], kept["options"], strict=True)]
    return kept[["sensor", "reading", "seed", "tuned"]].assign(reader=readers, percent=100 * kept["value"])


def table(rows: pd.DataFrame, metric: str = "miou") -> pd.DataFrame:
    """Mean and standard deviation over seeds in percent: approaches down, from floor to ceiling, sensors across."""
    text = scored(rows, metric).groupby(["reader", "reading", "sensor"])["percent"].agg(over_seeds).unstack()
    text = text.loc[[key for key in APPROACHES if key in text.index], [s for s in SENSOR_NAMES if s in text]]
    text.index = pd.Index([APPROACHES[key][0] for key in text.index], name=f"{metric}, %")
    return text.fillna("").rename(columns=SENSOR_NAMES).rename_axis(columns=None)


def gain(rows: pd.DataFrame, sensor: str, first: tuple[str, str], second: tuple[str, str], metric: str = "miou"):
    """What the first (reader, reading) scores above the second, in points: ``peftlib.experiments.statistics.paired_gain``."""
    found = scored(rows, metric).pivot(index="seed", columns=["sensor", "reader", "reading"], values="percent")
    return paired_gain(found[sensor, *first], found[sensor, *second])


def gain_text(rows: pd.DataFrame, sensor: str, first: tuple[str, str], second: tuple[str, str]) -> str:
    """``gain`` in mIoU as a line."""
    names = f"{APPROACHES[first][0]} - {APPROACHES[second][0]}"
    return f"{SENSOR_NAMES[sensor]}: {names}: {interval(*gain(rows, sensor, first, second))}"


def sensors_figure(rows: pd.DataFrame) -> Figure:
    """mIoU by approach, a panel a sensor: seeds as dots, their mean as a bar.

    Args:
        rows: of ``peftlib.studies.sensors.study``.
    """
    found = scored(rows)
    seen = set(zip(found["reader"], found["reading"], strict=True))
    order = [key for key in APPROACHES if key in seen]
    names = [sensor for sensor in SENSOR_NAMES if sensor in set(found["sensor"])]
    figure, frames = panels(names, across=4, size=(3.1, 0.36 * len(order) + 1.3), sharex=True, sharey=True)
    for sensor, ax in frames.items():
        for place, key in enumerate(order):
            percent = found[found[["sensor", "reader", "reading"]].eq([sensor, *key]).all(axis=1)]["percent"]
            if percent.empty:
                continue
            shade = APPROACHES[key][1]
            ax.barh(place, percent.mean(), height=0.7, color=shade, alpha=0.9 if key[1] != OWN else 0.45)
            dots(ax, percent, place)
            ax.annotate(
                f"{percent.mean():.1f}", (percent.max(), place), (6, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
        ax.set_title(SENSOR_NAMES[sensor] + (" (trained here)" if sensor == SOURCE else ""))
        ax.set_xlabel("mIoU, %")
    method_axis(frames[names[0]], [APPROACHES[key][0] for key in order])
    frames[names[0]].set_xlim(0, 1.15 * found["percent"].max())
    seeds = found["seed"].nunique()
    text = f"Bars: means of {seeds} seeds, which are the dots. Pale: trained on the sensor itself; else on Sentinel-2"
    caption(figure, text)
    return figure


def spectra_figure(pair: tuple[str, str] = ("healthy canopy", "stressed canopy"), scene: int = 0) -> Figure:
    """Two covers as each sensor has them, and what the grid of wavelengths makes of them.

    Args:
        pair: two classes of ``spectral_scenes``.
        scene: of the test part; one that holds both.
    """
    figure, frames = panels(list(SENSOR_NAMES), across=2, size=(4.8, 2.9), sharex=True, sharey=True)
    for sensor, ax in frames.items():
        data = load("spectral_scenes", split="test", length=scene + 1, sensor=sensor)
        sample, bands = data[scene], band_set(data.bands, data.sensor)
        used = list(surface_bands(bands))
        for name, shade in zip(pair, (METHOD_COLOURS["slr"], METHOD_COLOURS["full"]), strict=True):
            spectrum = sample["image"][:, sample["mask"] == CLASSES.index(name)].mean(1)
            style = {"markersize": 3} if len(used) > 20 else {"markersize": 7, "markerfacecolor": "white"}
            ax.plot(np.array(bands.wavelengths)[used], spectrum[used], "o", color=shade, **style)
            ax.plot(KNOTS, resampling(bands) @ spectrum, "-", marker="|", color=shade, label=name)
        ax.set_title(f"{SENSOR_NAMES[sensor]}: {len(used)} bands that see the ground")
        ax.set_xscale("log")
        ticks = [400, 600, 900, 1400, 2200]
        ax.set_xticks(ticks, [str(nm) for nm in ticks])
        ax.minorticks_off()
    for ax in figure.axes:
        place = ax.get_subplotspec()
        if place is not None and place.is_last_row():
            ax.set_xlabel("wavelength, nm (log)")
        if place is not None and place.is_first_col():
            ax.set_ylabel("reflectance")
    figure.axes[0].legend()
    caption(figure, "Circles: mean reflectance of a cover in one scene. Lines: what the 16 knots read of these bands")
    return figure
