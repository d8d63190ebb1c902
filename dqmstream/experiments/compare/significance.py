"""Which channels and readout boxes changed: two families of tests, each with its own false-discovery rate.

The rate is that of Benjamini and Hochberg, J. R. Stat. Soc. B 57 (1995) 289: at most that share of what is named in a family
is expected to be chance; if nothing changed, anything is named in at most that share of pairs of runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control

from dqmstream.experiments.compare.differences import Ground, HalfDifferences
from dqmstream.experiments.compare.estimate import Estimate, moderate
from dqmstream.experiments.compare.samples import Channels
from dqmstream.experiments.detector_map import DEAD

OUTLIER_PULL = 4.0
"""Channels that differ by more of their deviations than this are not used to read off the conditions."""

OWN_FAULT_PULL = 5.0
"""A channel has a fault of its own if it differs from its box by more of its deviations than this plus the box's movement."""

MIN_BOX_CHANNELS = 4
"""Comparable channels that a readout box needs to be tested."""


@dataclass(frozen=True, eq=False)
class ChangeTests:
    """Tests of m channels or readout boxes: float64, (m,), nan where one could not be tested.

    ratio: response in B over that in A; 0 for a channel that died, inf for one that woke; for a box, that of its channels most
    sensitive to gain. error: of the ratio. pull: standardised difference, positive if B responds more. p: two-sided. q: p
    adjusted for the false-discovery rate. changed: bool, q is at most the rate.
    """

    ratio: np.ndarray
    error: np.ndarray
    pull: np.ndarray
    p: np.ndarray
    q: np.ndarray
    changed: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """Positions in the order of falling |pull|; those that could not be tested come last."""
        return np.argsort(-np.nan_to_num(np.abs(self.pull), nan=-1.0), kind="stable")


def changes_of(estimate: Estimate, testable: np.ndarray, rate: float) -> ChangeTests:
    """Test each estimate against no differences. testable: bool, (m,). rate: false-discovery rate of the family."""
    h = np.where(testable, estimate.h, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(h >= 1, np.inf, (1 + h) / (1 - h))
        error = np.where(h >= 1, np.nan, 2 * estimate.error / (1 - h) ** 2)
    p = np.where(testable, estimate.p, np.nan)
    q = np.full_like(p, np.nan)
    if testable.any():
        q[testable] = false_discovery_control(p[testable])
    return ChangeTests(ratio, error, np.where(testable, estimate.pull, np.nan), p, q, np.nan_to_num(q, nan=1.0) <= rate)


def changes_of_boxes(
    differences: HalfDifferences, channels: Channels, rate: float
) -> tuple[np.ndarray, np.ndarray, ChangeTests]:
    """Test each readout box for a common movement: names, number of channels in each test, and the tests.

    A box's h is the slope of its channels' h over their sensitivity to gain, by weighted least squares: what its most sensitive
    channels show. Its error includes the scatter that channels have on their own anywhere in the detector (else 26 independent
    drifts would pass for a common one), and the noise that channels of the box share, since its blocks are summed over channels
    before they are squared. Channels that died, or stand out from their box, are left to their own test.
    """
    h, error, sensitivity = differences.estimate.h, differences.estimate.error, differences.sensitivity
    deviation, testable = differences.deviation(), differences.testable
    names = np.unique(channels.box)
    rows = []
    for name in names:
        mine = (channels.box == name) & testable & (np.abs(h) < 1 - 2 * DEAD) & np.isfinite(error)
        if mine.any():
            common = float(np.median(h[mine] / sensitivity[mine])) * sensitivity
            mine &= np.abs(h - common) < OWN_FAULT_PULL * deviation + np.abs(common)
        weight = np.where(mine, sensitivity, 0.0) / deviation**2
        rows.append(weight / max(float(weight @ sensitivity), np.finfo(float).tiny))
    weights = np.stack(rows)
    members = (weights > 0).sum(axis=1)
    enough = members >= MIN_BOX_CHANNELS
    independent, scatter = (weights**2 @ np.where(np.isfinite(error), one**2, 0.0) for one in (error, deviation))
    dof = np.full(len(names), float(np.median(differences.estimate.dof[testable])) if testable.any() else 1.0)
    left = np.stack([np.where(row > 0, h - (row @ h) * sensitivity, 0.0) / deviation for row in weights])
    total = scatter.copy()
    if differences.ground is Ground.SHARED and enough.sum() > 1:
        together = differences.influence @ weights[enough].T
        squares = (together**2).sum(axis=0)
        noise, dof[enough] = moderate(squares / independent[enough], differences.dof)
        alone, _ = moderate((left**2).sum(axis=1)[enough] / (members[enough] - 1), int(np.median(members[enough])) - 1)
        moved = scatter[enough] * alone + independent[enough] * (noise - 1)
        total[enough] = np.maximum(moved, scatter[enough] / 4)  # a few blocks may agree by chance
    estimate = Estimate(weights @ h, np.where(enough, np.sqrt(total), np.inf), dof)
    return names, members, changes_of(estimate, enough, rate)


def steady_channels(differences: HalfDifferences, channels: Channels, rate: float) -> np.ndarray:
    """The channels that neither stand out from what all have in common, nor lie in a box that does: bool, (live,)."""
    # As long as conditions are read off channels that changed, all the others seem to have changed by a little.
    relative = differences.centred()
    outlying = np.abs(relative.estimate.h) > OUTLIER_PULL * relative.deviation()
    names, _, boxes = changes_of_boxes(relative, channels, rate)
    return np.asarray(~outlying & ~np.isin(channels.box, names[boxes.changed]))
