"""Metadata: numbers of places, days and ground sampling distances, and what a tuned embedding of them does."""

import math

import pytest
import torch
from helpers import SENTINEL2, images, tiny_vit
from torch.utils.data import DataLoader
from toy_runs import do, toy, write_eurosat

import peftlib as pl
from peftlib.data import SpectralScenes
from peftlib.data.datamodule import EarthData
from peftlib.data.dataset import collate
from peftlib.data.simulated.spectra import CONTINENTS
from peftlib.model.metadata import SIZES, MetadataEmbedding, describe
from peftlib.training.cached_features import can_keep
from peftlib.training.tasks import Classification, quiet_trainer

NAMES = tuple(SIZES)
METAS = [
    {"location": (60.0, 25.0), "date": "2024-01-01", "gsd": 10.0, "source": "a"},
    {"location": (-33.0, 151.0), "date": "2023-07-02", "gsd": 30.0},
]


def adapted(method=None, names=NAMES, seed=0):
    torch.manual_seed(seed)
    return pl.adapt(tiny_vit(), method or pl.LoRA(), SENTINEL2, image_size=32, metadata=names)


def shaken(model):
    """With metadata that does something."""
    with torch.no_grad():
        for p in model.metadata.parameters():
            p.normal_()
    return model


def test_numbers_of_metadata():
    pole, west, east = (describe([{"location": place}], ["location"])[0] for place in ((90, 77), (0, -180), (0, 180)))
    torch.testing.assert_close(pole, torch.tensor([0.0, 0, 1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(west, east, atol=1e-6, rtol=0)
    new_year, year_end, summer = (
        describe([{"date": f"2023-{day}"}], ["date"])[0] for day in ("01-01", "12-31", "07-02")
    )
    assert torch.dist(new_year, year_end) < 0.04 and torch.dist(new_year, summer) > 1.99
    assert describe(METAS, ["gsd"]).flatten().tolist() == pytest.approx([0, math.log10(3)])


def test_the_order_is_that_of_the_names_and_what_is_not_known_is_nan():
    one, other = describe(METAS, ["gsd", "location"]), describe(METAS, ["location", "gsd"])
    assert torch.equal(one[:, 1:], other[:, :3]) and torch.equal(one[:, 0], other[:, 3])
    unknown = describe([{}, METAS[0]], NAMES)
    assert unknown.shape == (2, 6) and unknown[0].isnan().all() and unknown[1].isfinite().all()


@pytest.mark.parametrize("name", pl.METHODS)
def test_at_the_start_metadata_change_nothing_and_their_parameters_are_counted(name):
    method = pl.METHODS[name]()
    x, described = images(), describe(METAS, NAMES)
    with_it, without = adapted(method), adapted(method, ())
    without.load_state_dict(with_it.state_dict(), strict=False)
    torch.testing.assert_close(with_it.eval()(x, described), without.eval()(x))
    more = pl.count_parameters(with_it)["tuned"] - pl.count_parameters(without)["tuned"]
    assert more == sum(32 * (size + 1) + 33 * with_it.vit.embed_dim for size in SIZES.values())


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_changes_the_tokens_and_what_is_not_known_adds_nothing(name):
    model, x = shaken(adapted(names=(name,))).eval(), images()
    known, unknown = describe(METAS, (name,)), describe([{}, {}], (name,))
    tokens, plain = model(x, known), model(x)
    assert not torch.allclose(tokens[0], plain[0]) and not torch.allclose(tokens, model(x, known.flip(0)))
    assert torch.equal(model(x, unknown), plain)
    torch.testing.assert_close(model(x, torch.stack([known[0], unknown[1]]))[1], plain[1])


def test_gradients_reach_every_tensor_and_decoders_see_the_same():
    model, described = shaken(adapted(pl.Deflect())), describe(METAS, NAMES)
    model(images(), described).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.metadata.parameters())
    last = len(model.vit.blocks) - 1
    model.eval()
    torch.testing.assert_close(model.intermediate_tokens(images(), [last], described)[0], model(images(), described))


def test_in_bfloat16_and_compiled():
    model, described = shaken(adapted(pl.Deflect())).eval(), describe(METAS, NAMES)
    with torch.no_grad():
        tokens = model(images(), described)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(images(), described).float(), tokens, atol=0.15, rtol=0.1)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images(), described), tokens)


def test_an_adapter_file_holds_it(tmp_path):
    model, described = shaken(adapted()).eval(), describe(METAS, NAMES)
    again = pl.load_adapter(tiny_vit(), pl.save_adapter(model, tmp_path / "a.safetensors")).eval()
    assert again.metadata.names == NAMES and torch.equal(again(images(), described), model(images(), described))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="choose from location, date, gsd"):
        adapted(names=("place",))
    with pytest.raises(ValueError, match="each once"):
        MetadataEmbedding(("gsd", "gsd"), 8)
    with pytest.raises(ValueError, match=r"takes \(B, 3\)"):
        adapted(names=("location",))(images(), describe(METAS, ("date",)))
    with pytest.raises(ValueError, match="reads no metadata"):
        adapted(names=())(images(), describe(METAS, NAMES))
    with pytest.raises(ValueError, match="a plain ViT reads no metadata"):
        pl.merge(adapted())


class Places(torch.utils.data.Dataset):
    """One image at places in the north and the south, which are the two classes."""

    def __init__(self, length: int, seed: int):
        self.places = torch.empty(length, 2).uniform_(20, 70, generator=torch.Generator().manual_seed(seed))
        self.image = images()[0]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> dict:
        north, (latitude, longitude) = i % 2, self.places[i].tolist()
        meta = {"location": (latitude if north else -latitude, longitude)}
        return {"image": self.image, "label": north, "bands": SENTINEL2, "sensor": "sentinel2", "meta": meta}


@pytest.mark.parametrize(("names", "accuracy"), [((), 0.5), (("location",), 1.0)])
def test_a_task_learns_from_metadata_what_no_image_shows(names, accuracy):
    task = Classification(adapted(pl.NormTuning(), names), 2, lr=3e-2, head_lr=3e-2, augment=False)
    trainer = quiet_trainer(max_epochs=4, accelerator="cpu")
    trainer.fit(task, DataLoader(Places(32, 0), 8, collate_fn=collate))
    found = trainer.test(task, DataLoader(Places(16, 1), 8, collate_fn=collate), verbose=False)
    assert found[0]["accuracy"] == accuracy


def test_features_of_a_frozen_backbone_are_not_kept_where_metadata_are_tuned():
    data = EarthData(Places(4, 0), Places(2, 1), None, 2)
    for names, kept in (((), True), (("location",), False)):
        assert can_keep(Classification(adapted(pl.Frozen(), names), 2, augment=False), data) is kept


def test_a_run_reads_them_or_says_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_DATA", str(write_eurosat(tmp_path)))
    scenes = dict(dataset="spectral_scenes", data={"length": 4, "size": 16, "continents": ["africa"]}, epochs=1)
    located = scenes | {"data": scenes["data"] | {"located": True}}
    table = do([toy(**located, metadata=("location", "date"))], tmp_path / "rows")
    assert set(table["status"]) == {"done"} and '"metadata": ["location", "date"]' in table["recipe"].iloc[0]
    (error,) = set(do([toy(**scenes, metadata=("location",))], tmp_path / "rows")["error"])
    assert "metadata=('location',), and images of spectral_scenes come with" in error
    with pytest.raises(ValueError, match="choose from location, date, gsd"):
        toy(metadata=("sensor",))


def test_located_scenes_lie_on_their_continent():
    plain, located = (SpectralScenes(length=6, size=16, continents=["africa"], located=yes) for yes in (False, True))
    south, north, west, east = CONTINENTS["africa"]
    for one, other in zip(plain, located, strict=True):
        assert torch.equal(one["image"], other["image"]) and "location" not in one["meta"]
        latitude, longitude = other["meta"]["location"]
        assert south <= latitude <= north and west <= longitude <= east and other["meta"]["date"].startswith("2024-")
    assert len({sample["meta"]["date"] for sample in located}) > 3
    again = SpectralScenes(length=6, size=16, continents=["africa"], located=True)
    assert [sample["meta"] for sample in again] == [sample["meta"] for sample in located]
