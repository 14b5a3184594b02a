"""Where images lie: files of a pattern, places of windows, shapes on a scene, and images that are near each other."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from peftlib.data.dataset import H5, opened
from peftlib.data.reading import Box
from peftlib.files import optional

RASTERS = (".tif", ".tiff", ".png", *H5)
SHAPES = (".gpkg", ".geojson", ".json", ".shp", ".fgb")
EARTH = 6_371_000.0  # metres, radius


def matching(folder: Path, pattern: str) -> dict[str, Path]:
    """What ``{id}`` stands for -> the file, of every file below a folder; of a file, its stem -> itself."""
    if folder.is_file():
        return {folder.stem: folder}
    if pattern.count("{id}") != 1:
        raise ValueError(f"pattern {pattern!r}; it needs {{id}}, once, where names of files differ")
    before, after = pattern.split("{id}")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*" + Path(after).suffix))}
    found = {name: path for name, path in files.items() if name.startswith(before) and name.endswith(after)}
    return {name[len(before) : len(name) - len(after)]: path for name, path in found.items()}


def column(path: Path, name: str, root: Path, images: Mapping[str, Path]) -> dict[str, str]:
    """Of a CSV with columns ``file`` and this one: what ``{id}`` of images below a folder stands for -> value."""
    import pandas

    table = pandas.read_csv(path, dtype=str)
    if not {"file", name} <= set(table.columns):
        raise ValueError(f"{path} has columns {list(table.columns)}, need 'file' and {name!r}")
    ids = {Path(os.path.relpath(image, root)).with_suffix("").as_posix(): id for id, image in images.items()}
    files = table["file"].str.replace(r"\.(tiff?|png|h5|hdf5)$", "", regex=True)
    return {ids.get(file, file): value for file, value in zip(files, table[name], strict=True)}


def masks_of(images: Mapping[str, Path], given: str, root: Path, below: str) -> dict[str, Path | None]:
    """What ``{id}`` stands for -> its mask, of a pattern below the root, or of a folder with one ``below`` it."""
    masks = Path(given) if Path(given).exists() else root / given
    found = {}
    for name, path in images.items():
        tried = [masks / below / f"{stem}{suffix}" for stem in (name, path.stem) for suffix in RASTERS]
        tried = [root / given.replace("{id}", name)] if "{id}" in given else [masks / below, *tried]
        found[name] = next((one for one in tried if one.is_file()), None)
    taken = set(found.values())  # masks that lie below the images are no images
    found = {name: mask for name, mask in found.items() if images[name] not in taken}
    if without := [images[name].name for name, mask in found.items() if mask is None]:
        raise FileNotFoundError(
            f"no mask in {masks / below} for {without[:3]} ({len(without)} images in all); say how they are named: "
            "images='images/s2_{id}.tif', masks='masks/m_{id}.png'"
        )
    return found


def place(path: Path, box: Box) -> tuple[float, float] | None:
    """Latitude and longitude of the middle of a window, or None where the file has no place."""
    from rasterio.warp import transform

    top, left, height, width = box
    with opened(path) as file:
        if file.crs is None or file.transform.is_identity:
            return None
        x, y = file.xy(top + height / 2, left + width / 2, offset="ul")
        (longitude,), (latitude,) = transform(file.crs, "EPSG:4326", [x], [y])
    return latitude, longitude


def near_groups(windows: Sequence[tuple[Path, Box]], apart: float) -> list[int]:
    """Group numbers of windows of files: those nearer than so many metres, also through others, share one.

    Distances are of middles, less the longest window's diagonal. ValueError for a file that has no place.
    """
    unique = list(dict.fromkeys(windows))
    points = [(place(path, box), place(path, (*box[:2], 0, 0))) for path, box in unique]  # middle and corner
    if lost := [path for (path, _), at in zip(unique, points, strict=True) if None in at]:
        raise ValueError(f"{lost[0]} has no place, so none can be {apart:g} m apart; give splits=, or apart=0")
    phi, theta = np.moveaxis(np.radians(np.array(points, dtype=float)), -1, 0)  # (n, 2)
    xyz = EARTH * np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=-1)
    radius = np.linalg.norm(xyz[:, 0] - xyz[:, 1], axis=1).max()
    pairs = cKDTree(xyz[:, 0]).query_pairs(apart + 2 * radius, output_type="ndarray")
    _, groups = connected_components(coo_array((np.ones(len(pairs)), pairs.T), shape=(len(xyz),) * 2))
    group = dict(zip(unique, groups.tolist(), strict=True))
    return [group[one] for one in windows]


def shapes_on(scene: Path, path: Path):
    """What of points or polygons lies on a scene, a GeoDataFrame in its pixels (x column, y row); the scene's (H, W).

    ValueError: no shapes with labels, no projection, or none on the scene; some outside are a warning.
    """
    try:
        frame = optional("geopandas").read_file(path)
    except RuntimeError as error:  # of pyogrio
        raise ValueError(f"{path}: no readable points or polygons ({error})") from error
    if "label" not in frame:
        raise ValueError(f"{path} has columns {list(frame.columns)}, need 'label'")
    with opened(scene) as file:
        crs, (height, width), inverse = file.crs, file.shape, ~file.transform
    if frame.crs is None or crs is None:
        raise ValueError(f"{path if frame.crs is None else scene} names no projection; write it into the file")
    frame = frame.to_crs(crs)
    there = frame.set_geometry(frame.affine_transform(inverse.to_shapely())).clip((0, 0, width, height), sort=True)
    if there.empty:
        raise ValueError(f"{path}: none of its {len(frame)} shapes lies on {scene}; they are at {frame.total_bounds}")
    if len(there) < len(frame):
        warnings.warn(f"{path}: {len(frame) - len(there)} of {len(frame)} shapes lie outside {scene}", stacklevel=2)
    return there, (height, width)
