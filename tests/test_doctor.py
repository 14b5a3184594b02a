"""`python -m peftlib doctor`: each illness is named with what to do, and that cures it."""

import importlib.metadata
import shutil

import pytest

from peftlib.__main__ import main
from peftlib.backbones.dinov2_wheel import dinov2_small_state
from peftlib.files import weights_dir

WEIGHTS = "dinov2_small.safetensors"


@pytest.fixture
def examined(capsys):
    """Exit code of the doctor, and its lines that ask for something."""

    def examine() -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main(["doctor"])
        return code, [line for line in capsys.readouterr().out.splitlines() if not line.startswith("OK    ")]

    return examine


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of weights of one's own, with none; and a way to fetch them without the network."""
    dinov2_small_state()
    source = weights_dir() / WEIGHTS
    monkeypatch.setenv("PEFTLIB_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("peftlib.files._convert_wheel", lambda target: shutil.copyfile(source, target))
    return tmp_path / WEIGHTS


def test_a_healthy_machine_has_nothing_to_do(examined, weights):
    assert main(["weights"]) == 0
    assert examined() == (0, [])


def test_missing_weights_are_fetched_as_it_says(examined, weights):
    code, (todo,) = examined()
    assert code == 1 and str(weights) in todo and "run python -m peftlib weights" in todo
    assert main(["weights"]) == 0 and examined() == (0, [])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no weights"])
def test_damaged_weights_are_replaced_as_it_says(damage, examined, weights, capsys):
    main(["weights"])
    if damage == "flipped":
        with weights.open("rb+") as file:
            file.seek(50_000_000)
            file.write(b"x")
    else:
        weights.write_bytes(weights.read_bytes()[:1000] if damage == "truncated" else b"<html>not found</html>")
    code, (todo,) = examined()
    assert code == 1 and str(weights) in todo and "delete it and run python -m peftlib weights" in todo
    assert main(["weights"]) == 1 and "delete it and run" in capsys.readouterr().err  # nothing is deleted for the user
    weights.unlink()
    assert main(["weights"]) == 0 and examined() == (0, [])


def test_a_missing_package_and_a_missing_kernel_lead_to_make_env(examined, weights, monkeypatch):
    main(["weights"])
    version = importlib.metadata.version

    def without_timm(name: str) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_timm)
    monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.find_kernel_specs", lambda self: {})
    code, (package, kernel) = examined()
    assert code == 1 and "missing ['timm']: run make env" in package and "no Jupyter kernel: run make env" in kernel


def test_a_check_that_fails_does_not_end_the_others(examined, weights, monkeypatch):
    main(["weights"])
    monkeypatch.setattr("peftlib.data.savanna_chip", lambda: 1 / 0)
    code, (todo,) = examined()
    assert code == 1 and todo.startswith("TODO  data: ZeroDivisionError")


def test_a_data_folder_that_is_not_there_is_named(weights, tmp_path, monkeypatch, capsys):
    main(["weights"])
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path / "nowhere"))
    assert main(["doctor"]) == 0 and f"{tmp_path / 'nowhere'}, which is not there" in capsys.readouterr().out
