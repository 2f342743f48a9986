"""Ipympl's canvas, made without a change of the user's own figures.

Importing this module needs the extra `view`.
"""

import threading
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_use = matplotlib.use
matplotlib.use = lambda *_, **__: None  # imported after matplotlib, ipympl would make itself the backend of pyplot
try:
    from ipympl.backend_nbagg import Canvas, FigureManager
finally:
    matplotlib.use = _use


class LockedCanvas(Canvas):
    """Ipympl's canvas with its toolbar, and with a lock.

    The canvas draws when the browser requests it. The lock prevents this while another thread changes the picture.

    Args:
        figure: The figure to draw.
        lock: Lock that is held while the canvas handles messages.
    """

    def __init__(self, figure: Figure, lock: threading.RLock) -> None:
        self._lock = lock
        super().__init__(figure)
        FigureManager(self, 0)  # gives the canvas its toolbar

    def _handle_message(self, *arguments: Any) -> None:
        with self._lock:
            super()._handle_message(*arguments)
