"""Blank lumisections: maps that say nothing about any channel and are left out of all scores, sums and fits.

A lumisection is blank where nothing was counted (empty); where nearly all channels with counts have the same count (saturated:
an overflow, or every channel fired in every event); or where a channel counts more than bunches cross in a lumisection (a
value that older archives may hold). Real runs hold 0 to 41 empty ones.

A truncated lumisection, with a tenth of the events say, is not blank: its channels are less well known, and their standard
deviations say so.
"""

from __future__ import annotations

import numpy as np

from dqmstream.lumisection import CROSSINGS

SATURATED_SHARE = 0.95
"""A map is saturated where at least this share of the channels with counts has the map's largest count. At a pileup of 62, two
fifths of the channels of HE depth 1 fire in every event."""


def blank(counts: np.ndarray, *, often_full: bool = False) -> np.ndarray:
    """Whether each map is blank: bool (n,), from counts of any shape (n, ...).

    often_full: this part of the detector is saturated as a rule, so saturated maps are not blank.
    """
    flat = counts.reshape(len(counts), int(np.prod(counts.shape[1:])))
    largest = flat.max(axis=1, initial=0, keepdims=True)
    void = (largest[:, 0] == 0) | (largest[:, 0] > CROSSINGS)
    if often_full:
        return np.asarray(void)
    alike = np.count_nonzero(flat == largest, axis=1) >= SATURATED_SHARE * np.count_nonzero(flat, axis=1)
    return np.asarray(void | alike)


def informative(counts: np.ndarray) -> np.ndarray:
    """Positions of a run's maps that are not blank, ascending; all positions where every map is blank.

    Where most maps with counts are saturated, this part of the detector counts that way, and they are not blank.
    """
    lit = ~blank(counts, often_full=True)
    varied = ~blank(counts)
    chosen = varied if 2 * np.count_nonzero(varied) >= np.count_nonzero(lit) else lit
    return np.flatnonzero(chosen if chosen.any() else np.ones(len(counts), dtype=bool))
