"""Scripts in separate processes, with their time and memory, for this package and for torch_em's own loader."""

import subprocess
import sys
import time

OURS = """
import liver_dask as ld
ds = ld.open_human_liver_em({url!r}, shape={shape})
ld.to_zarr(ds, {out!r} + "/ours.zarr", bounding_box={box})
"""

TORCH_EM = """
import torch_em.data.datasets.electron_microscopy.human_liver_em as theirs
theirs.EMPIAR_BASE = {url!r}
print(theirs.get_human_liver_em_data({out!r}, {box}, download=True))
"""


def measured(script: str) -> tuple[float, int]:
    """Run a script in its own process. Return the seconds that it takes, and its peak resident memory in bytes."""
    report = "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # ru_maxrss includes the parent's
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", f"{script}\n{report}"], stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - began, int(done.stdout.split()[-1]) * 1024
