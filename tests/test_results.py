"""Committed numbers, figures on disk, and the doctor."""

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from helpers import images

from peftlib.experiments.results import check_reference
from peftlib.studies import doctor as doctor_module
from peftlib.studies.plots import composite, save_figure, use_style


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """A repository whose numbers are a = 1, b = 2."""
    monkeypatch.setattr("peftlib.experiments.results.root", lambda: tmp_path)
    check_reference("book", {"a": 1.0, "b": 2.0}, "quick", 0.1, update=True)
    return tmp_path / "data" / "reference" / "book.csv"


def test_numbers_within_tolerance_pass(committed):
    table = check_reference("book", {"a": 1.05, "b": 1.95}, "quick", 0.1)
    assert table["quantity"].tolist() == ["a", "b"] and table["measured"].tolist() == [1.05, 1.95]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"a": 1.2, "b": 2.0}, ["a: 1.2"]),
        ({"a": 1.0}, ["b: nan"]),
        ({"a": float("nan"), "b": 2.0}, ["a: nan"]),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, ["c: 3.0"]),
        ({"a": 5.0, "b": float("inf")}, ["a: 5.0", "b: inf"]),
    ],
)
def test_numbers_that_are_off_missing_or_new_are_named(values, names, committed):
    before = committed.read_bytes()
    with pytest.raises(AssertionError) as error:
        check_reference("book", values, "quick", 0.1)
    assert all(name in str(error.value) for name in names)
    assert committed.read_bytes() == before


def test_other_profiles_are_not_compared(committed):
    assert check_reference("book", {"a": 9.0, "b": 9.0}, "paper", 0.1).empty


def test_update_writes_what_a_later_run_is_compared_with(committed):
    check_reference("book", {"a": 7.0}, "quick", 0.1, update=True)
    assert pd.read_csv(committed)["reference"].tolist() == [7.0]
    check_reference("book", {"a": 7.05}, "quick", 0.1)


def test_the_same_picture_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path))
    use_style()
    written = []
    for height in (1.0, 1.0, 2.0):
        figure, ax = plt.subplots(figsize=(2, 2))
        ax.plot([0, height])
        paths = save_figure(figure, "line", "quick")
        plt.close(figure)
        written.append([p.read_bytes() for p in paths])
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == ["quick/line.png", "quick/line.pdf"]
    assert written[0] == written[1] and written[0] != written[2]
    assert len(list((tmp_path / "quick").iterdir())) == 2


def test_composite_takes_bands_by_name():
    bands = ("B02", "B03", "B04", "B08")
    image = images(bands, batch=1)[0]
    image[3, 0, 0], image[2, 0, 0] = 0.9, -0.1
    picture = composite(image, bands, ("B08", "B04", "B03"))
    assert picture.shape == (32, 32, 3) and picture.min() == 0 and picture.max() == 1
    assert picture[0, 0, 0] == 1 and picture[0, 0, 1] == 0
    with pytest.raises(ValueError, match="B12"):
        composite(image, bands, ("B12", "B04", "B03"))


def test_doctor_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PEFTLIB_WEIGHTS", str(tmp_path))
    assert doctor_module.doctor() is False
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("OK  ", "TODO")) for line in lines)
    (todo,) = [line for line in lines if "weights:" in line]
    assert todo.startswith("TODO") and str(tmp_path) in todo and "python -m peftlib weights" in todo


def test_doctor_goes_on_when_a_check_breaks(monkeypatch, capsys):
    def _data():
        raise KeyError("gone")

    monkeypatch.setattr(doctor_module, "_data", _data)
    monkeypatch.setattr(doctor_module, "_weights", lambda: (True, "weights"))
    assert doctor_module.doctor() is False
    assert "TODO  data: KeyError: 'gone'" in capsys.readouterr().out
