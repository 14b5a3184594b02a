"""What stands behind notebooks 04 to 09: which experiments each study plans, and the tables and pictures of its rows.

A study is a module with ``study(execute) -> (runs, metrics)``; ``execute`` is ``peftlib.experiments.grid.execute`` with
its options filled in. ``python -m peftlib study NAME`` writes ``data/results/NAME``.
"""

STUDIES = {  # name of the rows -> module
    "preliminary": "comparison",
    "decoders": "decoders",
    "regions": "regions",
    "series": "series",
    "sensors": "sensors",
}
