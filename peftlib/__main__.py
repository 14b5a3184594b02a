"""Command line: ``python -m peftlib run | doctor | weights | study | metamers | sensors | bench``."""

import argparse
import importlib
import sys
import time
from functools import partial
from pathlib import Path

from peftlib.files import root

# Name -> module and arguments of its ``study``; 04 writes its rows itself.
STUDIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "decoders": ("studies.decoders", ()),
    "regions": ("studies.regions", ("quick",)),
    "regions_real": ("studies.regions", ("real",)),
    "series": ("studies.series", ()),
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="peftlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute notebooks into runs/, figures into figures/")
    run.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="path, or name in notebooks/")
    run.add_argument("--profile", default="quick", help="quick (default), real or paper")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebook")
    run.add_argument("--if-changed", action="store_true", help="skip what is up to date")
    commands.add_parser("doctor", help="versions, device, weights, data: OK or what to do")
    commands.add_parser("weights", help="fetch and check the default backbone's weights")
    study = commands.add_parser("study", help="do the runs behind a notebook's committed rows: data/results/<name>.csv")
    study.add_argument("name", choices=list(STUDIES), help="decoders: 06; regions, regions_real: 08; series: 09")
    study.add_argument("--workers", type=int, default=1, help="processes; each does runs of its own")
    test = commands.add_parser("metamers", help="references of the metamer test: data/results/spectral_scenes.csv")
    test.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    sensors = commands.add_parser("sensors", help="rows of the study of sensors: data/results/beyond.csv")
    known = "sentinel2, hls, landsat8 or hyperspectral"
    sensors.add_argument("--trained-on", nargs="+", default=["sentinel2"], metavar="SENSOR", help=known)
    sensors.add_argument("--tested-on", nargs="+", default=["hls", "landsat8"], metavar="SENSOR", help=known)
    race = commands.add_parser("bench", help="step time, memory and arithmetic of each method, beside HF peft's LoRA")
    race.add_argument("--backbone", default="dinov2_small")
    race.add_argument("--size", type=int, default=98, help="side of the images in pixels")
    race.add_argument("--batch", type=int, default=32)
    race.add_argument("--methods", nargs="+", metavar="METHOD", help="names in peftlib.METHODS; all unless given")
    race.add_argument("--repeats", type=int, default=10)
    race.add_argument("--device", default="", help="cpu or cuda; a GPU where there is one")
    race.add_argument("--precision", default="float32", help="float32, or bfloat16 (autocast)")
    race.add_argument("--compile", action="store_true", help="with torch.compile")
    race.add_argument("--checkpoint", action="store_true", help="with activation checkpointing")
    race.add_argument("--out", metavar="FOLDER", help="write bench.json, bench.csv and bench.md there")
    options = parser.parse_args(arguments)
    act = {"run": _run, "doctor": _doctor, "weights": _weights, "study": _study}
    act |= {"metamers": _metamers, "sensors": _sensors, "bench": _bench}
    try:
        return act[options.command](options)
    except OSError as error:  # what is not there, cannot be fetched or cannot be written; the message names it
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from peftlib.studies.notebooks import NotebookFailed, run_notebooks

    clock = time.perf_counter()
    try:
        pairs = [_name_and_value(text) for text in options.set]
        made = run_notebooks(options.notebooks, options.profile, dict(pairs), options.if_changed)
    except (ValueError, NotebookFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    figures = sorted({path for result in made for path in result.figures})
    folders = sorted({str(p.parent.relative_to(root()) if p.is_relative_to(root()) else p.parent) for p in figures})
    ran = sum(result.ran for result in made)
    print(
        f"done: {len(made)} notebooks ({ran} executed), {len(figures)} figure files in {', '.join(folders) or 'none'}, "
        f"{time.perf_counter() - clock:.0f} s"
    )
    return 0


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--set {text!r}; write --set name=value")
    return name, value


def _doctor(_: argparse.Namespace) -> int:
    from peftlib.studies.doctor import doctor

    return 0 if doctor() else 1


def _weights(_: argparse.Namespace) -> int:
    from peftlib.backbones.dinov2_wheel import dinov2_small_state

    try:
        dinov2_small_state()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("weights: dinov2_small ready")
    return 0


def _study(options: argparse.Namespace) -> int:
    from peftlib.experiments.grid import execute, pool
    from peftlib.experiments.results import RESULTS, write_table

    module, arguments = STUDIES[options.name]
    study = importlib.import_module(f"peftlib.{module}").study
    workers = pool(options.workers) if options.workers > 1 else None
    rows = study(*arguments, execute=partial(execute, executor=workers))
    failed, runs = rows.loc[rows["status"] == "failed", "key"].nunique(), rows["key"].nunique()
    if failed:
        print(f"error: {failed} of {runs} runs failed, nothing was written; run again", file=sys.stderr)
        return 1
    print(f"{runs} runs in {write_table(rows, root() / RESULTS / f'{options.name}.csv')}")
    return 0


def _metamers(options: argparse.Namespace) -> int:
    from peftlib.experiments.metamers import references
    from peftlib.files import atomic_path
    from peftlib.studies.comparison import SETTINGS

    data = SETTINGS["quick"][0].data  # the scenes of the quick profile's runs
    rows = references(data["length"], data["size"], options.seeds)
    with atomic_path(root() / "data" / "results" / "spectral_scenes.csv") as temporary:
        rows.round(4).to_csv(temporary, index=False)
    pairs = rows[rows["metric"] == "pairs"]
    print(pairs.groupby(["task", "method"], sort=False)["value"].agg(["mean", "std"]).round(3))
    return 0


def _sensors(options: argparse.Namespace) -> int:
    from peftlib.files import runs_dir
    from peftlib.studies.sensors import plan, study, write

    rows = study(plan(trained_on=options.trained_on), runs_dir() / "sensors", options.tested_on)
    write(rows)
    print(rows[rows["metric"] == "miou"].groupby(["sensor", "options", "reading"])["value"].agg(["mean", "std"]))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from peftlib.methods import METHODS
    from peftlib.studies.bench import bench, markdown

    try:
        rows = bench(
            options.backbone,
            options.size,
            options.batch,
            options.methods or list(METHODS),
            options.repeats,
            options.device,
            options.precision,
            options.compile,
            options.checkpoint,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown(rows))
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        rows.to_json(folder / "bench.json", orient="records", indent=1)
        rows.to_csv(folder / "bench.csv", index=False, float_format="%.5g")
        (folder / "bench.md").write_text(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
