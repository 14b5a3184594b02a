"""What simulated data sets share: a split's spectra, a scene's random numbers, and the sensor's picture of parcels."""

from collections.abc import Sequence

import numpy as np

from peftlib.data.dataset import EarthDataset
from peftlib.data.simulated import landscape, spectra
from peftlib.data.simulated.metamers import pools
from peftlib.sensors.bands import SENSORS

SAMPLES = 2  # a pixel is the mean of 2 x 2 samples: borders are mixed
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of the spectra: none is in two splits
VAPOUR = {"B09": 0.35, "B10": 0.005, "B9": 0.005}  # what water vapour lets through; elsewhere windows are clear


class Simulated(EarthDataset):
    """Scenes of parcels with measured spectra. ``side`` is ``size`` in samples; ``wavelengths``: band -> nm.

    ``haze`` is the most that any scene has, in reflectance at 550 nm.

    Licences of the spectra: MIT (earthlib); of the sensors' responses: Apache-2.0 (pyrsr).
    """

    folder = ""
    all_bands = tuple(SENSORS["sentinel2"])
    source = "earthlib's and pyrsr's packages"
    haze = 0.03

    def __init__(self, split: str, length: int, size: int, seed: int, sensor: str, bands: Sequence[str] | None):
        self.wavelengths, self._response = spectra.response(sensor)
        self.length, self.size, self.side, self.seed = length, size, size * SAMPLES, seed
        self._vapour = np.array([VAPOUR.get(name, 1.0) for name in self.wavelengths], dtype=np.float32)
        self._scatter = (550 / np.array(list(self.wavelengths.values()), dtype=np.float32)) ** 1.5  # haze, 1 at 550 nm
        super().__init__(split, bands=bands)

    def find(self) -> range:
        return range(self.length)

    def stream(self, index: int, *number: int) -> np.random.Generator:
        """Random numbers of one scene. A further stream, by its number, leaves the others as they are."""
        return np.random.default_rng([self.seed, list(SHARES).index(self.split), index, *number])

    def seen(self, rows: np.ndarray) -> np.ndarray:
        """This split's share of spectra (n, ..., 180) as the sensor has them, (n, ..., bands)."""
        low, high = SHARES[self.split]
        part = rows[int(low * len(rows)) : int(high * len(rows))]
        return (part @ self._response.T).astype(np.float32)

    def water_and_built(self, continents: tuple[str, ...] = ()) -> list[np.ndarray]:
        """This split's share of either, (n, 1, bands)."""
        shuffle, others = np.random.default_rng(1).permutation, pools(continents)
        return [self.seen(shuffle(others[name][0]))[:, None] for name in ("water", "built")]

    def blend(self, draw: np.random.Generator) -> np.ndarray:
        """Where samples lie between the two spectra of their parcel, (side, side, 1) from 0 to 1."""
        return np.clip(0.5 + 0.35 * landscape.waves(draw, self.side, 0.3), 0, 1)[..., None]

    def picture(self, draw: np.random.Generator, number: np.ndarray, ends: np.ndarray, blend: np.ndarray) -> np.ndarray:
        """Reflectance (bands, size, size) as the sensor has it, after slopes, haze, water vapour and noise.

        number: the parcel of each sample (side, side); ends: two spectra of each parcel (parcels, 2, bands).
        """
        samples = ends[number, 0] * (1 - blend) + ends[number, 1] * blend
        image = samples.reshape(self.size, SAMPLES, self.size, SAMPLES, -1).mean((1, 3))
        light = 1 + 0.08 * landscape.waves(draw, self.size, 0.7)[..., None]
        haze = draw.uniform(0, self.haze) * self._scatter
        image = image * light * self._vapour * (1 - haze) + haze * self._vapour
        noise = draw.standard_normal(image.shape, dtype=np.float32) * (0.002 + 0.01 * image) * np.sqrt(self._vapour)
        return np.clip(image + noise, 0, None).astype(np.float32).transpose(2, 0, 1)

    def majority(self, classes: np.ndarray) -> np.ndarray:
        """Classes of samples (side, side) -> the most frequent one of each pixel's four, (size, size)."""
        size = self.size
        four = classes.reshape(size, SAMPLES, size, SAMPLES).transpose(1, 3, 0, 2).reshape(-1, size, size)
        votes = (four[:, None] == four[None]).sum(1)
        return np.take_along_axis(four, votes.argmax(0)[None], 0)[0]
