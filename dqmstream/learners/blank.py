"""Lumisections that say nothing of any channel, which no score, sum or fit of the learners may ask.

A lumisection is blank where nothing was counted (empty), or where nearly all channels count the same number (saturated: an
overflow, or every channel fired in every event), or where a channel counts more than bunches cross in a lumisection, which
older archives may hold. Real runs hold 0 to 41 empty ones. A truncated lumisection, of a tenth of
the events say, is not blank: its channels are known less well, and all deviations say so.
"""

from __future__ import annotations

import numpy as np

from dqmstream.lumisection import CROSSINGS

ALIKE = 0.95
"""Share of the channels with counts that must have the largest count of the map for it to be saturated. At a pileup of 62 two
fifths of the channels of HE depth 1 fire in every event."""


def blank(counts: np.ndarray, *, often_full: bool = False) -> np.ndarray:
    """Whether each map is blank: bool (n,), from counts of any shape (n, ...).

    often_full: saturated maps are normal in this part of the detector and are not blank; only empty and impossible ones are.
    """
    flat = counts.reshape(len(counts), int(np.prod(counts.shape[1:])))
    largest = flat.max(axis=1, initial=0, keepdims=True)
    void = (largest[:, 0] == 0) | (largest[:, 0] > CROSSINGS)
    if often_full:
        return np.asarray(void)
    alike = np.count_nonzero(flat == largest, axis=1) >= ALIKE * np.count_nonzero(flat, axis=1)
    return np.asarray(void | alike)


def telling(counts: np.ndarray) -> np.ndarray:
    """Positions of the maps of a run that are not blank, ascending; all positions where every map is.

    Where most maps that hold counts are saturated, that is how this part of the detector counts, and they are not blank.
    """
    lit = ~blank(counts, often_full=True)
    varied = ~blank(counts)
    chosen = varied if 2 * np.count_nonzero(varied) >= np.count_nonzero(lit) else lit
    return np.flatnonzero(chosen if chosen.any() else np.ones(len(counts), dtype=bool))
