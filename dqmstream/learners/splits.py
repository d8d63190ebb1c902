"""Which lumisections teach, which choose, which judge: a pure function of the lumisection number.

Neighbouring lumisections are alike, since luminosity moves slowly: a random split lets a model recognise a test lumisection by
its neighbours. So the parts are blocks of consecutive lumisections with gaps between them, in cycles of 200:

    train 100 | gap 20 | validation 10 | gap 20 | test 30 | gap 20

A file that holds interpolated lumisections (10000 rows made of 501) needs blocks and gaps 25 times as long.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

INTERPOLATED_SCALE = 25
CYCLE = 200


class Part(IntEnum):
    """Part that a lumisection is assigned to."""

    GAP = 0
    TRAIN = 1
    VALIDATION = 2
    TEST = 3


_BLOCKS = ((Part.TRAIN, 0, 100), (Part.VALIDATION, 120, 130), (Part.TEST, 150, 180))


def assign(lumisections: np.ndarray, scale: int = 1) -> np.ndarray:
    """Part of each lumisection: uint8 `Part` values of the same shape.

    lumisections: numbers counted from 1. scale: 1, or 25 where rows were interpolated; lengths are multiplied by it.
    """
    place = (np.asarray(lumisections) - 1) % (CYCLE * scale)
    parts = np.full(place.shape, Part.GAP, dtype=np.uint8)
    for part, start, stop in _BLOCKS:
        parts[(place >= start * scale) & (place < stop * scale)] = part
    return parts
