"""The controls of the slicer: where it is, in which plane, and how labels are drawn.

Importing this module needs the extra `view`.
"""

from collections.abc import Sequence

from ipywidgets import HTML, Checkbox, ColorPicker, FloatRangeSlider, FloatSlider, IntSlider, Layout, ToggleButtons

from ..core.geometry import DIMS, BoundingBox
from .planes import Plane, held_along

ACROSS, ALONG = "22em", "11em"
"""Widths of the slider of the axis across the picture, and of those of its rows and columns."""


class PositionControls:
    """Sliders of z, y and x, and buttons for the plane.

    The slider of the axis across the picture chooses the slice, the two others tell and move the picture's centre.

    Args:
        held: The box of the volume that can be seen.
        planes: Names of the planes to choose from.

    Attributes:
        sliders: The slider of each axis.
        plane: Buttons whose value is the name of the plane; not displayed if there is only one.
    """

    def __init__(self, held: BoundingBox, planes: Sequence[str]) -> None:
        self.sliders = {}
        for dim in DIMS:
            low, high = held_along(held, dim)
            slider = IntSlider((low + high) // 2, low, high - 1, description=dim, layout=Layout(width=ALONG))
            slider.style.description_width = "1em"
            self.sliders[dim] = slider
        buttons = [(name.upper(), name) for name in planes]
        self.plane = ToggleButtons(options=buttons, tooltips=[f"Show slices of {name}" for name, _ in buttons])
        self.plane.style.button_width = "3em"
        self.plane.layout = Layout(width="auto", display=None if len(planes) > 1 else "none")

    def face(self, plane: Plane) -> None:
        """Make the slider of the axis across a plane the wide one."""
        for dim, slider in self.sliders.items():
            slider.layout.width = ACROSS if dim == plane.across else ALONG
            slider.tooltip = "the slice" if dim == plane.across else f"{dim} of the centre"


class MaskControls:
    """Controls of a label: whether it is shown, its colour and its opacity.

    Instances have many colours, so some of these are shown in place of the choice of one.
    """

    def __init__(self, name: str, color: str, legend_colors: list[str], on: bool, opacity: float) -> None:
        self.on = Checkbox(on, description=name, indent=False, layout=Layout(width="8em"))
        self.colour = ColorPicker(concise=True, value=color, layout=Layout(width="3em"))
        self.opacity = FloatSlider(opacity, min=0, max=1, step=0.05, description="opacity", readout=False)
        has_one = len(legend_colors) == 1
        self.controls = [self.on, self.colour if has_one else _patch(legend_colors), self.opacity]


def contrast_control(percentiles: tuple[float, float]) -> FloatRangeSlider:
    """Return the slider of the percentiles that are black and white."""
    return FloatRangeSlider(
        value=percentiles,
        min=0,
        max=100,
        step=0.1,
        description="contrast %",
        readout_format=".1f",
        layout=Layout(width=ACROSS),
    )


def _patch(colors: list[str]) -> HTML:
    """Return a patch of several colours, as wide as a ColorPicker."""
    parts = "".join(f'<span style="flex: 1; background: {color}"></span>' for color in colors)
    patch = f'<div title="one colour per instance" style="display: flex; height: 1.6em; margin: 2px">{parts}</div>'
    return HTML(patch, layout=Layout(width="3em"))
