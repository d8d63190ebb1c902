"""A map of the detector: ieta on x, iphi on y, cells without a value left blank."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage

from dqmstream.lumisection import N_IETA, N_IPHI

DEAD = 0.1
"""A channel whose response has fallen below this part of what it was is called dead."""

_HALF = N_IETA // 2
_EXTENT = (-_HALF - 0.5, _HALF + 0.5, 0.5, N_IPHI + 0.5)


def on_map(values: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Values of the live channels, (live,), as a map: float64, (depth, 64, 72), nan elsewhere. live: bool, (depth, 64, 72)."""
    out = np.full(live.shape, np.nan)
    out[live] = values
    return out


def show_map(axes: Axes, values: np.ndarray, colours: str, scale: Normalize) -> AxesImage:
    """Draw a map, (64, 72), with a blank column at ieta 0, which no channel has. colours: name of a Matplotlib colour map."""
    whole = np.insert(values, _HALF, np.nan, axis=0)
    return axes.imshow(
        whole.T,
        origin="lower",
        extent=_EXTENT,
        cmap=matplotlib.colormaps[colours],
        norm=scale,
        aspect="auto",
        interpolation="nearest",
    )
