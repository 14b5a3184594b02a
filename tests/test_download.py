"""Fetching and unpacking: what is fetched is checked, and archives as published become what the readers read."""

import hashlib
import io
import shutil
import sys
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from archives import ARCHIVES

from peftlib.data import DATASETS
from peftlib.data.download import fetch, unpack


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """A folder that a server on this machine publishes, and its URL."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for data sets on the hub, and what was asked of it."""
    folder, asked = tmp_path / "hub", []
    folder.mkdir()

    def hf_hub_download(repository, file, repo_type, revision, local_dir):
        asked.append((repository, file, revision))
        assert repo_type == "dataset"
        target = Path(local_dir) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return folder, asked


def publish(folder: Path, name: str, data: bytes) -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return f"md5:{hashlib.md5(data).hexdigest()}"


def pack(folder: Path, kind: str, base: str = ".") -> bytes:
    """The bytes of an archive of what is in a folder, or of one folder in it."""
    return Path(shutil.make_archive(str(folder.parent / f"packed-{folder.name}"), kind, folder, base)).read_bytes()


# --- fetch -----------------------------------------------------------------------------------------------------------


def test_a_file_comes_once_and_whole(web, tmp_path):
    folder, url = web
    checksum, path = publish(folder, "a.bin", b"abc" * 1000), tmp_path / "new" / "a.bin"
    (tmp_path / "new").mkdir()
    path.with_name("a.bin.part").write_bytes(b"what a former try left")
    assert fetch(url + "a.bin", path, checksum).read_bytes() == b"abc" * 1000
    (folder / "a.bin").unlink()
    assert fetch(url + "a.bin", path, checksum) == path and list(path.parent.iterdir()) == [path]


def test_another_file_than_expected_is_refused(web, tmp_path):
    folder, url = web
    publish(folder, "a.bin", b"other")
    sha = f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    with pytest.raises(ValueError, match=r"a\.bin.* has sha256 .*, expected ba7816bf"):
        fetch(url + "a.bin", tmp_path / "a.bin", sha)
    assert not (tmp_path / "a.bin").exists()
    (tmp_path / "a.bin").write_bytes(b"put there by hand, and wrong")
    with pytest.raises(ValueError, match="Delete it and retry"):
        fetch(url + "a.bin", tmp_path / "a.bin", sha)


def test_what_cannot_be_fetched_says_where_to_put_it(web, tmp_path):
    for url in (web[1] + "gone.bin", "http://127.0.0.1:9/gone.bin"):
        with pytest.raises(OSError, match=r"could not fetch .*gone\.bin .*Put that file at .*a\.bin"):
            fetch(url, tmp_path / "a.bin", "md5:0")
    assert not (tmp_path / "a.bin").exists()


# --- unpack ----------------------------------------------------------------------------------------------------------


def tar_of(path: Path, member: str, link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo(member)
        if link is None:
            info.size = 4
        else:
            info.type, info.linkname = tarfile.SYMTYPE, link
        file.addfile(info, io.BytesIO(b"evil"))
    return path


@pytest.mark.parametrize("kind", ["zip", "gztar", "tar"])
def test_an_archive_becomes_a_folder(tmp_path, kind):
    (tmp_path / "all" / "deep").mkdir(parents=True)
    (tmp_path / "all" / "deep" / "a.txt").write_text("a")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path, "all"))
    assert (unpack(archive, tmp_path / "whole") / "all" / "deep" / "a.txt").read_text() == "a"
    assert (unpack(archive, tmp_path / "part", inner="all") / "deep" / "a.txt").read_text() == "a"
    with pytest.raises(ValueError, match=r"no folder 'none' in it, but \['all'\]"):
        unpack(archive, tmp_path / "none", inner="none")
    archive.write_bytes(b"")
    assert unpack(archive, tmp_path / "whole") == tmp_path / "whole"  # it was there
    assert {path.name for path in tmp_path.iterdir()} == {"all", archive.name, "whole", "part"}


@pytest.mark.parametrize(("member", "link"), [("../evil", None), ("/tmp/evil", None), ("link", "../../evil")])
def test_what_leads_out_of_its_folder_is_refused(tmp_path, member, link):
    inside = tmp_path / "inside"
    inside.mkdir()
    archives = [tar_of(inside / "a.tar.gz", member, link)]
    if link is None:
        archives.append(inside / "a.zip")
        with zipfile.ZipFile(archives[1], "w") as file:
            file.writestr(member, "evil")
    for archive in archives:
        with pytest.raises(ValueError, match=rf"{archive.name} cannot be unpacked"):
            unpack(archive, inside / "out")
    assert set(inside.iterdir()) == set(archives) and list(tmp_path.iterdir()) == [inside]


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path, kind):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "a.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path, "all"))
    whole = archive.read_bytes()
    for bad in (whole[: len(whole) // 2], b"nonsense"):
        archive.write_bytes(bad)
        with pytest.raises(ValueError, match=r"packed.* cannot be unpacked; truncated or damaged\?"):
            unpack(archive, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"all", archive.name}


# --- data sets as published ------------------------------------------------------------------------------------------


@pytest.fixture
def publisher(tmp_path):
    """Function of a name -> its tiny archive, as its publisher has it, and its module."""

    def make(name):
        return ARCHIVES[name](tmp_path / "publisher" / name), sys.modules[DATASETS[name].__module__]

    return make


def check(archive, root) -> None:
    first = DATASETS[archive.name](root=root, download=True)[0]
    np.testing.assert_allclose(first["image"], archive.image, rtol=1e-5)


def test_eurosat(publisher, hub, tmp_path, monkeypatch):
    (archive, module), (folder, asked) = publisher("eurosat"), hub
    lists = {name: publish(folder, name, archive.listed.read_bytes()) for name in module.LISTS}
    monkeypatch.setattr(module, "LISTS", lists)
    monkeypatch.setattr(module, "CHECKSUM", publish(folder, module.ARCHIVE, pack(archive.root, "zip", "ds")))
    check(archive, tmp_path / "eurosat")
    repository = ("torchgeo/eurosat", "1ce6f1bfb56db63fd91b6ecc466ea67f2509774c")
    assert len(asked) == 7 and {(one[0], one[2]) for one in asked} == {repository}
    (tmp_path / "eurosat" / module.ARCHIVE).unlink()
    check(archive, tmp_path / "eurosat")
    assert len(asked) == 7  # all that is needed was there


@pytest.mark.parametrize(("name", "inner"), [("mados", "MADOS"), ("marida", ".")])
def test_archives_of_zenodo(publisher, web, tmp_path, monkeypatch, name, inner):
    (archive, module), (folder, url) = publisher(name), web
    moved = archive.root.rename(archive.root.with_name(name.upper()))
    data = pack(moved, "zip") if inner == "." else pack(moved.parent, "zip", inner)
    root = tmp_path / "new" / name.upper()
    checksum = publish(folder, f"{name.upper()}.zip", data)
    monkeypatch.setattr(module, "URL", f"{url}{name.upper()}.zip")
    with pytest.raises(ValueError, match=f"expected {module.CHECKSUM.removeprefix('md5:')}"):
        DATASETS[name](root=root, download=True)
    assert not root.exists()
    monkeypatch.setattr(module, "CHECKSUM", checksum)
    check(archive, root)


def test_burn_scars(publisher, hub, tmp_path, monkeypatch):
    archive, module = publisher("burn_scars")
    packed = publish(hub[0], module.ARCHIVE, pack(archive.root, "gztar", "training"))
    monkeypatch.setattr(module, "CHECKSUM", packed)
    root = tmp_path / "hls_burn_scars"
    with pytest.raises(FileNotFoundError, match=r"split list splits/train\.txt"):  # they come from elsewhere
        check(archive, root)
    shutil.copytree(archive.root / "splits", root / "splits")
    check(archive, root)


def test_ben(publisher, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(pd, "read_parquet", lambda path, columns: pd.read_json(path)[columns])
    (archive, module), (folder, asked) = publisher("ben"), hub
    whole = pack(archive.root, "gztar", module.IMAGES)
    halves = zip(module.PARTS, (whole[: len(whole) // 2], whole[len(whole) // 2 :]), strict=True)
    parts = {name: publish(folder, f"V2/{name}", half) for name, half in halves}
    monkeypatch.setattr(module, "PARTS", parts)
    metadata = (archive.root / module.METADATA).read_bytes()
    monkeypatch.setattr(module, "METADATA_CHECKSUM", publish(folder, f"V2/{module.METADATA}", metadata))
    root = tmp_path / "bigearthnet_v2"
    shutil.copytree(archive.root / "reBEN_7k", root / "reBEN_7k")
    check(archive, root)
    for name in parts:
        (root / name).unlink()
    check(archive, root)
    assert not (root / f"{module.IMAGES}.tar.gz").exists() and len(asked) == 3
