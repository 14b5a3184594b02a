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


def packed(path: Path, files: dict[str, bytes], link: str | None = None) -> Path:
    """A zip or tar of files, and of a link called ``link`` that leads out."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in files.items():
                file.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz") as file:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
        if link is not None:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "../../evil"
            file.addfile(member)
    return path


@pytest.fixture(params=["a.zip", "a.tar.gz"])
def archive(request, tmp_path):
    return packed(tmp_path / request.param, {"all/deep/a.txt": b"a", "all/b.bin": np.random.default_rng(0).bytes(5000)})


def test_an_archive_becomes_a_folder(archive, tmp_path):
    unpack(archive, tmp_path / "whole")
    unpack(archive, tmp_path / "part", inner="all")
    assert (tmp_path / "whole" / "all" / "deep" / "a.txt").read_text() == "a"
    assert (tmp_path / "part" / "deep" / "a.txt").read_text() == "a"
    with pytest.raises(FileNotFoundError, match="none"):
        unpack(archive, tmp_path / "none", inner="none")
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "whole", "part"}


@pytest.mark.parametrize(
    ("name", "member"),
    [*((name, member) for name in ("a.zip", "a.tar.gz") for member in ("../evil", "/tmp/evil")), ("link.tar.gz", "a")],
)
def test_what_leads_out_of_its_folder_is_refused(tmp_path, name, member):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = packed(inside / name, {member: b"evil"}, "link" if name == "link.tar.gz" else None)
    with pytest.raises(ValueError, match=f"{name} cannot be unpacked"):
        unpack(archive, inside / "out")
    assert list(inside.iterdir()) == [archive] and list(tmp_path.iterdir()) == [inside]


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


def test_archives_of_zenodo(publisher, web, tmp_path, monkeypatch):
    (archive, module), (folder, url) = publisher("mados"), web
    moved = archive.root.rename(archive.root.with_name("MADOS"))
    data = pack(moved.parent, "zip", "MADOS")
    root = tmp_path / "new" / "MADOS"
    checksum = publish(folder, "MADOS.zip", data)
    monkeypatch.setattr(module, "URL", f"{url}MADOS.zip")
    with pytest.raises(ValueError, match=f"expected {module.CHECKSUM.removeprefix('md5:')}"):
        DATASETS["mados"](root=root, download=True)
    assert not root.exists()
    monkeypatch.setattr(module, "CHECKSUM", checksum)
    check(archive, root)


def test_burn_scars(publisher, hub, tmp_path, monkeypatch):
    archive, module = publisher("burn_scars")
    packed = publish(hub[0], module.ARCHIVE, pack(archive.root, "gztar", "training"))
    monkeypatch.setattr(module, "CHECKSUM", packed)
    root = tmp_path / "hls_burn_scars"
    with pytest.raises(FileNotFoundError, match=r"no splits/train\.txt"):  # they come from elsewhere
        check(archive, root)
    shutil.copytree(archive.root / "splits", root / "splits")
    check(archive, root)
