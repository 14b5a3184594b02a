"""Fetching and unpacking: what is fetched is checked, and archives as published become what the readers read."""

import hashlib
import io
import shutil
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

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


def publish(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return f"md5:{hashlib.md5(data).hexdigest()}"


def pack(folder: Path, kind: str) -> bytes:
    """The bytes of an archive of what is in a folder."""
    return Path(shutil.make_archive(str(folder.parent / "archive"), kind, folder)).read_bytes()


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


@pytest.mark.parametrize(
    ("name", "member"),
    [("a.zip", "../evil"), ("a.tar.gz", "../evil"), ("a.zip", "/tmp/evil"), ("link.tar.gz", "a")],
)
def test_nothing_leads_out_of_its_folder(tmp_path, name, member):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = packed(inside / name, {member: b"evil"}, "link" if name == "link.tar.gz" else None)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{name} cannot be unpacked|out"):
        unpack(archive, inside / "out")
    assert list(inside.iterdir()) == [archive] and list(tmp_path.iterdir()) == [inside]


# --- data sets as published ------------------------------------------------------------------------------------------


PACKED = {  # name -> the archive's name, and which folder of a tiny archive it holds, under which name
    "eurosat": ("EuroSATallBands.zip", "ds", "ds"),
    "mados": ("MADOS.zip", ".", "MADOS"),
    "marida": ("MARIDA.zip", ".", "."),
    "burn_scars": ("hls_burn_scars.tar.gz", "training", "training"),
}


@pytest.mark.parametrize("name", PACKED)
def test_what_is_published_becomes_what_is_read(name, web, tmp_path, monkeypatch):
    (folder, url), cls = web, DATASETS[name]
    archive, root = ARCHIVES[name](tmp_path / "publisher"), tmp_path / "new" / "data"
    packed, inner, outer = PACKED[name]
    shutil.copytree(archive.root / inner, tmp_path / "packed" / outer, dirs_exist_ok=True)
    kind = "zip" if packed.endswith("zip") else "gztar"
    checksums = {packed: publish(folder, packed, pack(tmp_path / "packed", kind))}
    files = [(Path(one[0]).name, *one[1:]) for one in cls.published]
    assert files[-1][0] == packed
    for file, *_ in files[:-1]:
        checksums[file] = publish(folder, file, archive.listed.read_bytes())
    monkeypatch.setattr(cls, "published", [(url + file, *rest) for file, *rest in files])
    with pytest.raises(ValueError, match=f"expected {files[0][1].partition(':')[2]}"):
        cls(root=root, download=True)
    monkeypatch.setattr(cls, "published", [(url + file, checksums[file], *rest) for file, _, *rest in files])
    if name == "burn_scars":  # its lists come from elsewhere
        with pytest.raises(FileNotFoundError, match=r"no splits/train\.txt"):
            cls(root=root, download=True)
        shutil.copytree(archive.root / "splits", root / "splits")
    np.testing.assert_allclose(cls(root=root, download=True)[0]["image"], archive.image, rtol=1e-5)
    shutil.rmtree(folder)  # all that is needed is there
    (root.parent / packed).unlink()
    cls(root=root, download=True)
