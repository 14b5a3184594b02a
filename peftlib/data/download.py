"""Published files: fetched by huggingface_hub or torchvision, checked by hash, unpacked inside one folder."""

import hashlib
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

# What zipfile and tarfile raise on damage: a flipped bit may also ask for a later version, or a password.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


def fetch(url: str, path: str | Path, checksum: str) -> Path:
    """Download a file unless it is there.

    Args:
        url: of the file; ``hf://<owner>/<name>@<revision>/<file>`` is one of a data set on the Hugging Face hub, whose
            client resumes a download that was cut off.
        path: where it goes.
        checksum: ``"sha256:..."`` or ``"md5:..."``, as the publisher gives it.

    Raises:
        OSError: it could not be fetched; the message says which file to put where.
        ValueError: another file than expected.
    """
    path = Path(path)
    if path.is_file():
        return _check(path, checksum)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part = _from_hub(url, path.parent) if url.startswith("hf://") else _from_web(url, path)
    except Exception as error:  # of many kinds, by library
        raise OSError(f"could not fetch {url} ({error}). Put that file at {path}, or try again") from error
    os.replace(_check(part, checksum), path)
    return path


def _from_hub(url: str, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    repository, _, place = url.removeprefix("hf://").partition("@")
    revision, _, file = place.partition("/")
    return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision, local_dir=folder))


def _from_web(url: str, path: Path) -> Path:
    from torchvision.datasets.utils import download_url

    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # of a former try: torchvision would take it for whole
    download_url(url, str(part.parent), part.name)
    return part


def _check(path: Path, checksum: str) -> Path:
    kind, _, expected = checksum.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise ValueError(f"{path} has {kind} {found}, expected {expected}; changed or cut short? Delete it and retry")
    return path


def unpack(archive: str | Path, folder: str | Path, inner: str = ".") -> Path:
    """Unpack a zip or tar beside its place and move it there: a folder that exists is whole, and left alone.

    Args:
        archive: the file.
        folder: what its contents become, or those of ``inner``, one of the archive's folders.

    Raises:
        OSError: a disk that is full or read-only.
        ValueError: damaged, without ``inner``, or with paths that lead out of the folder.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        zipped = zipfile.is_zipfile(archive)
        with zipfile.ZipFile(archive) if zipped else tarfile.open(archive) as file:
            names = file.namelist() if zipped else file.getnames()
            if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
                raise ValueError(f"its paths {outside[:3]} lead out of its folder")
            file.extractall(partial, **({} if zipped else {"filter": "data"}))  # which looks at links too
        if not (partial / inner).is_dir():
            raise ValueError(f"no folder {inner!r} in it, but {sorted(path.name for path in partial.iterdir())[:5]}")
        os.replace(partial / inner, folder)
    except (*DAMAGED, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            raise
        raise ValueError(f"{archive} cannot be unpacked; truncated or damaged? ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
