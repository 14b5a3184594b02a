"""Fetching and unpacking: what is cut off goes on, what is wrong is refused, nothing half remains."""

import hashlib
import inspect
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
from server import serve

from peftlib.data.download import fetch, obtain, unpack

DATA = os.urandom(1 << 20) * 5
CHECKSUM = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def served():
    with serve() as served:
        served.files["/data.zip"] = DATA
        yield served


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "data.zip"


def part(path):
    return path.with_name("data.zip.part")


def killed_when(ready, function, *args) -> None:
    """Call a function in a process of its own and kill it, without warning, as soon as something is ready.

    Not a fork: tqdm's lock is shared with forked processes, and one that dies with it would stop us for good.
    """
    load = f"spec_from_file_location('download', {inspect.getfile(fetch)!r})"
    code = f"from importlib.util import *; s = {load}; m = module_from_spec(s); s.loader.exec_module(m); "
    code += f"m.{function.__name__}(*{[str(arg) for arg in args]!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            if ready() or process.poll() is not None:
                break
            time.sleep(0.005)
        assert process.poll() is None, "it was done before it could be killed"
    finally:
        process.kill()
        process.wait()


# --- fetch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [CHECKSUM, "md5:" + hashlib.md5(DATA).hexdigest()], ids=["sha256", "md5"])
def test_a_file_comes_whole_and_once(served, path, checksum):
    assert fetch(served.url + "data.zip", path, checksum, len(DATA)) == path
    assert path.read_bytes() == DATA and not part(path).exists()
    fetch(served.url + "data.zip", path, checksum)
    assert served.starts == [0]  # it was there


def test_a_killed_download_goes_on(served, path):
    served.pause = 0.01
    url = served.url + "data.zip"
    killed_when(lambda: part(path).is_file() and part(path).stat().st_size > 0, fetch, url, path, CHECKSUM)
    have = part(path).stat().st_size
    assert not path.exists() and 0 < have < len(DATA)
    served.pause = 0
    fetch(url, path, CHECKSUM)
    assert path.read_bytes() == DATA and served.starts[-1] == have


def test_a_dropped_connection_goes_on(served, path):
    served.drop_at = 3 << 20
    with pytest.raises(OSError, match=r"the connection ended after .* try again: it goes on") as lost:
        fetch(served.url + "data.zip", path, CHECKSUM)
    assert str(path) in str(lost.value) and part(path).stat().st_size == 3 << 20
    served.drop_at = None
    fetch(served.url + "data.zip", path, CHECKSUM)
    assert path.read_bytes() == DATA and served.starts == [0, 3 << 20]


def test_a_server_without_ranges_starts_again(served, path):
    path.parent.mkdir()
    part(path).write_bytes(DATA[:1000])
    served.ranges = False
    fetch(served.url + "data.zip", path, CHECKSUM)
    assert path.read_bytes() == DATA and served.starts == [0]


def test_a_part_that_is_whole_needs_no_more(served, path):
    path.parent.mkdir()
    part(path).write_bytes(DATA)
    fetch(served.url + "data.zip", path, CHECKSUM)
    assert path.read_bytes() == DATA and served.starts == [len(DATA)]


def test_another_file_than_expected_is_deleted(served, path):
    with pytest.raises(ValueError, match="expected 0000"):
        fetch(served.url + "data.zip", path, "sha256:0000")
    assert list(path.parent.iterdir()) == []


def test_a_part_of_another_file_is_found_out(served, path):
    path.parent.mkdir()
    part(path).write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="changed or cut short"):
        fetch(served.url + "data.zip", path, CHECKSUM)
    fetch(served.url + "data.zip", path, CHECKSUM)
    assert path.read_bytes() == DATA


def test_a_file_that_was_changed_is_not_taken_and_not_deleted(served, path):
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="Delete it and retry") as refused:
        fetch(served.url + "data.zip", path, CHECKSUM)
    assert str(path) in str(refused.value) and path.read_bytes() == b"mine"


def test_without_a_server_the_message_says_which_file_goes_where(path):
    with serve() as gone:
        url = gone.url + "data.zip"
    with pytest.raises(OSError, match="could not fetch") as lost:
        fetch(url, path, CHECKSUM)
    assert url in str(lost.value) and f"Put that file at {path}" in str(lost.value)


def test_an_unknown_file_is_an_error_of_the_same_kind(served, path):
    with pytest.raises(OSError, match=r"could not fetch .*404") as lost:
        fetch(served.url + "other.zip", path, CHECKSUM)
    assert f"Put that file at {path}" in str(lost.value)


def test_a_disk_that_is_too_small_is_known_before(served, path):
    with pytest.raises(OSError, match="GB free"):
        fetch(served.url + "data.zip", path, CHECKSUM, size=1 << 60)
    assert served.starts == []


# --- unpack ----------------------------------------------------------------------------------------------------------


def packed(path, files: dict[str, bytes], method=zipfile.ZIP_DEFLATED):
    """A zip or tar.gz of these files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(params=["a.zip", "a.tar.gz"])
def archive(request, tmp_path):
    return tmp_path / request.param


def left(tmp_path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()} - {"a.zip", "a.tar.gz"}


def test_an_archive_becomes_a_folder_once(archive, tmp_path):
    packed(archive, {"top/a.txt": b"1", "top/deep/b.txt": b"2"})
    folder = unpack(archive, tmp_path / "set" / "data")
    assert (folder / "top/a.txt").read_bytes() == b"1" and (folder / "top/deep/b.txt").read_bytes() == b"2"
    (folder / "top/a.txt").write_text("mine")
    unpack(archive, folder)
    assert (folder / "top/a.txt").read_text() == "mine"
    inner = unpack(archive, tmp_path / "inner", inner="top")
    assert sorted(p.name for p in inner.iterdir()) == ["a.txt", "deep"]
    assert left(tmp_path) == {"set", "inner"}


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/peftlib-outside.txt", "a/../../outside.txt"])
def test_paths_that_lead_out_are_refused(archive, tmp_path, name):
    packed(archive, {"ok.txt": b"1", name: b"2"})
    with pytest.raises(ValueError, match="lead out") as refused:
        unpack(archive, tmp_path / "data")
    assert str(archive) in str(refused.value) and left(tmp_path) == set()
    assert not os.path.exists("/tmp/peftlib-outside.txt")


def test_links_that_lead_out_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../outside"
        archive.addfile(link)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "data")
    assert left(tmp_path) == set()


def test_an_archive_that_is_too_large_is_refused(archive, tmp_path):
    packed(archive, {"a": bytes(1 << 20), "b": bytes(1 << 20)})
    assert archive.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match="more than"):
        unpack(archive, tmp_path / "data", most_bytes=(2 << 20) - 1)
    assert left(tmp_path) == set()
    unpack(archive, tmp_path / "data", most_bytes=2 << 20)


@pytest.mark.parametrize("damage", ["cut", "changed", "scrambled", "text"])
def test_a_damaged_archive_leaves_nothing(archive, tmp_path, damage):
    """Changed values in what is stored as it is, which only checksums show, and in codes of compressed text."""
    text = " ".join(map(str, range(50_000))).encode()
    data = packed(
        archive, {f"{i}.bin": text if damage == "scrambled" else DATA[:100_000] for i in range(8)}
    ).read_bytes()
    middle = len(data) // 2
    changed = data[:middle] + bytes(255 - b for b in data[middle : middle + 200]) + data[middle + 200 :]
    archive.write_bytes({"cut": data[:middle], "text": b"<html>not found</html>"}.get(damage, changed))
    with pytest.raises(ValueError, match="truncated or damaged") as refused:
        unpack(archive, tmp_path / "data")
    assert str(archive) in str(refused.value) and left(tmp_path) == set()


def test_a_missing_inner_folder_is_named(archive, tmp_path):
    packed(archive, {"other/a.txt": b"1"})
    with pytest.raises(ValueError, match=r"has no folder 'top', but \['other'\]"):
        unpack(archive, tmp_path / "data", inner="top")
    assert left(tmp_path) == set()


def test_a_kill_while_unpacking_leaves_no_folder(tmp_path):
    files = {f"{i}.bin": DATA[: 1 << 19] for i in range(16)}  # bzip2 is slow enough to be caught at it
    archive, folder = packed(tmp_path / "a.zip", files, zipfile.ZIP_BZIP2), tmp_path / "data"
    partial = tmp_path / ".data.part"
    killed_when(lambda: (partial / "0.bin").exists(), unpack, archive, folder)
    assert partial.is_dir() and not folder.exists()
    unpack(archive, folder)
    assert {path.name for path in folder.iterdir()} == set(files) and not partial.exists()


def test_obtain_asks_nothing_once_the_folder_is_there(served, tmp_path):
    archive = packed(tmp_path / "a.zip", {"top/a.txt": b"1"})
    data = archive.read_bytes()
    served.files["/a.zip"] = data
    archive.unlink()
    args = (served.url + "a.zip", archive, tmp_path / "data", f"md5:{hashlib.md5(data).hexdigest()}")
    obtain(*args, size=len(data), inner="top")
    archive.unlink()
    assert (obtain(*args) / "a.txt").read_bytes() == b"1" and served.starts == [0]
