"""Fetching published files: with progress, going on where a former try stopped, checked by hash, unpacked safely."""

import errno
import hashlib
import http.client
import lzma
import os
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm.auto import tqdm

CHUNK = 1 << 20
LOST = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError)

# What zipfile and tarfile raise on damage: a flipped bit may also ask for a later version, or a password.
DAMAGED: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
DAMAGED += (EOFError, OSError, NotImplementedError, RuntimeError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def fetch(url: str, path: str | Path, checksum: str, size: int | None = None) -> Path:
    """Download a file unless it is there, going on where a former try stopped.

    Args:
        url: of the file.
        path: where it goes. While it comes it is ``path`` with ``.part`` behind.
        checksum: ``"sha256:..."`` or ``"md5:..."``, as the publisher gives it.
        size: bytes, where known, for a look at the disk before the download.

    Raises:
        OSError: it could not be fetched; the message says which file to put where. What came is kept for the next try.
        ValueError: another file than expected, which is deleted.
    """
    path = Path(path)
    if path.is_file():
        _check(path, checksum)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    free = shutil.disk_usage(path.parent).free
    if size is not None and size - have > free:
        raise OSError(
            f"{path.name} needs {(size - have) / 1e9:.1f} GB more, {path.parent} has {free / 1e9:.1f} GB free"
        )
    try:
        _receive(url, part, have)
    except LOST as error:
        raise OSError(f"could not fetch {url} ({error}). Put that file at {path}, or try again: it goes on") from error
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; make room and try again: it goes on", str(part)) from error
    _check(part, checksum)
    os.replace(part, path)
    return path


def _receive(url: str, part: Path, have: int) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            return
        raise
    with response:
        goes_on = have and response.status == 206
        length = int(response.headers.get("Content-Length") or 0)
        total = length + (have if goes_on else 0)
        bar = tqdm(total=total or None, initial=have if goes_on else 0, unit="B", unit_scale=True, desc=part.stem)
        with open(part, "ab" if goes_on else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total and part.stat().st_size < total:
        raise ConnectionError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


def _check(path: Path, checksum: str) -> None:
    kind, _, expected = checksum.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        if path.suffix == ".part":
            path.unlink()
        raise ValueError(
            f"{path} has {kind} {found}, expected {expected}; it was changed or cut short. Delete it and retry"
        )


def obtain(
    url: str, archive: str | Path, folder: str | Path, checksum: str, size: int | None = None, inner: str | None = None
) -> Path:
    """``fetch`` and ``unpack``, unless the folder is there; once it is, the archive may be deleted."""
    folder = Path(folder)
    return folder if folder.is_dir() else unpack(fetch(url, archive, checksum, size), folder, inner)


def unpack(archive: str | Path, folder: str | Path, inner: str | None = None, most_bytes: int = 200 << 30) -> Path:
    """Unpack a zip or tar beside its place and move it there: a folder that exists is whole.

    Args:
        archive: the file.
        folder: that its contents become; left alone if it exists.
        inner: the one folder of the archive that ``folder`` becomes; None is all of it.
        most_bytes: an archive that unpacks to more is refused.

    Raises:
        OSError: a disk that is full or read-only.
        ValueError: damaged, too large, or with paths that lead out of the folder.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _refuse([(i.filename, i.file_size) for i in file.infolist()], archive, most_bytes)
                file.extractall(partial)
        else:
            with tarfile.open(archive) as file:
                _refuse([(m.name, m.size) for m in file], archive, most_bytes)
                file.extractall(partial, filter="data")
                while file.fileobj.read(CHUNK):  # to the end, where gzip has its checksum
                    pass
        if inner is not None and not (partial / inner).is_dir():
            raise ValueError(f"{archive} has no folder {inner!r}, but {sorted(p.name for p in partial.iterdir())[:5]}")
        os.replace(partial / inner if inner is not None else partial, folder)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise OSError(error.errno, f"{error.strerror}; no fault of {archive}", str(folder)) from error
        raise ValueError(f"{archive} cannot be unpacked; truncated or damaged? ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _refuse(members: list[tuple[str, int]], archive: Path, most_bytes: int) -> None:
    outside = [name for name, _ in members if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise ValueError(f"{archive} has paths that lead out of its folder: {outside[:3]}")
    if (total := sum(size for _, size in members)) > most_bytes:
        raise ValueError(f"{archive} unpacks to {total / 1e9:.1f} GB, more than {most_bytes / 1e9:.0f}")
