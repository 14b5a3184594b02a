"""Notebooks in JupyterLab itself, in headless Chromium: cells run, and widgets change pictures."""

import io
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
WIDGETS = {  # notebook -> how many sliders and buttons change its picture
    "00_data_tour": (1, 1),
    "01_embedding_decomposition": (2, 0),
    "02_uatt_visualization": (4, 0),
    "03_norm_constraint_analysis": (3, 0),
}
WIDGET = "window.jupyterapp.shell.currentWidget"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a server on a copy of the notebooks: what the browser saves is not ours."""
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(8)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--notebook-dir={folder}", f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    places = {"PEFTLIB_FIGURES": str(folder / "figures"), "PEFTLIB_RUNS": str(folder / "runs")}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | places)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield f"{address}/lab/tree/notebooks/{{}}.ipynb?token={token}&reset"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


def run_all(browser, address: str):
    """A page on which every cell of a notebook has run, and what the cells gave."""
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", polling=500
    )
    page.evaluate(f"{WIDGET}.content.notebookConfig = {{...{WIDGET}.content.notebookConfig, windowingMode: 'none'}}")
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = f"{WIDGET}.content.model.sharedModel.toJSON().cells"
    code = f"{cells}.filter(c => c.cell_type === 'code')"
    page.wait_for_function(
        f"{WIDGET}.sessionContext.session.kernel.status === 'idle' && ({code}.every(c => c.execution_count)"
        f" || {code}.some(c => c.outputs.some(o => o.output_type === 'error')))",
        polling=500,
        timeout=600_000,
    )
    return page, page.evaluate(cells)


def check_ran(cells: list[dict]) -> None:
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    errors = [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    assert not errors, errors[0]


def picture(locator) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("L"), dtype=float)


def test_pages_of_the_site_need_no_network(browser, tmp_path):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-c", "docs", "-q", ".", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0 and not built.stderr, built.stderr
    page = browser.new_context(offline=True).new_page()
    failed = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    for path in sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]):
        page.goto(f"file://{tmp_path / path.relative_to(ROOT).with_suffix('.html')}")
        assert page.title().strip() and page.evaluate("[...document.images].every(image => image.naturalWidth)"), path
    page.goto(f"file://{tmp_path}/notebooks/03_norm_constraint_analysis.html")
    page.wait_for_selector(".MathJax")
    assert not [url for url in failed if url != "about:blank"]  # where MathJax looks for a font that it needs not


@pytest.mark.parametrize("notebook", WIDGETS)
def test_widgets_change_the_picture(notebook, lab, browser):
    page, cells = run_all(browser, lab.format(notebook))
    check_ran(cells)
    page.wait_for_selector(".widget-image", state="attached")
    shown = page.locator(".widget-image").first
    shown.scroll_into_view_if_needed()
    sliders, buttons = WIDGETS[notebook]
    assert (page.locator(".noUi-target").count(), page.locator(".widget-toggle-button").count()) == (sliders, buttons)
    for place in range(sliders + buttons):
        before, source = picture(shown), shown.get_attribute("src")
        if place < sliders:
            track = page.locator(".noUi-target").nth(place)
            width, height = (track.bounding_box()[side] for side in ("width", "height"))
            # where no handle is: a click on one moves nothing
            track.click(position={"x": 0.65 * width, "y": height / 2}, force=True)
        else:
            page.locator(".widget-toggle-button").nth(place - sliders).click()
        page.wait_for_function(f"document.querySelector('.widget-image').src !== '{source}'", polling=200)
        page.wait_for_timeout(300)
        after = picture(shown)
        after = after[: before.shape[0], : before.shape[1]]
        assert (np.abs(after - before[: after.shape[0], : after.shape[1]]) > 30).mean() > 0.002, place
    page.close()
