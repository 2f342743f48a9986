"""Neuroglancer in headless Chromium, for tests and benchmarks: `pip install neuroglancer playwright`, and chromium."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WEBGL_WITHOUT_GPU = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WINDOW = {"width": 1280, "height": 900}

ALL_IS_DRAWN = """() => {
    const viewer = window.viewer, layers = viewer?.layerManager?.managedLayers ?? [];
    return layers.length === 4 && layers.every(layer => layer.isReady()) && viewer.isReady();
}"""
"""Whether raw and three masks are drawn, sharp."""


@contextmanager
def opened(link: str) -> Iterator[str]:
    """Yield the address of a page that shows what a link says: the wheel's own page takes its state from Python."""
    import neuroglancer

    viewer = neuroglancer.Viewer()
    try:
        viewer.set_state(json.loads(unquote(link.partition("#!")[2])))
        yield str(viewer)
    finally:
        neuroglancer.stop()


def photograph(url: str, picture: Path) -> set[str | None]:
    """Open a page in a headless browser, save a screenshot when all is drawn, and return the hosts that it contacts."""
    from playwright.sync_api import sync_playwright

    hosts: set[str | None] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL_WITHOUT_GPU)
        page = browser.new_page(viewport=WINDOW)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(url)
        page.wait_for_function(ALL_IS_DRAWN, timeout=120_000)
        page.screenshot(path=picture)
        browser.close()
    return hosts - {None}
