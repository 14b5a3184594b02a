"""Published files: fetched by huggingface_hub or torchvision, checked by hash, unpacked inside one folder."""

import hashlib
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path


def fetch(url: str, path: str | Path, checksum: str) -> Path:
    """Download a file to ``path`` unless it is there, and check it by ``"sha256:..."`` or ``"md5:..."``.

    ``hf://<owner>/<name>@<revision>/<file>`` is a file of a data set on the Hugging Face hub.

    Raises:
        OSError: it could not be fetched; the message says which file to put where.
        ValueError: another file than expected.
    """
    part = path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part = _download(url, path)
        except Exception as error:  # of many kinds, by library
            raise OSError(f"could not fetch {url} ({error}). Put that file at {path}, or try again") from error
    kind, _, expected = checksum.partition(":")
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise ValueError(f"{part} has {kind} {found}, expected {expected}; changed or cut short? Delete it and retry")
    return part.replace(path)


def _download(url: str, path: Path) -> Path:
    if url.startswith("hf://"):
        from huggingface_hub import hf_hub_download

        repository, place = url.removeprefix("hf://").split("@")
        revision, file = place.split("/", 1)
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision, local_dir=path.parent))
    from torchvision.datasets.utils import download_url

    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # of a former try: torchvision would take it for whole
    download_url(url, str(part.parent), part.name)
    return part


def unpack(archive: Path, folder: Path, inner: str = ".") -> None:
    """Unpack a fetched zip or tar, or its folder ``inner``, to ``folder``, which is there whole or not at all.

    Raises:
        ValueError: no archive, or paths in it that lead out of the folder.
    """
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder.parent) as partial,
            zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as file,
        ):
            names = file.namelist() if isinstance(file, zipfile.ZipFile) else file.getnames()
            if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
                raise ValueError(f"its paths {outside[:3]} lead out of its folder")
            if isinstance(file, tarfile.TarFile):
                file.extraction_filter = tarfile.data_filter  # type: ignore[method-assign]  # looks at links too
            file.extractall(whole := Path(partial) / "whole")
            os.replace(whole / inner, folder)
    except (zipfile.BadZipFile, tarfile.TarError, ValueError) as error:
        raise ValueError(f"{archive} cannot be unpacked ({error})") from error
