"""Outages: a channel that counts next to nothing for some lumisections, alone or with its readout box, while the run goes on.

A flickering channel or a tripping box is told from a change of gain by its counts: far fewer than expected, then as many as
before. Gains, spreads and common modes are fitted to counts in which outages are filled in with what the other channels of the
ring suggest; the outages themselves are kept as rates (`closed_form.outages`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.rings import medians

SILENT = 0.3
"""Share of the expected count below which a channel is out."""

FEWEST_EXPECTED = 20.0
"""Expected count from which an outage can be seen: of 20 counts, fewer than 6 happen by chance once in 14 000 lumisections."""

_BOX_SHARE = 0.5
"""Share of a readout box's channels from which the whole box is out."""


class Outages(NamedTuple):
    """Outages of n lumisections.

    channels: channels that are out, without those of a box that is out as a whole, bool (n, live). boxes: boxes that are out,
    bool (n, B).
    """

    channels: np.ndarray
    boxes: np.ndarray


def silent(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Channels that count next to nothing, alone or with their box: bool (n, live), as both arguments."""
    return np.asarray((counts < SILENT * expected) & (expected > FEWEST_EXPECTED))


def outages(out: np.ndarray, boxes: ReadoutBoxes) -> Outages:
    """Divide silent channels (`silent`) into single ones and whole readout boxes."""
    whole = np.zeros((len(out), len(boxes)), dtype=bool)
    single = out.copy()
    if out.any():
        for number, cells in enumerate(boxes.cells):
            dark = np.count_nonzero(out[:, cells], axis=1) > _BOX_SHARE * len(cells)
            whole[:, number] = dark & (len(cells) > 1)
            single[np.ix_(whole[:, number], cells)] = False
    return Outages(single, whole)


def filled(counts: np.ndarray, expected: np.ndarray, out: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Counts with those of silent channels replaced by whole expected ones: float64 (n, live).

    The expectation is scaled by the median ratio of the ring's other channels, so that a common change of the ring is kept. A
    ring that is silent throughout keeps the plain expectation. ring: number of each channel's ring, (live,).
    """
    rows = np.flatnonzero(out.any(axis=1))
    if not rows.size:
        return counts
    result, wanted = counts.astype(np.float64), expected[rows]
    lit = (wanted > 0) & ~out[rows]
    ratio = np.divide(result[rows], wanted, out=np.full(wanted.shape, np.nan), where=lit)
    for number in np.unique(ring[out.any(axis=0)]):
        cells = np.flatnonzero(ring == number)
        some = lit[:, cells].any(axis=1)
        scale = np.ones(len(rows))
        scale[some] = np.nanmedian(ratio[np.ix_(some, cells)], axis=1)
        replaced = np.rint(wanted[:, cells] * scale[:, None])
        result[np.ix_(rows, cells)] = np.where(out[np.ix_(rows, cells)], replaced, result[np.ix_(rows, cells)])
    return result


def filled_first_run(counts: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Counts of the run that becomes the reference, (n, live), with outages filled in; the same object where there is none.

    No reference exists yet: a channel's usual share is its median ratio to its ring's median count, over the lumisections. A
    channel that is out for most of the run is not recognised.
    """
    of_ring = medians(counts, ring)
    share = np.divide(counts, of_ring, out=np.full(counts.shape, np.nan), where=of_ring > 0)
    known = np.isfinite(share).any(axis=0)
    usual = np.zeros(counts.shape[1])
    usual[known] = np.nanmedian(share[:, known], axis=0)
    expected = usual * of_ring
    return filled(counts, expected, silent(counts, expected), ring)
