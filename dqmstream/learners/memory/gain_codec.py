"""Gains packed into one byte each: fine steps near 0, coarse steps for large gains.

The step at a gain of 0 is 1/60 of the error from a single lumisection. It grows with the gain, as an inverse hyperbolic sine,
to 4.6 % of it. Dead channels (gain -1) have a code of their own. Cost in accuracy: docs/decisions/2026-11-29-closed-forms.md.
"""

from __future__ import annotations

import numpy as np

STEP = 1 / 60
"""Step at a gain of 0, in units of the error from a single lumisection."""

LINEAR = 22
"""Number of codes after which the step has grown by half."""

MOST = 127
"""Largest code."""

DEAD_CODE = -128
"""Code of a gain of -1: a channel that counts nothing."""

_LEVELS = STEP * LINEAR * np.sinh(np.arange(-MOST - 1, MOST + 1) / LINEAR)


def pack(gain: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Codes of gains: int8, of the shape of `gain`.

    gain: (..., live). unit: error of a gain from a single lumisection, positive, (live,). Gains beyond ±59 units are clipped;
    gains within half a step of -1 become -1.
    """
    code = np.clip(np.rint(LINEAR * np.arcsinh(gain / (STEP * LINEAR * unit))), -MOST, MOST).astype(np.int8)
    return np.where(gain < -1 + 0.5 / LINEAR, np.int8(DEAD_CODE), code)


def unpack(code: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Gains of codes: float64, of the shape of `code`. unit: as in `pack`."""
    gain = _LEVELS[code.astype(np.int16) + (MOST + 1)]
    gain *= unit
    gain[code == DEAD_CODE] = -1
    return gain
