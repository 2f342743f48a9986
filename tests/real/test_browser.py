"""The slicer in a real browser: in JupyterLab, and by `liver-dask view`. Off by default: `pytest -m real tests/real`.

It takes a minute. It needs Chromium (Debian's package `chromium`) and, from PyPI, `jupyterlab`, `voila` and
`playwright` (its own browsers are not needed). `LIVER_DASK_PICTURES=FOLDER` keeps the screenshots.
"""

import io
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.browser import SHAPE, Z_SLIDER, viewing
from helpers.paths import ROOT
from helpers.waiting import free_port
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import make_archive

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

VOXEL = re.compile(
    r"z 5, y (\d+), x (\d+)(?:; z 5, y (\d+)(?: to (\d+))?, x (\d+) to (\d+))?: raw (\d+)(?: \(mean\))?, mito (\d+)"
)
NOTEBOOK = ROOT / "notebooks" / "01_open_and_look.ipynb"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright from PyPI")
    chromium = shutil.which("chromium") or pytest.skip("needs Debian's chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def running(command: list[str], url: str, folder: Path) -> Iterator[None]:
    """Run a server on this machine until the end of the context."""
    process = subprocess.Popen([sys.executable, *command], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(300):
            assert process.poll() is None, process.stderr.read()
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)


def picture_of(canvas) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


def slide_and_toggle(page, pictures: Path, name: str, first_z: int) -> None:
    """Check that slider, checkbox of the mitochondria, mouse wheel and planes work, and save screenshots."""
    canvas = page.locator(".jupyter-matplotlib-canvas-container").first
    canvas.wait_for(timeout=120_000)
    page.wait_for_timeout(5000)
    where, handle = page.get_by_text(re.compile(r"^z \d+, y")).first, page.locator(Z_SLIDER).first

    def look(what: str) -> np.ndarray:
        page.wait_for_timeout(3000)
        handle.evaluate("element => element.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(500)
        page.screenshot(path=pictures / f"{name}-{what}.png")
        return picture_of(canvas)

    first, text = look("before"), where.inner_text()
    assert text.startswith(f"z {first_z},")
    assert first.std() > 20, "there is no picture"
    handle.focus()
    for _ in range(2):
        handle.press("ArrowRight")
        page.wait_for_timeout(1000)
    slid = look("slid")
    assert where.inner_text() == text.replace(f"z {first_z}", f"z {first_z + 2}")
    assert np.abs(slid - first).mean() > 2, "the slider changed nothing"
    page.get_by_label("mito").first.uncheck()
    without = look("without-mito")
    less_red = slid[..., 0] - slid[..., 1] - (without[..., 0] - without[..., 1])
    assert (less_red > 20).mean() > 0.01, "mitochondria are still red"
    text = where.inner_text()
    canvas.hover()
    page.mouse.wheel(0, -400)
    look("zoomed")
    assert where.inner_text() != text, "the wheel did not zoom"
    page.get_by_role("button", name="XZ").first.click()
    side = look("from-the-side")
    assert page.get_by_text(re.compile(r"^y \d+, z 0 to 24, x")).first.is_visible()
    assert side.std() > 10, "there is no picture"


def test_the_value_under_the_mouse(browser, tmp_path: Path) -> None:
    """At five zooms, what is told of the voxel under the mouse is what the archive has there, or its mean."""
    pytest.importorskip("voila", reason="needs the extra `app`")
    make_archive(tmp_path / "archive", SHAPE)
    raw, mito = (np.asarray(Image.open(tmp_path / "archive" / EMPIAR_13356.path(name, 5))) for name in ("raw", "mito"))
    steps = set()
    with viewing(tmp_path, "archive", "--shape", *map(str, SHAPE), "--z", "5", "--port", "0") as address:
        page = browser.new_page(viewport={"width": 700, "height": 1000})
        page.goto(address)
        canvas = page.locator(".jupyter-matplotlib-canvas-container").first
        canvas.wait_for(timeout=120_000)
        box = canvas.bounding_box()
        x, y = box["x"] + 0.55 * box["width"], box["y"] + 0.5 * box["height"]
        for _ in range(5):
            page.wait_for_timeout(4000)
            page.mouse.move(x + 7, y + 3)
            page.mouse.move(x, y)
            page.wait_for_timeout(1000)
            told = page.get_by_text(VOXEL).first.inner_text()
            row, column, first, last, left, right, value, mask = (int(n or -1) for n in VOXEL.match(told).groups())
            if left < 0:
                steps.add(1)
                assert value == raw[row, column], told
                assert mask == mito[row, column], told
            else:
                steps.add(right + 1 - left)
                assert left <= column <= right, told
                assert abs(value - raw[max(first, 0), left : right + 1].mean()) <= 1, told
                assert last < 0, "a mean over several rows of an archive"
            page.mouse.wheel(0, -200)
        page.close()
    assert 1 in steps
    assert len(steps) > 1


def test_in_jupyterlab(browser, tmp_path: Path, pictures: Path) -> None:
    """The slicer of the first notebook is drawn in JupyterLab, and its controls work."""
    pytest.importorskip("jupyterlab", reason="needs jupyterlab from PyPI")
    shutil.copy(NOTEBOOK, tmp_path)
    port = free_port()
    options = [f"--port={port}", "--ip=127.0.0.1", "--IdentityProvider.token=", "--no-browser", "--allow-root"]
    url = f"http://127.0.0.1:{port}/lab"
    with running(["-m", "jupyterlab", *options], url, tmp_path):
        page = browser.new_page(viewport={"width": 1300, "height": 1250})
        page.goto(f"{url}/tree/{NOTEBOOK.name}")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        page.get_by_text("Python 3").first.wait_for(timeout=60_000)
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        slide_and_toggle(page, pictures, "jupyterlab", 13)
        page.close()


def test_without_a_notebook(browser, tmp_path: Path, pictures: Path) -> None:
    """`liver-dask view` shows the slicer in a browser without a notebook, and its controls work."""
    pytest.importorskip("voila", reason="needs the extra `app`")
    make_archive(tmp_path / "archive", SHAPE)
    with viewing(tmp_path, "archive", "--shape", *map(str, SHAPE), "--z", "5", "--port", "0") as address:
        page = browser.new_page(viewport={"width": 1000, "height": 1100})
        page.goto(address)
        slide_and_toggle(page, pictures, "view", 5)
        page.close()
