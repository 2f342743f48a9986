"""Make the README's pictures: `python pictures.py FOLDER`. All data are synthetic.

It needs what test_browser.py needs, and neuroglancer as in test_viewers.py.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image
from playwright.sync_api import sync_playwright

import liver_dask as ld
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import make_archive
from liver_dask.store.layout import CHUNKS, SHARDS, Group, Layout, plan_batches, plan_layout

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.browser import SHAPE, Z_SLIDER, viewing
from helpers.neuroglancer import opened, photograph

COLOURS = 256


def save_slicer(path: Path, folder: Path) -> None:
    """Save a screenshot of the slicer in a browser."""
    make_archive(folder / "archive", SHAPE)
    serving = viewing(folder, "archive", "--shape", *map(str, SHAPE), "--z", "8", "--port", "0")
    with serving as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 700, "height": 800}, device_scale_factor=1.5)
        page.goto(address)
        page.locator(Z_SLIDER).wait_for(timeout=60_000)
        page.wait_for_timeout(5000)
        page.mouse.move(400, 480)
        page.wait_for_timeout(1000)
        page.screenshot(path=path)
        browser.close()


def save_neuroglancer(path: Path, folder: Path) -> None:
    """Save a screenshot of neuroglancer with a slice of the same archive, as it is served."""
    ds = ld.open_human_liver_em(folder / "archive", shape=SHAPE, voxel_size_nm=(30, 8, 8))
    with ld.serve(ds) as server, opened(server.link(z=8)) as page:
        photograph(page, path)


def save_plan(path: Path) -> None:
    """Draw the shards and regions of the tissue of the whole volume, and two of the tasks that write it."""
    box = EMPIAR_13356.full_box
    layout = plan_layout(box.shape, {"raw": 2, "mito": 1, "er": 1, "nucleus": 1}, CHUNKS, SHARDS)
    figure, (side, front) = plt.subplots(1, 2, figsize=(9.5, 4.6), layout="constrained", sharey=True)
    depth, height, width = layout.shape
    draw_grid(side, (depth, height), (layout.shards[0], layout.shards[1]), (layout.chunks[0], layout.row_block))
    draw_grid(front, (width, height), (layout.shards[2], layout.shards[1]), (width, layout.row_block))
    runs = list(plan_batches(layout, [Group(("raw",)), Group(("mito",), None, True)], ()))
    mask = next(run for run in runs if run.group.from_the_top and run.regions[0].z_start == 24 * layout.chunks[0])
    raw = [run for run in runs if not run.group.from_the_top and run.regions[0].z_start == 8 * layout.chunks[0]][2]
    for run, colour, told in ((raw, "0.25", "a task of raw"), (mask, EMPIAR_13356["mito"].color, "a task of a mask")):
        first, last = run.regions[0], run.regions[-1]
        corner, size = (first.z_start, first.y_start), (layout.chunks[0], last.y_stop - first.y_start)
        side.add_patch(Rectangle(corner, *size, color=colour, label=f"{told}: {len(run.regions)} regions"))
    region = raw.regions[0]
    front.add_patch(
        Rectangle((0, region.y_start), width, layout.row_block, color="0.25", label=f"a region: {told_size(layout)}")
    )
    front.add_patch(
        Rectangle((0, 0), *layout.shards[:0:-1], color=EMPIAR_13356["er"].color, alpha=0.4, label="a shard: a file")
    )
    side.set(title=f"from the side: {depth} slices", xlabel="z", ylabel="y", xlim=(0, depth), ylim=(height, 0))
    front.set(
        title=f"from the front: {width} columns", xlabel="x", xlim=(0, width), xticks=range(0, width, layout.shards[2])
    )
    for axes in (side, front):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, ncols=2)
    figure.savefig(path, dpi=130)


def draw_grid(axes: Axes, size: tuple[int, int], shards: tuple[int, int], regions: tuple[int, int]) -> None:
    """Draw the borders of regions in thin lines, and those of shards in thick ones."""
    for of, colour, line in ((regions, "0.85", 0.3), (shards, "0.3", 1.2)):
        axes.vlines(range(0, size[0] + 1, of[0]), 0, size[1], color=colour, linewidth=line)
        axes.hlines(range(0, size[1] + 1, of[1]), 0, size[0], color=colour, linewidth=line)


def told_size(layout: Layout) -> str:
    return f"{layout.chunks[0]} slices x {layout.row_block} rows"


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        save_slicer(folder / "slicer.png", Path(scratch))
        save_neuroglancer(folder / "neuroglancer.png", Path(scratch))
    save_plan(folder / "plan.png")
    for path in folder.glob("*.png"):
        Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
