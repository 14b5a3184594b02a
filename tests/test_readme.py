"""What README says is true: its example runs, its parameter table is computed, its commands exist."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import peftlib as pl
from peftlib.experiments import statistics as scoring
from peftlib.experiments.results import read_table
from peftlib.studies import decoders as decoder_study
from peftlib.studies import regions as regions_study
from peftlib.studies import sensor_plots as beyond_plots
from peftlib.studies import sensors as sensor_study
from peftlib.studies import series as series_study
from peftlib.studies import tables
from peftlib.studies.bench import read_bench
from peftlib.studies.comparison import ABLATION
from peftlib.studies.cost_plots import plain_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")  # of the first example


def example(word: str) -> str:
    """The one example that has a word in it."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in code]
    return code


def test_every_example_runs_in_a_test():
    found = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    words = ("save_adapter", "pl.transfer", "series_bands", "import peft\n", "EarthData", "execute(")
    assert sorted(found) == sorted(example(word) for word in words)


@pytest.mark.weights
def test_example_runs_as_written(tmp_path, monkeypatch):
    code = example("save_adapter")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    batches = [(torch.rand(2, 6, 126, 126) * 0.4, torch.tensor([0, 2])) for _ in range(2)]
    scope = {"loader": batches, "classes": 3}
    exec(code, scope)
    saved = pl.load_adapter(scope["vit"], "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(saved(batches[0][0]), scope["model"](batches[0][0]))


@pytest.mark.weights
def test_the_transfer_example_reads_the_other_sensor():
    scope = {"pl": pl, "vit": pl.load_backbone("dinov2_small"), "bands": BANDS}
    exec(example("pl.transfer"), scope)
    image = torch.rand(2, 6, 126, 126) * 0.4
    with torch.no_grad():
        assert scope["landsat"](image).shape == scope["model"](image).shape
    assert scope["landsat"].bands.sensor == "landsat8"


@pytest.mark.weights
def test_the_example_of_a_time_series_reads_what_clouds_leave():
    images = torch.rand(3, 6, 126, 126) * 0.4
    images[1, :, :60] = torch.nan
    vit = pl.load_backbone("dinov2_small")
    scope = {"pl": pl, "vit": vit, "bands": BANDS, "images": images, "days": (98, 161, 230)}
    exec(example("series_bands"), scope)
    assert scope["tokens"].shape[0] == 1 and torch.isfinite(scope["tokens"]).all()


@pytest.mark.weights
def test_the_next_example_continues_the_first(tmp_path, monkeypatch, capsys):
    image = torch.rand(2, 6, 126, 126) * 0.4
    scope = {"bands": BANDS, "pl": pl}
    exec(example("import peft\n"), scope)
    assert "HFPeft(LoraConfig(use_dora=True))" in capsys.readouterr().out
    with torch.no_grad():
        plain = scope["plain"].forward_features(scope["model"].normalize(image))
        torch.testing.assert_close(plain, scope["model"](image), rtol=1e-4, atol=1e-4)


@pytest.mark.weights
def test_the_training_example_trains(tmp_path, monkeypatch, capsys):
    code = example("EarthData")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(code, {"pl": pl})
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1
    assert (tmp_path / "runs" / "my_first" / "results.json").is_file()


@pytest.mark.weights
def test_the_experiment_example_does_its_runs_once(tmp_path, monkeypatch, capsys):
    code = example("execute(")
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path))
    exec(code, {"pl": pl})
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1:3] for line in lines] == [[m, s] for m in ("lora", "deflect") for s in "01"]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("*.json")}
    exec(code, {"pl": pl})
    assert len(made) == 4 and all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())


def test_findings_are_computed_from_committed_rows():
    rows = pd.concat([read_table("real"), read_table("quick")], ignore_index=True)
    found = scoring.scores(rows)
    table = tables.to_text(tables.score_table(found))
    columns = ["tuned, %", "eurosat", "marida", "spectral_scenes"]
    for name, cells in table[columns].iterrows():
        assert f"| {name if isinstance(name, str) else name[-1]} | {' | '.join(cells.str.rstrip(' *'))} |" in README
    assert len(table) == len(pl.METHODS)
    simulated = scoring.summary(scoring.compared(found)).query("column == 'spectral_scenes'")
    first, second = simulated.sort_values("mean", ascending=False)[:2].itertuples()
    assert first.method == "deflect" and f"{first.mean:.1f} against {second.mean:.1f} for the next" in README
    ranks = scoring.mean_ranks(found)["mean"]
    assert set(ranks.index[:2]) == {"lora", "deflect"} and f"({ranks['deflect']:.1f} and {ranks['lora']:.1f}" in README
    chips = scoring.summary(scoring.compared(found)).query("column == 'eurosat'").sort_values("mean", ascending=False)
    assert chips["method"].iloc[0] == "full" and 6 < chips["mean"].iloc[0] - chips["mean"].iloc[1] < 7
    starts = found[(found["dataset"] == "eurosat") & (found["seed"] == 0) & found["kind"].isin(["all bands", "start"])]
    spread = starts.groupby("method")["percent"].std().sort_values(ascending=False)
    assert spread.index[0] == "deflect" and f"± {spread.iloc[0]:.1f}\n  (the next by ± {spread.iloc[1]:.1f})" in README
    rgb = found[found["kind"] == "RGB"].groupby(["dataset", "method"])["percent"].mean()
    best = {name: rgb[name].round(1).nlargest(1, keep="all") for name in ("eurosat", "marida", "spectral_scenes")}
    assert set(best["eurosat"].index) == {"slr", "houlsby"} and f"reach {best['eurosat'].iloc[0]} on EuroSAT" in README
    assert best["marida"].index[0] == "full" and f"{best['marida'].iloc[0]} on MARIDA" in README
    assert f"no method exceeds {best['spectral_scenes'].iloc[0]} without" in README
    deflect = found[(found["method"] == "deflect") & (found["seed"] == found["init"]) & (found["dataset"] == "eurosat")]
    emb, attention, whole = (deflect[deflect["config"] == part]["percent"].mean() for part in ABLATION.values())
    assert f"(EuroSAT {emb:.1f} → {attention:.1f})" in README and f"({whole:.1f})" in README


def test_advice_rests_on_committed_rows():
    advice = README.split("## Which method should I use?")[1].split("\n## ")[0]
    found = scoring.summary(scoring.compared(scoring.scores(pd.concat([read_table("real"), read_table("quick")]))))
    score = found.set_index(["column", "method"])["mean"].round(1)
    best = score["spectral_scenes"].nlargest(2)
    assert best.index[0] == "deflect" and f"{best.iloc[0]} mIoU against {best.iloc[1]} for the next" in advice
    assert score["eurosat"].idxmax() == "full" and f"{score['eurosat', 'full']} macro F1" in advice
    assert f"({score['eurosat', 'lora']}); try both" in advice
    timed = plain_rows(read_bench()).query("image_size == 98").set_index("name")
    size, times = timed["adapter_mb"], timed["step_ms"] / timed.loc["full", "step_ms"]
    assert f"takes {size['deflect']:.1f} MiB and of LoRA {size['lora']:.1f}, a fully tuned" in advice
    assert f"ViT-S {size['full']:.0f};" in advice
    assert f"falls by {1 - timed.loc['lora', 'peak_mb'] / timed.loc['full', 'peak_mb']:.0%}" in advice
    assert f"{times['lora']:.2f} of full fine-tuning's time, DEFLECT's {times['deflect']:.2f}" in advice
    drops = regions_study.mean_of(regions_study.region_scores(read_table("regions")), "drop")["mean"]
    assert drops.max() < 1 and "no method lost more than a point" in advice
    real = regions_study.region_scores(read_table("regions_real"))
    assert regions_study.chance_of_spread(real) > 0.05 and "seeds do not tell methods apart" in advice
    gains = [
        beyond_plots.gain(sensor_study.read(), sensor, ("wavelengths", "transfer"), ("bands", sensor_study.NEAREST))
        for sensor in ("hls", "landsat8")
    ]
    assert all(round(mean) == 3 and low < 0 < high for mean, low, high in gains)
    decoded = decoder_study.scores(read_table(decoder_study.NAME))
    unet = decoder_study.gains(decoded, "unet", "linear").query("dataset == 'spectral_scenes'")
    assert round(unet.query("epochs == 6")["gain"].mean()) == -20 and "20 points behind in 6 epochs" in advice
    upernet = decoder_study.gains(decoded, "upernet", "linear").query("dataset == 'spectral_scenes'")
    assert f"UPerNet {-upernet.query('epochs == 6')['gain'].mean():.0f};" in advice
    longer = [part.query("epochs == 18 and method == 'lora'")["gain"].mean() for part in (unet, upernet)]
    assert "in 18 they gain LoRA {:.0f} and {:.0f})".format(*longer) in advice
    linear = decoded.query(
        "dataset == 'spectral_scenes' and decoder == 'linear' and method == 'deflect' and not located"
    )
    short, long = linear.groupby("epochs")["percent"].mean()
    assert f"(DEFLECT {short:.1f} → {long:.1f})" in advice
    metadata = decoder_study.intervals(decoder_study.gains(decoded, "metadata", ""), ["dataset"])
    assert ((metadata["low"] < 0) & (metadata["high"] > 0)).all()


def test_advice_on_time_series_rests_on_committed_rows():
    told = series_study.scores(read_table(series_study.NAME)).groupby("approach")["percent"].mean().round()
    deflect = sorted(told[f"DEFLECT, {kind} of dates"] for kind in ("set", "sequence"))
    averages = [told[f"DEFLECT, mean over dates{days}"] for days in ("", " with days")]
    numbers = *deflect, told["LoRA, dates as bands"], *averages
    words = "{:.0f} to {:.0f}% of pixels", "LoRA on all dates {:.0f}%", "single dates {:.0f}% without and {:.0f}% with"
    found = [w.format(*n) for w, n in zip(words, (numbers[:2], numbers[2:3], numbers[3:]), strict=True)]
    assert all(text in " ".join(README.split()) for text in found), found
    ceiling = [
        beyond_plots.gain(sensor_study.read(), sensor, ("wavelengths", "transfer"), ("bands", sensor_study.OWN))[0]
        for sensor in ("hls", "landsat8")
    ]
    assert all(-1 < step < 0 for step in ceiling) and "a point or less below training there" in README


def test_every_data_set_is_named():
    from peftlib.data import DATASETS

    assert all(f"`{name}`" in README for name in DATASETS)


def test_method_table_is_computed():
    with torch.device("meta"):
        vit = pl.load_backbone("scalemae_large", weights="random")
    rows = re.findall(r"^\| `pl\.(\w+\(\))` \|.*\| ([\d.]+%) \| ([\d.]+ MB) \| (\d+ GFLOP) \|$", README, re.MULTILINE)
    methods = [config() for config in pl.METHODS.values()]
    assert {name for name, *_ in rows} == {str(method) for method in methods}
    rgb = pl.cost_table(vit, ("B04", "B03", "B02"), methods=[m for m in methods if m.name != "deflect"])
    all_bands = pl.cost_table(vit, tuple(pl.SENSORS["sentinel2"]), methods=[pl.Deflect()])
    computed = {
        name: (f"{row.percent:.2f}%", f"{row.adapter_bytes / 1e6:.1f} MB", f"{row.step_gflops:.0f} GFLOP")
        for table in (rgb, all_bands)
        for name, row in table.iterrows()
    }
    assert {name: tuple(values) for name, *values in rows} == computed
    assert f"forward alone is {rgb.loc['Frozen()', 'forward_gflops']:.0f} GFLOP" in README


def test_backbone_table_is_whole():
    rows = dict(re.findall(r"^\| `(\w+)` \| ViT-[^|]*?(\d+) M\b", README, re.MULTILINE))
    assert set(rows) == set(pl.BACKBONES)
    for name, millions in rows.items():
        with torch.device("meta"):
            vit = pl.load_backbone(name, weights="random")
        assert round(pl.count_parameters(pl.adapt(vit, pl.Frozen(), ("B04", "B03", "B02")))["encoder"] / 1e6) == int(
            millions
        )
        assert vit.spec.licence.split()[0] in re.search(rf"^\| `{name}`.*", README, re.MULTILINE)[0]


def test_named_files_and_commands_exist():
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"`make ([\w-]+)`", README) + re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command


def test_the_yaml_names_a_backbone_and_options_that_exist():
    """``tests/with_terratorch`` trains with it; here it is read."""
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1])
    options = config["model"]["init_args"]["model_args"]
    _, method, backbone = options["backbone"].split("_", 2)
    assert backbone in pl.BACKBONES
    own = {"bands", "image_size"}
    chosen = {name.removeprefix("backbone_"): v for name, v in options.items() if name.startswith("backbone_")}
    pl.METHODS[method].from_options({name: value for name, value in chosen.items() if name not in own})
