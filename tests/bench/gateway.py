"""What neuroglancer shows of an archive that is not downloaded: `python gateway.py ARCHIVE [PICTURES]`.

ARCHIVE is of tests/helpers/build_archive.py, slices of 20000 x 20000, on a server of 1.5 MB/s a connection and 0.3 s of
latency. `liver-dask serve` is a process, and so is the browser. It opens the printed link, zooms in 4 x twice, and goes
on to other slices, as tests/bench/view.py does with the slicer. Told are the seconds until the first picture and until
all is sharp, and what was fetched from the archive. Needs `pip install neuroglancer playwright` and Debian's chromium.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from view import LOOKS, SHAPE

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.servers import Slow, running
from helpers.hostile import EBI_WITHOUT_STALLS
from helpers.neuroglancer import ALL_IS_DRAWN, CHROMIUM, WEBGL_WITHOUT_GPU, WINDOW, opened

HAS_PICTURE = """() => window.viewer?.layerManager?.managedLayers?.some(layer =>
    layer.name === "raw" && layer.layer?.renderLayers.some(one => one.layerChunkProgressInfo.numVisibleChunksAvailable))
"""
GO_TO = """([z, scale]) => {
    viewer.position.value = Float32Array.from([viewer.position.value[0], viewer.position.value[1], z]);
    viewer.navigationState.zoomFactor.value = scale;
}"""


@contextmanager
def serving(url: str) -> Iterator[str]:
    """`liver-dask serve`, and the link that it prints."""
    command = [sys.executable, "-c", "from liver_dask.cli import main; main()", "serve", url, "--port", "0"]
    command += ["--shape", *map(str, SHAPE), "--z", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if link := re.search(r"neuroglancer: (.*)", line):
                yield link[1]
                break
    finally:
        process.terminate()
        process.wait(timeout=30)


def look(page: Page, archive: Any, what: str, pictures: Path | None) -> dict[str, Any]:
    """Wait until all is sharp."""
    began = time.monotonic()
    page.wait_for_function(HAS_PICTURE, polling=20, timeout=120_000)
    first = time.monotonic() - began
    if pictures:
        page.screenshot(path=pictures / f"{what} first.png")
    page.wait_for_function(ALL_IS_DRAWN, polling=20, timeout=120_000)
    sharp = time.monotonic() - began
    if pictures:
        page.screenshot(path=pictures / f"{what}.png")
    sent = archive.sent()
    return {
        "what": what,
        "first, s": round(first, 2),
        "sharp, s": round(sharp, 2),
        "MB": round(sent.bytes / 1e6, 2),
        "requests": sent.requests,
    }


def looks(page: Page, url: str, archive: Any, pictures: Path | None) -> Iterator[dict[str, Any]]:
    archive.sent()
    page.goto(url, wait_until="commit")
    yield look(page, archive, "whole slice", pictures)
    whole = page.evaluate("viewer.navigationState.zoomFactor.value")
    for what, z, share, rest in LOOKS[1:]:
        page.wait_for_timeout(1000 * rest)
        archive.sent()
        page.evaluate(GO_TO, [z, whole / share])
        page.wait_for_timeout(30)
        yield look(page, archive, what, pictures)


def main(archive: Path, pictures: Path | None) -> None:
    with (
        running(Slow(archive, EBI_WITHOUT_STALLS)) as server,
        serving(server.url) as link,
        opened(link) as page_url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL_WITHOUT_GPU)
        page = browser.new_page(viewport=WINDOW)
        for found in looks(page, page_url, server, pictures):
            print(json.dumps(found), flush=True)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="of tests/helpers/build_archive.py")
    parser.add_argument("pictures", type=Path, nargs="?", help="folder for screenshots")
    given = parser.parse_args()
    main(given.archive.absolute(), given.pictures)
