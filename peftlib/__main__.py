"""Command line: ``python -m peftlib run | study | weights | bench``."""

import argparse
import importlib
import sys
from functools import partial
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="peftlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="execute notebooks into runs/, figures into figures/")
    run.set_defaults(act=_run)
    run.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="path, or name in notebooks/")
    run.add_argument("--profile", default="quick", help="quick (default), real or paper")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebook")

    study = commands.add_parser("study", help="do the runs behind a notebook's committed rows, and write them")
    study.set_defaults(act=_study)
    study.add_argument("name", choices=studies(), help="a module of peftlib/studies")
    study.add_argument("--workers", type=int, default=1, help="processes; each does runs of its own")

    weights = commands.add_parser("weights", help="fetch and check the default backbone's weights")
    weights.set_defaults(act=_weights)

    race = commands.add_parser("bench", help="step time, memory and arithmetic of each method, beside HF peft's LoRA")
    race.set_defaults(act=_bench)
    race.add_argument("--backbone", default="dinov2_small")
    race.add_argument("--size", type=int, nargs="+", default=[56, 98, 224], help="sides of the images in pixels")
    race.add_argument("--batch", type=int, nargs="+", default=[32, 32, 8], help="images a batch, for each size")
    race.add_argument("--methods", nargs="+", metavar="METHOD", default=argparse.SUPPRESS, help="all unless given")
    race.add_argument("--repeats", type=int, default=10)
    race.add_argument("--device", default="", help="cpu or cuda; a GPU where there is one")
    race.add_argument("--compile", action="store_true", help="with torch.compile", dest="compiled")
    race.add_argument("--out", metavar="FILE.csv", help="write the rows there")

    options = vars(parser.parse_args(arguments))
    options.pop("command")
    try:
        return options.pop("act")(**options)
    except (OSError, ValueError) as error:  # not there, not to be had, not to be written, not to be understood
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}\nwhat is finished is kept; the same command again continues", file=sys.stderr)
        return 130


def studies() -> list[str]:
    """Modules of ``peftlib.studies`` that have a function ``study``, found without importing them."""
    folder = Path(__file__).parent / "studies"
    return [path.stem for path in sorted(folder.glob("*.py")) if "\ndef study(" in path.read_text()]


def _run(notebooks: list[str], profile: str, set: list[str]) -> int:
    from peftlib.studies.notebooks import run_notebooks

    settings = {}
    for text in set:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--set {text!r}; write --set name=value")
        settings[name] = value
    run_notebooks(notebooks, profile, settings)
    return 0


def _study(name: str, workers: int) -> int:
    """A study gives tables of runs and metrics, to be committed under its name, and some give ``summaries`` of them."""
    from peftlib.experiments.grid import execute
    from peftlib.experiments.results import write_study

    module = importlib.import_module(f"peftlib.studies.{name}")
    executor = "processes" if workers > 1 else "in-process"
    runs, metrics = module.study(partial(execute, executor=executor, workers=workers))
    folder = write_study(runs, metrics, name)
    for title, table in getattr(module, "summaries", lambda *_: {})(runs, metrics).items():
        table.to_csv(folder / f"{title}.csv", index=False, float_format="%.6g")
    print(f"{len(runs)} runs in {folder}")
    if failed := (runs["status"] == "failed").sum():
        print(f"error: {failed} of them failed; their rows say why. Run again to repeat them", file=sys.stderr)
    return int(failed > 0)


def _weights() -> int:
    from peftlib.backbones.dinov2_wheel import dinov2_small_state

    dinov2_small_state()
    print("weights: dinov2_small ready")
    return 0


def _bench(out: str | None, size: list[int], batch: list[int], **options) -> int:
    import pandas as pd

    from peftlib.studies.bench import bench, markdown

    if len(size) != len(batch):
        raise ValueError(f"--size {size} --batch {batch}; give one batch size for each size")
    tables = []
    for image_size, batch_size in zip(size, batch, strict=True):
        tables.append(bench(image_size=image_size, batch_size=batch_size, **options))
        print(markdown(tables[-1]))
    if out:
        pd.concat(tables).to_csv(out, index=False, float_format="%.5g")
    return 0


if __name__ == "__main__":
    sys.exit(main())
