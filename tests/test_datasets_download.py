"""``download=True`` from a server on this machine: archives as published become what the readers read."""

import hashlib
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from archives import ARCHIVES
from server import serve

from peftlib.data import DATASETS


@pytest.fixture
def served():
    with serve() as served:
        yield served


@pytest.fixture
def published(tmp_path, served, monkeypatch):
    """Function of a name -> its tiny archive, and its module, whose URLs are this server's."""

    def publish(name):
        archive = ARCHIVES[name](tmp_path / "publisher" / name)
        module = sys.modules[DATASETS[name].__module__]
        monkeypatch.setattr(module, "URL", served.url + module.URL.rsplit("/", 1)[1])
        return archive, module

    return publish


def offer(served, name: str, data: bytes) -> str:
    served.files[f"/{name}"] = data
    return f"md5:{hashlib.md5(data).hexdigest()}"


def pack(folder, kind: str, base=".") -> bytes:
    """The bytes of an archive of what is in a folder, or of one folder in it."""
    made = shutil.make_archive(str(folder.parent / f"packed-{folder.name}"), kind, folder, base)
    with open(made, "rb") as file:
        return file.read()


def check(archive, root) -> None:
    cls = DATASETS[archive.name]
    first = cls(root=root, download=True)[0]
    np.testing.assert_allclose(first["image"], archive.image, rtol=1e-5)


def test_eurosat(published, served, tmp_path, monkeypatch):
    archive, module = published("eurosat")
    lists = {name: offer(served, name, archive.listed.read_bytes()) for name in module.LISTS}
    monkeypatch.setattr(module, "LISTS", lists)
    monkeypatch.setattr(module, "CHECKSUM", offer(served, module.ARCHIVE, pack(archive.root, "zip", "ds")))
    root = tmp_path / "eurosat"
    check(archive, root)
    assert len(served.starts) == 7 and (root / module.IMAGES / "Forest" / "Forest_7.tif").is_file()
    check(archive, root)
    assert len(served.starts) == 7  # all was there


def test_mados(published, served, tmp_path, monkeypatch):
    archive, module = published("mados")
    archive.root.rename(archive.root.with_name("MADOS"))
    monkeypatch.setattr(module, "SIZE", None)
    data = pack(archive.root.parent, "zip", "MADOS")
    monkeypatch.setattr(module, "CHECKSUM", offer(served, "MADOS.zip", data))
    check(archive, tmp_path / "MADOS")


def test_marida(published, served, tmp_path, monkeypatch):
    archive, module = published("marida")
    monkeypatch.setattr(module, "SIZE", None)
    monkeypatch.setattr(module, "CHECKSUM", offer(served, "MARIDA.zip", pack(archive.root, "zip")))
    check(archive, tmp_path / "MARIDA")


def test_burn_scars(published, served, tmp_path, monkeypatch):
    archive, module = published("burn_scars")
    monkeypatch.setattr(module, "SIZE", None)
    monkeypatch.setattr(module, "CHECKSUM", offer(served, module.ARCHIVE, pack(archive.root, "gztar", "training")))
    root = tmp_path / "hls_burn_scars"
    with pytest.raises(FileNotFoundError, match=r"split list splits/train\.txt"):  # they come from elsewhere
        check(archive, root)
    shutil.copytree(archive.root / "splits", root / "splits")
    check(archive, root)


def test_ben(published, served, tmp_path, monkeypatch):
    monkeypatch.setattr(pd, "read_parquet", lambda path, columns: pd.read_json(path)[columns])
    archive, module = published("ben")
    whole = pack(archive.root, "gztar", module.IMAGES)
    half = len(whole) // 2
    parts = {n: offer(served, n, d) for n, d in zip(module.PARTS, (whole[:half], whole[half:]), strict=True)}
    monkeypatch.setattr(module, "PARTS", parts)
    metadata = (archive.root / "metadata.parquet").read_bytes()
    monkeypatch.setattr(module, "METADATA", {"metadata.parquet": offer(served, "metadata.parquet", metadata)})
    root = tmp_path / "bigearthnet_v2"
    shutil.copytree(archive.root / "reBEN_7k", root / "reBEN_7k")
    check(archive, root)
    assert not (root / f"{module.IMAGES}.tar.gz").exists() and len(served.starts) == 3
    for name in parts:
        (root / name).unlink()
    check(archive, root)
    assert len(served.starts) == 3


def test_a_changed_archive_is_not_unpacked(published, served, tmp_path):
    archive, module = published("marida")
    offer(served, "MARIDA.zip", pack(archive.root, "zip"))
    root = tmp_path / "new" / "MARIDA"
    with pytest.raises(ValueError, match="expected 9bf32266f6e3711c9dfa3699b856c76f"):
        DATASETS["marida"](root=root, download=True)
    assert not root.exists() and list(root.parent.iterdir()) == []
    assert module.SIZE == 1_164_612_748
