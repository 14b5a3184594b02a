"""docs/training.md: its examples run, its table is the registry's, and what it exports gives the same numbers."""

import re
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import SAVANNA, adapted, images, randomise
from test_predict import FILE_BANDS, write
from toy_data import segmentation, toy_data

import peftlib as pl
from peftlib.deflect.time_series import SeriesEMB, series_bands
from peftlib.training.tasks import Segmentation

DOCS = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def test_the_table_of_rates_is_the_registrys():
    for config in (*pl.INPUTS.values(), *pl.METHODS.values()):
        row = f"| `pl.{config.__name__}()` | {', '.join(f'{rate:g}' for rate in config.learning_rates)} |"
        assert not config.learning_rates or not hasattr(pl, config.__name__) or row in DOCS, row


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scene", "april", "august"):
        write(Path(f"{name}.tif"), (40, 40))
    series = adapted(pl.Deflect(), series_bands(SAVANNA, 2), input=SeriesEMB())
    scope = {"model": adapted(pl.Deflect(), SAVANNA), "classes": ("low", "high"), "data": toy_data()}
    scope |= {"file_bands": FILE_BANDS, "series_task": Segmentation(series, 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(re.sub(r"steps=\d+", "steps=2", "".join(EXAMPLES)), scope)
    assert scope["scores"]["test"].keys() >= {"loss", "miou"}
    assert sorted(p.name for p in Path().glob("*map.tif")) == ["map.tif", "series_map.tif"]


def in_onnxruntime(path, x) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": x.numpy()})[0]


def assert_same(found, expected, atol=1e-3) -> None:
    """Numbers of two runtimes; what is expected must be large enough to tell."""
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


TASKS = {
    "deflect": lambda: segmentation(pl.Deflect(), decoder="unet"),
    "lora": lambda: Segmentation(adapted(pl.LoRA(), SAVANNA, input=pl.EMB(), nodata="zero"), 2),
}


@pytest.mark.parametrize("name", TASKS)
def test_exported_tasks_say_what_they_said_in_pytorch(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, x = randomise(TASKS[name]()).eval(), images(SAVANNA, batch=1, seed=7)
    if task.model.reflectance.nodata == "zero":
        x[:, 3, :9, :9] = torch.nan
    with torch.no_grad():
        expected = task(x).numpy()
    exec(EXAMPLES[-1], scope := {"task": task, "data": toy_data()})  # with another image
    assert_same(scope["program"].module()(x).detach().numpy(), expected, 1e-5)
    assert_same(in_onnxruntime("task.onnx", x), expected)


def test_a_merged_vit_says_in_onnxruntime_what_the_model_said(tmp_path):
    model, x = randomise(adapted(pl.LoRA(), SAVANNA)).eval(), images(SAVANNA, batch=1, seed=7)
    merged, pixels = pl.merge(model), model.normalize(x)
    program = torch.export.export(merged, (pixels,))
    for number, exported in enumerate((merged, program.module())):
        path = str(tmp_path / f"{number}.onnx")
        how = dict(dynamo=False, input_names=["image"], training=torch.onnx.TrainingMode.PRESERVE)
        torch.onnx.export(exported, (pixels,), path, **how)
        assert_same(in_onnxruntime(path, pixels), model(x)[:, 0].detach().numpy())  # timm's forward: the class token
