"""transfer: an adapter that was trained on one sensor reads the bands of another."""

import copy
from collections.abc import Mapping, Sequence

from peftlib.model.adapted_vit import AdaptedViT
from peftlib.sensors.bands import band_set
from peftlib.sensors.spectral_indices import SpectralIndices


def transfer(model: AdaptedViT, bands: Sequence[str] | Mapping[str, float], sensor: str = "sentinel2") -> AdaptedViT:
    """A copy with the same tuned tensors that reads other bands, without training or images of the new sensor.

    What was fitted by ``fit_normalization`` comes along. Where the new images differ in more than their bands (product,
    atmosphere, season), fit the result on unlabelled ones; elsewhere that may lose, as other land has other statistics.

    ``model`` is adapted on ``EMB(spectral="wavelengths")`` or on ``RGB()``; ``bands`` and ``sensor`` are as for
    ``adapt``. ValueError: tensors that belong to the old bands, or bands that they or spectral indices cannot read.
    """
    if not model.input.reads_any_bands:
        cure = "train on the new sensor, or adapt with input=EMB(spectral='wavelengths') from the start"
        raise ValueError(f"{model.input} has tensors for bands {model.bands.names} alone; {cure}")
    new = copy.deepcopy(model)
    new.bands = band_set(bands, sensor)
    new.reflectance = new.reflectance_of(new.bands, model.reflectance.rgb_white, model.reflectance.nodata)
    if new.auxiliary is not None and model.auxiliary is not None:
        new.reflectance.load_state_dict(model.reflectance.state_dict())
        new.auxiliary.indices = SpectralIndices(model.auxiliary.indices.names, new.bands)
    return new.train(model.training)
