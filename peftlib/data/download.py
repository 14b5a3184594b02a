"""Published files: fetched, checked by hash, unpacked inside one folder."""

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Literal


def fetch(url: str, path: str | Path, checksum: str) -> Path:
    """Download a file to ``path`` unless it is there, and check it by ``"sha256:..."`` or ``"md5:..."``.

    Raises:
        OSError: it could not be fetched; the message says which file to put where.
        ValueError: another file than expected.
    """
    from torch.hub import download_url_to_file

    part = path = Path(path)
    if not path.is_file():
        part = path.with_name(f"{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(url, str(part))
        except Exception as error:  # of many kinds
            raise OSError(f"could not fetch {url} ({error}). Put that file at {path}, or try again") from error
    kind, _, expected = checksum.partition(":")
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise ValueError(f"{part} has {kind} {found}, expected {expected}; changed or cut short? Delete it and retry")
    return part.replace(path)


def unpack(archive: Path, folder: Path, inner: str = ".") -> None:
    """Unpack a fetched zip or tar, or its folder ``inner``, to ``folder``, which is there whole or not at all.

    Raises:
        ValueError: no archive, or a tar with paths that lead out of the folder. Such paths of a zip are left out.
    """
    safe: Literal["data"] | None = None if zipfile.is_zipfile(archive) else "data"  # zips need none
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
            shutil.unpack_archive(archive, whole := Path(partial) / "whole", filter=safe)
            (whole / inner).replace(folder)
    except (shutil.ReadError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ValueError(f"{archive} cannot be unpacked ({error})") from error
