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
DAMAGED: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
DAMAGED += (NotImplementedError, RuntimeError, ValueError, OSError)


def fetch(url: str, path: str | Path, checksum: str) -> Path:
    """Download a file to ``path`` unless it is there, and check it by ``"sha256:..."`` or ``"md5:..."``.

    ``hf://<owner>/<name>@<revision>/<file>`` is a file of a data set on the Hugging Face hub, whose client resumes a
    download that was cut off; other ones begin anew.

    Raises:
        OSError: it could not be fetched; the message says which file to put where.
        ValueError: another file than expected.
    """
    part = path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part = _from_hub(url, path) if url.startswith("hf://") else _from_web(url, path)
        except Exception as error:  # of many kinds, by library
            raise OSError(f"could not fetch {url} ({error}). Put that file at {path}, or try again") from error
    kind, _, expected = checksum.partition(":")
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise ValueError(f"{part} has {kind} {found}, expected {expected}; changed or cut short? Delete it and retry")
    os.replace(part, path)
    return path


def _from_hub(url: str, path: Path) -> Path:
    from huggingface_hub import hf_hub_download

    repository, _, place = url.removeprefix("hf://").partition("@")
    revision, _, file = place.partition("/")
    return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision, local_dir=path.parent))


def _from_web(url: str, path: Path) -> Path:
    from torchvision.datasets.utils import download_url

    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # of a former try: torchvision would take it for whole
    download_url(url, str(part.parent), part.name)
    return part


def unpack(archive: str | Path, folder: str | Path, inner: str = ".") -> Path:
    """Unpack a zip or tar, or its folder ``inner``, to ``folder``, which is left alone if it exists: it is whole then.

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
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                _refuse_outside(zipped.namelist())
                zipped.extractall(partial)
        else:
            with tarfile.open(archive) as file:
                _refuse_outside(file.getnames())
                file.extractall(partial, filter="data")  # which looks at links too
                while file.fileobj.read(1 << 20):  # to the end, where gzip has its checksum
                    pass
        if not (partial / inner).is_dir():
            raise ValueError(f"no folder {inner!r} in it, but {sorted(path.name for path in partial.iterdir())[:5]}")
        os.replace(partial / inner, folder)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            raise OSError(error.errno, f"{error.strerror}, unpacking {archive}", str(folder)) from error
        raise ValueError(f"{archive} cannot be unpacked; truncated or damaged? ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _refuse_outside(names: list[str]) -> None:
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ValueError(f"its paths {outside[:3]} lead out of its folder")
