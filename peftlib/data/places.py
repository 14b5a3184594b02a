"""Where images lie: files of a pattern, places of windows."""

from pathlib import Path

from peftlib.data.dataset import opened
from peftlib.data.reading import Box

RASTERS = (".tif", ".tiff", ".png")


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
