"""Sphinx's settings for `make site`: README, docs and notebooks, as they are committed, as pages without a network."""

from pathlib import Path

import jupyter_server_mathjax

project, author, copyright = "peftlib", "the peftlib authors", "the peftlib authors, Apache-2.0"
root_doc = "docs/index"
extensions = ["myst_nb"]
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "*.md"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"  # pages show the committed outputs; nbval says that they are right
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type"]  # links to single files stay links
html_theme = "furo"
html_title = "peftlib"
html_static_path = [str(Path(jupyter_server_mathjax.__file__).parent / "static")]
mathjax_path = "MathJax.js?config=TeX-AMS-MML_HTMLorMML-full"
mathjax2_config = {
    "HTML-CSS": {"availableFonts": [], "webFont": "STIX-Web", "imageFont": None},  # the fonts that come with it
    "tex2jax": {"processClass": "tex2jax_process|mathjax_process|math|output_area"},
}
myst_update_mathjax = False  # that is for versions 3 and 4
nb_ipywidgets_js: dict = {}  # widgets want a kernel; their static pictures are there
