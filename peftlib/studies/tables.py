"""Scores -> the paper's table, as text, LaTeX and CSV, with what stands under it, and what it advises.

found = tables.scores(results.read_table("real"))
tables.to_text(tables.score_table(found))
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from peftlib.experiments.results import REFERENCE
from peftlib.experiments.statistics import choice, columns, compared, mean_ranks, scores, summary
from peftlib.files import atomic_path, figures_dir, root

LABELS = {
    "frozen": "Frozen",
    "full": "Full fine-tuning",
    "patch_embed": "Patch embedding",
    "norm_tuning": "Norm tuning",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "slr": "SLR",
    "houlsby": "Houlsby",
    "vpt": "VPT",
    "earth_adapter": "Earth-Adapter",
    "deflect": "DEFLECT",
}
METRICS = {"macro_f1": "macro F1", "miou": "mIoU", "map": "mAP", "iou_burnt": "IoU"}
PAPER_METRICS = {"mF1": "macro F1"}
PUBLISHED = "published"  # in the place of a backbone: the paper's Table 1, Scale-MAE ViT-L
NONE = "–"
LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--"}
)


def published() -> pd.DataFrame:
    """Table 1 of the DEFLECT paper: columns backbone ("published"), method, tuned, dataset, metric, mean, std."""
    table = pd.read_csv(root() / REFERENCE / "published_table1.csv").rename(columns={"encoder_tuned_percent": "tuned"})
    return table.assign(backbone=PUBLISHED, method=table["method"].replace("finetuning", "full"))


def score_table(scores: pd.DataFrame, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """The paper's table in long form; ``to_text``, ``to_latex`` and ``to_csv`` write it.

    Args:
        published: of ``published``; its rows follow ours for the data sets that are the same, and are not ranked.

    Returns:
        columns of ``summary`` by backbone and method, and mark: "best", "second" or "" in a column of a backbone, by
        means rounded as they are shown, so that equal numbers have equal marks.
    """
    main = compared(scores)
    ours, order = summary(main, ("backbone", "method")), list(main["method"].unique())
    ours = ours.assign(place=ours["method"].map(order.index)).sort_values(["backbone", "place"], kind="stable")
    shown = ours.assign(mean=ours["mean"].map(number).astype(float)).groupby(["backbone", "column"])["mean"]
    mark = shown.rank(ascending=False, method="dense").map({1: "best", 2: "second"}).fillna("")
    table = ours.drop(columns="place").assign(mark=mark)
    if published is None:
        return table
    theirs = []
    for column, names in columns(main).items():
        part = published[published["dataset"].isin(names)]
        for method, mine in part.groupby("method", sort=False):
            if len(mine) == len(names):
                std = mine["std"].item() if len(names) == 1 else math.nan  # of averages none was published
                facts = {"column": column, "mean": mine["mean"].mean(), "std": std, "tuned": mine["tuned"].mean()}
                theirs.append({"backbone": PUBLISHED, "method": method, "seeds": 3, "mark": ""} | facts)
    return pd.concat([table, pd.DataFrame(theirs, columns=table.columns)], ignore_index=True) if theirs else table


def to_text(table: pd.DataFrame) -> pd.DataFrame:
    """A score table as one reads it: "61.2 ± 1.3", "*" behind the best, "–" for none. A single model is not named."""
    wide = _wide(table, lambda row: number(row["mean"], row["std"]) + ("*" if row["mark"] == "best" else " "))
    return wide.droplevel("model") if wide.index.get_level_values("model").nunique() == 1 else wide


def _wide(table: pd.DataFrame, cell: Callable[[pd.Series], str]) -> pd.DataFrame:
    """A row a model and method, a column a data set or average, cells as text."""
    if table.empty:
        return pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []], names=["model", "method"]))
    names = {"model": table["backbone"], "method": table["method"].map(label)}
    long = table.assign(**names, text=table.apply(cell, axis=1))
    rows = pd.MultiIndex.from_frame(long[list(names)].drop_duplicates())
    wide = long.set_index([*names, "column"])["text"].unstack()
    wide = wide.reindex(index=rows, columns=long["column"].unique()).fillna(NONE).rename_axis(columns=None)
    wide.insert(0, "tuned, %", long.groupby(list(names))["tuned"].mean().map("{:.2f}".format).reindex(rows))
    return wide


def to_latex(table: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """A score table for LaTeX with ``booktabs``: the best bold, the second underlined, a rule between models."""
    wide = _wide(table, _latex_cell)
    lines = [" & ".join(map(_escape, ["model", "method", *wide.columns]))]
    models = wide.index.get_level_values("model")
    for i, ((model, method), cells) in enumerate(wide.iterrows()):
        first = i == 0 or models[i - 1] != model
        lines += ["\\midrule"] if first else []
        lines.append(" & ".join([_escape(model) if first else "", _escape(method), *cells.replace(NONE, "--")]))
    body = "\n".join(line if line.startswith("\\midrule") else line + " \\\\" for line in lines)
    head = f"\\begin{{tabular}}{{ll{'r' * len(wide.columns)}}}\n\\toprule\n"
    foot = "".join(f"\\par\\footnotesize {_escape(note)}\n" for note in notes)
    return f"{head}{body}\n\\bottomrule\n\\end{{tabular}}\n{foot}"


def to_csv(table: pd.DataFrame) -> str:
    """A score table in long form, numbers in percent with two decimals, empty where there is none."""
    named = table.rename(columns={"backbone": "model", "tuned": "tuned_percent"})
    return named.to_csv(index=False, float_format="%.2f", lineterminator="\n")


def save_table(table: pd.DataFrame, notes: Sequence[str], name: str, profile: str) -> list[Path]:
    """Write ``figures/<profile>/<name>.tex`` and ``.csv``, each whole or not at all."""
    paths = [figures_dir(profile) / f"{name}.{suffix}" for suffix in ("tex", "csv")]
    for path, text in zip(paths, (to_latex(table, notes), to_csv(table)), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
    return paths


def _latex_cell(row: pd.Series) -> str:
    text = number(row["mean"], row["std"]).replace("±", "$\\pm$")
    return {"best": f"\\textbf{{{text}}}", "second": f"\\underline{{{text}}}"}.get(row["mark"], text)


def _escape(text: str) -> str:
    return text.translate(LATEX)


def label(method: str) -> str:
    """A method's name as people write it."""
    return LABELS.get(method, method)


def number(mean: float, std: float = math.nan, digits: int = 1) -> str:
    """``61.2 ± 1.3``; of one seed ``61.2``."""
    return f"{mean:.{digits}f}" if math.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def over_seeds(values: pd.Series) -> str:
    """``number`` of their mean and standard deviation."""
    return number(values.mean(), values.std())


def interval(mean: float, low: float, high: float) -> str:
    """``+1.2 (-0.3 to +2.7)``: a difference and its interval."""
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def notes(rows: pd.DataFrame, published: pd.DataFrame | None = None) -> list[str]:
    """What stands under the table: what the numbers are, which runs failed, what is missing."""
    main = compared(scores(rows))
    if main.empty:
        return ["No method has a finished final run.", failures(rows)]
    runs = main.groupby(["method", "dataset", "backbone"], sort=False).size().unstack("method", fill_value=0).stack()
    seeds, folded = _count(int(runs.max()), "seed"), sorted(main.loc[main["folds"] > 0, "dataset"].unique())
    fewer = [f"{label(m)} on {d}, {b} ({n})" for (d, b, m), n in runs[runs < runs.max()].items()]
    measures = main.groupby(main["metric"].map(lambda name: METRICS.get(name, name)))["dataset"].unique()
    measured = ", ".join(f"{measure} ({', '.join(sorted(names))})" for measure, names in measures.items())
    lines = [
        f"{', '.join(sorted(main['backbone'].unique()))}; test part, mean ± standard deviation over {seeds}, in % of "
        f"{measured}. An average weighs its data sets equally; {NONE} where runs are missing."
    ]
    lines += [f"The seed also picks the fold that is tested on {', '.join(folded)}."] if folded else []
    lines += [failures(rows)]
    lines += [f"Fewer than {seeds}: {'; '.join(fewer)}."] if fewer else []
    return lines + ([] if published is None else _on_published(main, published))


def _on_published(main: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    theirs = dict(zip(published["dataset"], published["metric"], strict=True))
    ours = {name: METRICS.get(metric, metric) for name, metric in zip(main["dataset"], main["metric"], strict=True)}
    both = sorted(set(ours) & set(theirs))
    other = [name for name in both if PAPER_METRICS.get(theirs[name], theirs[name]) != ours[name]]
    line = f"{PUBLISHED}: Table 1 of the DEFLECT paper, Scale-MAE; its averages over these data sets are ours."
    return [line + "".join(f" Of {name} it gives {theirs[name]}, not {ours[name]}." for name in other)] if both else []


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


def failures(rows: pd.DataFrame) -> str:
    """How many runs failed, or ended without a finite score, and which, with the first error of each kind."""
    runs = rows.drop_duplicates("key")
    failed = runs[runs["status"].eq("failed")]
    scored = rows[rows["headline"].eq(True) & rows["status"].eq("done")]
    blank = scored[~np.isfinite(scored["value"].astype(float))].drop_duplicates("key").assign(error="no finite score")
    failed = pd.concat([failed, blank]) if len(blank) else failed
    if failed.empty:
        return f"None of {len(runs)} runs failed."
    groups = failed.sort_values(["dataset", "method", "stage", "key"]).groupby(["dataset", "method", "stage"])
    named = [f"{len(g)} {label(m)} on {d}, {s} ({str(g['error'].iloc[0])[:120]})" for (d, m, s), g in groups]
    return f"{len(failed)} of {len(runs)} runs failed: {'; '.join(named)}."


def advice(scores: pd.DataFrame) -> str:
    """Which method to take, in a few sentences computed from the scores; those last that rank like the first."""
    table = choice(scores)
    if table.empty:
        return "No method has a run on every data set yet, so there is no advice."
    best, pick = table.iloc[0], table[table["pick"]].iloc[0]
    main = compared(scores)
    names = columns(main)[best["column"]]
    where = names[0] if len(names) == 1 else f"{len(names)} data sets"
    text = f"Highest mean over {where}: {_told(best)}."
    if math.isnan(best["std"]):
        text += " One seed: what is as good cannot be told."
    elif pick["method"] == best["method"]:
        text += f" Nothing smaller comes within one standard deviation ({best['std']:.1f} points) of it."
    else:
        text += f" Smallest within one standard deviation ({best['std']:.1f} points) of it: {_told(pick)}."
    if len(names) > 1:
        each = summary(main)
        tops = {name: each[each["column"] == name].sort_values("mean").iloc[-1] for name in names}
        text += " Best by data set: " + ", ".join(f"{name} {label(top['method'])}" for name, top in tops.items()) + "."
    ranks = mean_ranks(scores)
    level = ranks[ranks["low"] <= ranks["high"].iloc[:1].sum()]
    if len(level) > 1:
        text += f" Rank intervals that overlap the first, {len(level)} of {len(ranks)}, which these runs do not order: "
        text += ", ".join(map(label, level.index)) + "."
    left = [label(name) for name in dict.fromkeys(main["method"]) if name not in set(table["method"])]
    return text + (f" Left out, for want of runs: {', '.join(left)}." if left else "")


def _told(row: pd.Series) -> str:
    return f"{label(row['method'])} ({number(row['mean'])}%, tunes {row['tuned']:.2f}% of the encoder)"
