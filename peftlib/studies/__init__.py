"""What stands behind notebooks 04 to 09: the experiments that each study plans, and tables and pictures of its rows.

A study is a module with ``study(execute) -> (runs, metrics)``; ``execute`` is ``peftlib.experiments.grid.execute`` with
its options filled in. ``python -m peftlib study NAME`` writes its rows to ``data/results``.
"""
