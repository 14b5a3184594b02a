"""``spectral_scenes``: simulated images with known truth, made by physics from measured spectra, without a download.

Covers of metamer pairs lie in parcels with a river, a road, a burn scar, seen through haze and over slopes by a sensor
with noise. In every pair the class is a coin toss that leaves red, green and blue as they are, so the best score
without other bands is known: half of the pixels of the pairs.
"""

from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import torch

from peftlib.data.simulated import landscape, spectra
from peftlib.data.simulated.metamers import PAIRS, metamers, pair_accuracy
from peftlib.data.simulated.scenes import SAMPLES, Simulated

CLASSES = (*(member for pair in PAIRS.values() for member in pair), "water", "built")
_WATER, _BUILT = CLASSES.index("water"), CLASSES.index("built")
_DARK = list(PAIRS).index("dark")


class SpectralScenes(Simulated):
    """Simulated scenes; item i depends on the arguments and i alone.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``: other scenes, of other spectra; seed: of everything.
        length: number of scenes; size: side in pixels of 10 m.
        sensor: ``"sentinel2"`` (13 bands), ``"hls"`` (6), ``"landsat8"`` (7) or ``"hyperspectral"`` (180 of 10 nm).
            Pairs are exact metamers for Sentinel-2 and HLS; other sensors' red, green and blue differ by a little.
        continents: where the soils were measured, some of ``spectra.CONTINENTS``; none is everywhere.
        located: each scene lies on one of the continents (none is all of them), and ``meta`` says where and on which
            day of 2024; the day has no effect.
        haze: the most that any scene has, in reflectance at 550 nm: 0.03 is clear air.
        bands: names, in order; None is all of the sensor.
    """

    name = "spectral_scenes"
    classes = CLASSES

    def __init__(
        self,
        split: str = "train",
        length: int = 1000,
        size: int = 64,
        sensor: str = "sentinel2",
        continents: Sequence[str] = (),
        located: bool = False,
        haze: float = Simulated.haze,
        bands: Sequence[str] | None = None,
        seed: int = 0,
    ):
        if unknown := set(continents) - set(spectra.CONTINENTS):
            raise ValueError(f"{self.name}: no continents {sorted(unknown)}; choose from {tuple(spectra.CONTINENTS)}")
        if not 0 <= haze < 1:
            raise ValueError(f"{self.name}: haze={haze} is no reflectance; choose 0 to 0.3, say")
        self._located, self.haze = located, haze
        self.all_bands = tuple(spectra.response(sensor)[0])
        self.sensor = "custom" if sensor == spectra.HYPERSPECTRAL else sensor
        super().__init__(split, length, size, seed, sensor, bands)

        places = tuple(sorted(continents))
        groups = {place: (place,) for place in places or spectra.CONTINENTS} if located else {"": places}
        self._covers = {}  # place -> cover -> spectra (n, members, bands)
        for place, group in groups.items():
            pairs, others = map(self.seen, metamers(group).values()), self.water_and_built(group)
            self._covers[place] = dict(enumerate(pairs)) | dict(zip((_WATER, _BUILT), others, strict=True))

    def evaluations(self) -> dict:
        return {"pairs": pair_accuracy}

    def twin(self, index: int) -> dict:
        """The scene with every coin turned: the same picture in red, green and blue, the other class of each pair."""
        return self.checked(self.read(self.items[index], turned=True))

    def read(self, item: int, turned: bool = False) -> dict:
        draw, coins = self.stream(item), self.stream(item, 1)
        place, meta = self._whereabouts(item)
        number, covers = self._plan(draw)
        ends, classes = self._spectra(draw, coins, self._covers[place], covers, turned)
        image = np.ascontiguousarray(self.picture(draw, number, ends, self.blend(draw)))
        meta |= {"source": f"spectral_scenes {self.split} {item}, seed {self.seed}"}
        mask = self.majority(classes[number])
        return {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask), "meta": meta}

    def _whereabouts(self, index: int) -> tuple[str, dict]:
        """The continent of a scene, and its place and day; nothing where scenes are not located."""
        if not self._located:
            return "", {}
        draw = self.stream(index, 2)
        place = list(self._covers)[draw.integers(len(self._covers))]
        south, north, west, east = spectra.CONTINENTS[place]
        location = round(draw.uniform(south, north), 3), round(draw.uniform(west, east), 3)
        day = date(2024, 1, 1) + timedelta(days=int(draw.integers(366)))
        return place, {"location": location, "date": day.isoformat()}

    def _plan(self, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Parcel numbers (side, side), and their covers: a pair, or water or built."""
        side, kinds = self.side, len(PAIRS)
        number = landscape.parcels(draw, side, SAMPLES)
        covers = draw.choice([*range(kinds), _BUILT], number.max() + 1, p=[*[0.92 / kinds] * kinds, 0.08])
        extra = [
            (0.35, _WATER, lambda: landscape.line(draw, side, draw.uniform(3, 8) * SAMPLES, 6 * SAMPLES)),
            (0.35, _BUILT, lambda: landscape.line(draw, side, draw.uniform(1, 3) * SAMPLES, 0)),
            (0.3, _DARK, lambda: landscape.blob(draw, side, draw.uniform(8, 16) * SAMPLES)),
        ]
        for chance, cover, shape in extra:
            if draw.random() < chance:
                number = np.where(shape(), len(covers), number)
                covers = np.append(covers, cover)
        return number, covers

    def _spectra(
        self, draw, coins, pools: dict[int, np.ndarray], covers: np.ndarray, turned: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each parcel two spectra to lie between, (parcels, 2, bands), and its class (parcels,)."""
        ends, classes = [], []
        for cover in covers.tolist():
            pair = cover < len(PAIRS)
            member = int(coins.integers(2)) ^ turned if pair else 0
            classes.append(2 * cover + member if pair else cover)
            ends.append(pools[cover][draw.integers(len(pools[cover]), size=2), member])
        return np.stack(ends), np.array(classes)
