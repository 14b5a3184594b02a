"""Drawings of the method, and figures that widgets draw anew."""

import base64
import io
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from peftlib.studies import plots, schematics

GRID = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
PICTURE = np.zeros((12, 12, 3))
MAPS = {(query, key): GRID - 0.5 for query in ("RGB", "spectral") for key in ("RGB", "spectral")}
DRAWINGS = {
    "emb": lambda: schematics.emb(PICTURE, dict.fromkeys(("NIR", "NDVI", "NDWI"), torch.rand(12, 12)), *GRID[:2]),
    "uatt": lambda: schematics.uatt(MAPS, GRID, PICTURE, (1, 4)),
    "deflect": lambda: schematics.deflect(PICTURE, GRID),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DRAWINGS)
def test_texts_of_a_drawing_lie_inside_it_and_apart(name, tmp_path, monkeypatch, caplog):
    """At a size that can be read at half a page's width; saving warns of nothing."""
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path))
    plots.use_style()
    figure = DRAWINGS[name]()
    plots.save_figure(figure, name, "quick")
    assert not caplog.records
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(texts) > 8 and all(text.get_size() >= 9 for text in texts)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    for (one, a), (other, b) in combinations(zip(texts, boxes, strict=True), 2):
        assert not a.overlaps(b), (one.get_text(), other.get_text())
    plt.close(figure)


def test_the_query_is_framed_where_it_lies():
    """Row 1 of 6 from the top, column 4 of 6 from the left, in every map."""
    figure = DRAWINGS["uatt"]()
    frames = [patch for patch in figure.axes[0].patches if patch.get_edgecolor() == (0.0, 1.0, 0.0, 1.0)]
    pictures = [image.get_extent() for image in figure.axes[0].images]
    assert len(frames) == len(pictures) == 6
    for frame, (left, right, bottom, top) in zip(frames, pictures, strict=True):
        side = (right - left) / 6
        np.testing.assert_allclose(frame.get_xy(), (left + 4 * side, top - 2 * side), atol=1e-9)
        assert frame.get_width() == pytest.approx(side) and bottom < frame.get_y()
    plt.close(figure)


def test_a_widget_draws_the_figure_anew_and_a_picture_stands_beside_it(monkeypatch):
    from ipywidgets import Image, IntSlider

    shown, images = [], []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    monkeypatch.setattr("ipywidgets.Image", lambda **options: images.append(Image(**options)) or images[-1])
    slider = IntSlider(1, 0, 3)
    plots.live(lambda height: Figure(figsize=(1, height)), height=slider)
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert plt.imread(io.BytesIO(base64.b64decode(shown[0]["image/png"]))).shape[0] == 80
    slider.value = 2
    assert plt.imread(io.BytesIO(images[0].value)).shape[0] == 160
