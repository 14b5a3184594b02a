"""Metadata: numbers of places, days and ground sampling distances, and what a tuned embedding of them does."""

import math

import pytest
import torch
from helpers import SENTINEL2, images, tiny_vit
from helpers import adapted as adapt
from torch.utils.data import DataLoader

import peftlib as pl
from peftlib.data.dataset import collate
from peftlib.model.metadata import MetadataEmbedding
from peftlib.sensors.metadata import SIZES, encode_metadata
from peftlib.training.tasks import Classification, predict_batches

NAMES = tuple(SIZES)
METAS = [
    {"location": (60.0, 25.0), "date": "2024-01-01", "gsd": 10.0, "source": "a"},
    {"location": (-33.0, 151.0), "date": "2023-07-02", "gsd": 30.0},
]


def adapted(method=None, names=NAMES, **options):
    return adapt(method or pl.LoRA(), metadata=names, **options)


def shaken(model):
    """With metadata that does something."""
    with torch.no_grad():
        for p in model.metadata.parameters():
            p.normal_()
    return model


def test_numbers_of_metadata():
    places = [{"location": place} for place in ((90, 77), (0, -180), (0, 180))]
    pole, west, east = encode_metadata(places, ["location"])
    torch.testing.assert_close(pole, torch.tensor([0.0, 0, 1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(west, east, atol=1e-6, rtol=0)
    days = [{"date": f"2023-{day}"} for day in ("01-01", "12-31", "07-02")]
    new_year, year_end, summer = encode_metadata(days, ["date"])
    assert torch.dist(new_year, year_end) < 0.04 and torch.dist(new_year, summer) > 1.99
    assert encode_metadata(METAS, ["gsd"]).flatten().tolist() == pytest.approx([0, math.log10(3)])


def test_the_order_is_that_of_the_names_and_what_is_not_known_is_nan():
    one, other = encode_metadata(METAS, ["gsd", "location"]), encode_metadata(METAS, ["location", "gsd"])
    assert torch.equal(one[:, 1:], other[:, :3]) and torch.equal(one[:, 0], other[:, 3])
    unknown = encode_metadata([{}, METAS[0]], NAMES)
    assert unknown.shape == (2, 6) and unknown[0].isnan().all() and unknown[1].isfinite().all()


@pytest.mark.parametrize(
    ("method", "input"), [(pl.LoRA(), None), (pl.Deflect(), None), (pl.Full(), pl.Inflated())], ids=str
)
def test_at_the_start_metadata_change_nothing_and_count_as_input(method, input):
    x, encoded = images(), encode_metadata(METAS, NAMES)
    with_it, without = adapted(method, input=input), adapted(method, (), input=input)
    without.load_state_dict(with_it.state_dict(), strict=False)
    torch.testing.assert_close(with_it(x, encoded), without(x))
    one, other = pl.count_parameters(with_it), pl.count_parameters(without)
    assert one["input"] - other["input"] == sum(32 * (size + 1) + 33 * 32 for size in SIZES.values())
    assert one["method"] == other["method"]


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_changes_the_tokens_and_what_is_not_known_adds_nothing(name):
    model, x = shaken(adapted(names=(name,))).eval(), images()
    known, unknown = encode_metadata(METAS, (name,)), encode_metadata([{}, {}], (name,))
    tokens, plain = model(x, known), model(x)
    assert not torch.allclose(tokens[0], plain[0]) and not torch.allclose(tokens, model(x, known.flip(0)))
    assert torch.equal(model(x, unknown), plain)
    torch.testing.assert_close(model(x, torch.stack([known[0], unknown[1]]))[1], plain[1])


def test_an_adapter_file_holds_it(tmp_path):
    model, encoded = shaken(adapted()), encode_metadata(METAS, NAMES)
    again = pl.load_adapter(tiny_vit(), pl.save_adapter(model, tmp_path / "a.safetensors"))
    assert again.metadata.names == NAMES and torch.equal(again(images(), encoded), model(images(), encoded))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="choose from location, date, gsd"):
        adapted(names=("place",))
    with pytest.raises(ValueError, match="each once"):
        MetadataEmbedding(("gsd", "gsd"), 8)
    with pytest.raises(RuntimeError, match="split_sizes"):
        adapted(names=("location",))(images(), encode_metadata(METAS, ("date",)))
    with pytest.raises(ValueError, match="reads no metadata"):
        adapted(names=())(images(), encode_metadata(METAS, NAMES))
    with pytest.raises(ValueError, match="a plain ViT reads no metadata"):
        pl.merge(adapted())


def test_a_task_reads_the_metadata_of_a_batch_and_learns_from_them():
    task, x, encoded = Classification(shaken(adapted()), 2).eval(), images(), encode_metadata(METAS, NAMES)
    facts = {"label": 0, "bands": SENTINEL2, "sensor": "sentinel2"}
    data = [{"image": image, "meta": meta} | facts for image, meta in zip(x, METAS, strict=True)]
    for logits, truth in predict_batches(task, DataLoader(data, 2, collate_fn=collate)):
        torch.testing.assert_close(logits, task(x, encoded))
        assert not torch.allclose(logits, task(x), atol=1e-3)
        task.loss(task(x, encoded), truth).backward()
    assert all(p.grad.any() for p in task.model.metadata.parameters())
