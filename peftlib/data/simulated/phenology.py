"""``phenology``: time series of simulated fields whose class is a calendar, and is on no single date.

Every field has a green and a withered member of one colour: PROSAIL canopies with much leaf and chlorophyll, and
metamers of them with little, mixed with litter. A class says when in the year the first one stands there. By red, green
and blue all classes are one; by all bands each date halves them, and only all dates with their days tell all.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index

from peftlib.data.simulated import landscape
from peftlib.data.simulated.metamers import metamers
from peftlib.data.simulated.scenes import SAMPLES, Simulated
from peftlib.deflect.time_series import best_date, series_bands, stack
from peftlib.sensors.bands import SENSORS, BandSet, band_set

# Calendar -> the days of the year on which its fields turn green and wither. Northern, and as even as no real land is.
CALENDARS = {
    "evergreen": ((-365, 730),),
    "winter crop": ((-105, 195),),
    "summer crop": ((135, 255),),
    "late crop": ((195, 315),),
    "winter cover": ((-105, 135), (255, 315)),
    "withered": (),
}
CLASSES = (*CALENDARS, "water", "built")
_WATER, _BUILT = CLASSES.index("water"), CLASSES.index("built")
DAYS = (105, 165, 225, 285)  # of the year, each with a jitter
JITTER = 12  # days, at most
_SHIFT, _PACE = 3.0, 4.0  # days: how far fields are from their calendar, and how long they take to turn
VIEWS = ("series", "best", "each")


class Phenology(Simulated):
    """Simulated time series with masks; item i depends on the arguments and i alone.

    Args:
        split, length, size, seed: as of ``SpectralScenes``.
        view: ``"series"``: the four dates as one image (``peftlib.deflect.time_series``); ``"best"``: the best date;
            ``"each"``: each date an image of its own, four to a scene, one after the other. ``meta["date"]`` is there
            in the latter two.
        bands: channels, in order; None is all. A series is read whole, with its days or, as
            ``series_bands(..., day=False)``, without.
    """

    name = "phenology"
    classes = CLASSES
    date_bands = tuple(SENSORS["sentinel2"])  # of each date
    all_bands = series_bands(date_bands, len(DAYS)).names

    def __init__(
        self,
        split: str = "train",
        length: int = 1000,
        size: int = 64,
        view: str = "series",
        bands: Sequence[str] | None = None,
        seed: int = 0,
    ):
        if view not in VIEWS:
            raise ValueError(f"{self.name}: view={view!r}; choose from {VIEWS}")
        self.view, series = view, view == "series"
        self.all_bands = type(self).all_bands if series else self.date_bands
        self.day = series and (bands is None or set(bands) == set(self.all_bands))
        super().__init__(split, length * (len(DAYS) if view == "each" else 1), size, seed, "sentinel2", bands)
        canopies = self.seen(metamers()["canopy"])  # (n, 2, bands): green, withered
        self._covers = dict(enumerate((*[canopies] * len(CALENDARS), *self.water_and_built())))

    def resolve_bands(self) -> BandSet:
        if self.view != "series":
            return super().resolve_bands()
        series = series_bands(self.date_bands, len(DAYS), day=self.day)
        if self.bands != series.names:
            raise ValueError(f"phenology: a series has channels {series.names}, given {self.bands}")
        self.bands = series  # what pl.adapt takes: names alone do not say that they are dates
        return series

    def evaluations(self) -> dict:
        return {"calendar": partial(calendar_scores, dates=len(DAYS) if self.view == "each" else 1)}

    def read(self, item: int) -> dict:
        scene, number = divmod(item, len(DAYS)) if self.view == "each" else (item, None)
        images, days, mask = self.scene(scene)
        meta = {"source": f"phenology {self.split} {scene}, seed {self.seed}"}
        if self.view == "series":
            return {"image": stack(images, days.tolist(), self.date_bands), "mask": mask, "meta": meta}
        if number is None:
            number = best_date(images, band_set(self.date_bands))
        meta["date"] = (date(2024, 1, 1) + timedelta(days=int(days[number]) - 1)).isoformat()
        return {"image": images[number], "mask": mask, "meta": meta}

    def scene(self, index: int) -> tuple[Tensor, np.ndarray, Tensor]:
        """One scene: images (4, 13, H, W) reflectance, days of the year (4,), class numbers (H, W)."""
        draw = self.stream(index)
        number, classes = self._plan(draw)
        days = np.array(DAYS) + draw.integers(-JITTER, JITTER + 1, len(DAYS))
        ends, green = self._fields(draw, classes, days)
        blend = self.blend(draw)
        images = []
        for share in green.T:  # of the parcels, on one date
            withered = 1 - share[:, None, None]
            now = ends[:, :, 0] * (1 - withered) + ends[:, :, 1] * withered  # (parcels, 2, bands)
            images.append(self.picture(draw, number, now, blend))
        return torch.from_numpy(np.stack(images)), days, torch.from_numpy(self.majority(classes[number]))

    def _plan(self, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Parcel numbers (samples down, across), and the class of each parcel."""
        side, kinds = self.side, len(CALENDARS)
        number = landscape.parcels(draw, side, SAMPLES)
        classes = draw.choice([*range(kinds), _BUILT], number.max() + 1, p=[*[0.94 / kinds] * kinds, 0.06])
        for cover, width, winding in ((_WATER, draw.uniform(3, 8), 6), (_BUILT, draw.uniform(1, 3), 0)):
            if draw.random() < 0.3:
                number = np.where(landscape.line(draw, side, width * SAMPLES, winding * SAMPLES), len(classes), number)
                classes = np.append(classes, cover)
        return number, classes

    def _fields(self, draw: np.random.Generator, classes: np.ndarray, days: np.ndarray):
        """Of each parcel two spectra to lie between, green and withered (parcels, 2, 2, bands), and how green it is on
        each day, from 0 to 1 (parcels, dates)."""
        ends = np.empty((len(classes), 2, 2, len(self.wavelengths)), dtype=np.float32)
        green = np.zeros((len(classes), len(days)), dtype=np.float32)
        for i, number in enumerate(classes):
            pool = self._covers[number]
            ends[i] = pool[draw.integers(len(pool), size=2)]
            if number < len(CALENDARS):
                green[i] = greenness(CLASSES[number], days - draw.normal(0, _SHIFT))
        return ends, green


def greenness(calendar: str, days: np.ndarray) -> np.ndarray:
    """How much of a field is green on days of the year, from 0 to 1: a double logistic curve, as leaf area follows."""

    def turned(day: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(np.asarray(days, dtype=float) - day) / _PACE))

    return sum((turned(start) - turned(end) for start, end in CALENDARS[calendar]), np.zeros(len(days)))


def calendar_scores(logits: Tensor, truth: Tensor, dates: int = 1) -> dict[str, float]:
    """``fields``: share of the fields' pixels whose calendar scores above the other five; ``scene_miou``.

    logits: (n, classes, H, W); truth: (n, H, W), -1 unknown. Where each image is one of ``dates`` of a scene, which lie
    one after the other, probabilities are averaged over them.
    """
    scores, truth = logits.softmax(1).unflatten(0, (-1, dates)).mean(1), truth[::dates]
    fields = (truth >= 0) & (truth < len(CALENDARS))
    right = scores[:, : len(CALENDARS)].argmax(1) == truth
    miou = multiclass_jaccard_index(scores, truth, len(CLASSES), ignore_index=-1)  # of classes that are there or named
    return {"fields": float(right[fields].float().mean()), "scene_miou": float(miou)}
