"""Two runs compared: which channels and readout boxes changed, how well they are told apart, what luminosity alone would say.

Channels and readout boxes are two families of tests, each with its own false-discovery rate (Benjamini and Hochberg, J. R.
Stat. Soc. B 57 (1995) 289): of what is named in one, a share of `rate` is expected to be chance, and where nothing changed
anything is named in at most that share of pairs of runs.

What no comparison of this kind can see: a factor common to all channels, which is luminosity or calibration; a change of a
channel that fires in nearly every event anyway; a fault that comes and goes within a run and leaves its mean alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from scipy.stats import false_discovery_control

from dqmstream.experiments.compare.across_conditions import compare_across
from dqmstream.experiments.compare.conditions import Channels, Conditions, Sample
from dqmstream.experiments.compare.inputs import Pair
from dqmstream.experiments.compare.response import STEADY, Estimate, Response, fit_response, moderate
from dqmstream.experiments.compare.separation import LEAST, Separation, separate, spread_of, testable
from dqmstream.experiments.detector_map import DEAD

COMMON, COMMON_LUMISECTIONS = 0.02, 20
"""Least share of each run's lumisections whose ratio the other run has too, and least number of them (times 25 where rows were
interpolated); below it no response is known in both runs."""

MISREAD = 0.3
"""Part of a channel's error. If noise of the ratio may shift h by more, a fit in the ratio is not believed."""

MOST = 0.5
"""If fewer of the channels than this share can be tested, the runs are not comparable."""

OUTLYING = 4.0
"""Channels that differ by more of their deviations than this are no ruler for the conditions."""

STRANGE = 5.0
"""A channel that differs from what its box does by more of its deviations than this, and by as much again as the box does
itself, has a fault of its own."""

BOX_CHANNELS = 4
"""A readout box of fewer comparable channels cannot be said to move together."""

_ROUNDS = 8
_HUBER, _HUBER_STEPS = 1.345, 20
_EDGE = 0.005
"""Quantile at which the range of a run's ratio ends: a few lumisections at its edge would stretch the response."""


class Ground(Enum):
    """What channels are judged by: a response fitted in both runs, or, where they lack what it takes, their rings."""

    SHARED = "shared"
    LEVEL = "level"
    APART = "apart"
    SHORT = "short"


_GROUNDS = {
    Ground.LEVEL: "Where the runs share conditions, these hardly move: how channels respond to pileup cannot be seen.",
    Ground.APART: "The runs hardly share conditions ({overlap:.0%} of a run's lumisections): no response is known in both.",
    Ground.SHORT: "The runs share too few lumisections with the same conditions to fit how channels respond to pileup.",
}
_BY_RING = (
    "Channels are judged by how they stand in their ring: a change that a whole ring shares is not seen, and a channel far "
    "from its ring has a larger error."
)


@dataclass(frozen=True, eq=False)
class Tested:
    """Tests of m channels or readout boxes: float64, (m,), nan where one could not be tested.

    ratio: response in B over that in A, 0 of a channel that died, inf of one that woke; of a box, of its channels that are most
    sensitive to gain. error: of the ratio. pull: standardised difference, positive where B responds more. p, q: two-sided, and
    adjusted for the false-discovery rate. changed: bool.
    """

    ratio: np.ndarray
    error: np.ndarray
    pull: np.ndarray
    p: np.ndarray
    q: np.ndarray
    changed: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """Positions by falling |pull|; what could not be tested comes last."""
        return np.argsort(-np.nan_to_num(np.abs(self.pull), nan=-1.0), kind="stable")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What came of it.

    box_names, box_channels: of the boxes, -18..18, and how many channels are in the test of each. common: lumisections of each
    run that are compared. overlap: the smaller share of a run's lumisections under conditions that both had. ground: what the
    channels are judged by. separation: None where a run is too short for it. rho: overdispersion of each channel, zero where
    events are unknown. spread: deviation of the true ratios from 1 over the channels most sensitive to gain, whatever a few
    outliers do.
    """

    pair: Pair
    rate: float
    separation: Separation | None
    channels: Tested
    boxes: Tested
    box_names: np.ndarray
    box_channels: np.ndarray
    common: tuple[int, int]
    overlap: float
    ground: Ground
    rho: np.ndarray
    spread: float

    @property
    def by_ring(self) -> bool:
        """Channels are judged by how they stand in their ring, not by a response that was fitted in both runs."""
        return self.ground is not Ground.SHARED

    @property
    def comparable(self) -> bool:
        """Most channels could be tested."""
        return bool(np.isfinite(self.channels.p).mean() >= MOST)

    @property
    def died(self) -> np.ndarray:
        """bool, (live,): changed, and counts less than a tenth of before."""
        return self.channels.changed & (self.channels.ratio < DEAD)

    @property
    def woke(self) -> np.ndarray:
        """bool, (live,): changed, and counted less than a tenth before."""
        return self.channels.changed & (self.channels.ratio > 1 / DEAD)

    @property
    def verdict(self) -> str:
        """What both AUC together mean, in plain words."""
        if not self.comparable:
            return (
                f"These runs cannot be compared: only {int(np.isfinite(self.channels.p).sum())} of {len(self.channels.p)} "
                "channels can be tested. Nothing is said of the others: choose longer runs, or runs closer in pileup."
            )
        if self.separation is None:
            channels, boxes = int(self.channels.changed.sum()), int(self.boxes.changed.sum())
            if channels or boxes:
                return f"{channels} channels and {boxes} readout boxes changed between these runs."
            return "No channel is found to have changed between these runs."
        changed = bool(self.channels.changed.any() or self.boxes.changed.any())
        return told_apart(self.separation, changed=changed, by_ring=self.by_ring)

    @property
    def warnings(self) -> list[str]:
        notes = list(self.pair.notes)
        if self.by_ring:
            notes.append(_GROUNDS[self.ground].format(overlap=self.overlap) + " " + _BY_RING)
        if self.separation is None:
            least = LEAST * self.pair.samples[0].scale
            notes.append(f"There is no AUC: it takes runs of {least} lumisections, in half of which something counted.")
        if not self.by_ring and self.overlap < 0.5:
            notes.append(
                f"The runs share conditions in part only: {self.common[0]} and {self.common[1]} lumisections are compared, "
                "and what changed beyond them is not seen."
            )
        for name, dark, read in zip(self.pair.names, self.pair.dark, self.pair.lumisections, strict=True):
            if dark:
                notes.append(f"{dark} of {read} lumisections of {name} are left out: nothing counted, or no number of events.")
        if untested := int(np.isnan(self.channels.p).sum()):
            notes.append(
                f"{untested} channels could not be tested: they count too little, or in nearly every event"
                + (", or stand too far from their ring." if self.by_ring else ".")
            )
        return notes


def told_apart(separation: Separation, *, changed: bool, by_ring: bool) -> str:
    """What the AUC by channels and the AUC by luminosity mean together, in plain words.

    changed: whether a channel or a readout box is found to have changed. by_ring: as `Comparison.by_ring`.
    """
    channels, luminosity = separation.channels, separation.luminosity
    if luminosity.above_chance:
        return (
            f"Luminosity alone tells these runs apart (AUC {luminosity.value:.3f}), so an AUC proves nothing of the "
            "detector by itself: judge by the channels that changed "
            + ("against their rings." if by_ring else "under the same conditions.")
        )
    if channels.above_chance and channels.value <= luminosity.value:
        return (
            f"The channels tell these runs apart (AUC {channels.value:.3f}) no better than luminosity alone "
            f"({luminosity.value:.3f}, within its error of chance): this is no sign of a change in the detector."
        )
    if channels.above_chance:
        return (
            f"The channels tell these runs apart (AUC {channels.value:.3f}) and luminosity alone does not "
            f"({luminosity.value:.3f}): "
            + ("what differs is in the channels." if changed else "yet no channel by itself is found to have changed.")
        )
    if changed:
        return "No single lumisection tells these runs apart; what changed shows over the whole runs only."
    return "Nothing tells these runs apart: neither their channels nor luminosity alone."


@dataclass(frozen=True, eq=False)
class _Change:
    """Half differences of all channels, what blocks of lumisections added to them, and the sensitivity of each to its gain."""

    estimate: Estimate
    influence: np.ndarray
    dof: int
    sensitivity: np.ndarray
    rho: np.ndarray
    common: tuple[int, int]
    overlap: float
    ground: Ground
    testable: np.ndarray

    def spread(self) -> float:
        """Variance that the true h of the most sensitive channels have, robustly: of the others by their sensitivity less."""
        chosen = self.testable
        return spread_of((self.estimate.h / self.sensitivity)[chosen], (self.estimate.error / self.sensitivity)[chosen])

    def deviation(self) -> np.ndarray:
        """Of each channel's h around zero: its error, and the scatter that all channels have on their own, (live,)."""
        return np.sqrt(self.estimate.error**2 + self.sensitivity**2 * self.spread())

    def centred(self) -> _Change:
        """The same without what a shift of all conditions would explain: a part like gain, and one like the number of events.

        By least squares with Huber's weights (Robust Statistics, 1981, sec. 7.8), which outliers do not carry.
        """
        testable = self.testable
        h, error = self.estimate.h[testable], self.estimate.error[testable]
        design = np.stack([self.sensitivity, np.ones_like(self.sensitivity)], axis=1)
        chosen = design[testable] / error[:, None]
        weight = np.ones_like(h)
        for _ in range(_HUBER_STEPS):
            shift = np.linalg.lstsq(chosen * weight[:, None], h / error * weight, rcond=None)[0]
            pull = np.abs(h / error - chosen @ shift)
            weight = np.sqrt(_HUBER / np.maximum(pull, _HUBER))
        return replace(self, estimate=replace(self.estimate, h=self.estimate.h - design @ shift))


def compare(pair: Pair, rate: float = 0.05) -> Comparison:
    """Compare two runs at a false-discovery rate in (0, 1)."""
    a, b = pair.samples
    channels, known = pair.channels, pair.counts_events
    steady = np.ones(len(channels), dtype=bool)
    separation = separate(a, b, channels, steady, known)
    for _ in range(_ROUNDS):
        change = _change(a, b, channels, steady, known)
        tested = _tested(change.estimate, change.testable, rate)
        names, members, boxes = _boxes(change, channels, rate)
        # What changed must not pass for luminosity: conditions are read off the others, until these stay the same.
        kept = _steady(change, channels, rate)
        if kept.mean() < 0.5 or (kept == steady).all():
            break
        steady = kept
    return Comparison(
        pair, rate, separation, tested, boxes, names, members, change.common, change.overlap, change.ground, change.rho,
        2 * float(np.sqrt(change.spread())),
    )  # fmt: skip


def _steady(change: _Change, channels: Channels, rate: float) -> np.ndarray:
    """The channels that neither stand out, nor lie in a box that does, from what all have in common: bool, (live,).

    As long as conditions are read off channels that changed, all the others seem to have changed by a little.
    """
    relative = change.centred()
    outlying = np.abs(relative.estimate.h) > OUTLYING * relative.deviation()
    names, _, boxes = _boxes(relative, channels, rate)
    return np.asarray(~outlying & ~np.isin(channels.box, names[boxes.changed]))


def _change(a: Sample, b: Sample, channels: Channels, steady: np.ndarray, counts_events: bool) -> _Change:
    """Fit both runs where they share conditions, or, where they hardly do, compare channels within their rings."""
    conditions = Conditions.fit((a, b), channels, steady, counts_events)
    ratios = [conditions.of(sample)[1] for sample in (a, b)]
    edges = [np.quantile(ratio, [_EDGE, 1 - _EDGE]) for ratio in ratios]
    low, high = max(edge[0] for edge in edges), min(edge[1] for edge in edges)
    rows = [np.flatnonzero((ratio >= low) & (ratio <= high)) for ratio in ratios]
    common = (len(rows[0]), len(rows[1]))
    overlap = min(common[0] / len(a), common[1] / len(b))
    if overlap < COMMON or min(common) < COMMON_LUMISECTIONS * a.scale:
        return _across(a, b, channels, counts_events, overlap, Ground.APART if overlap < COMMON else Ground.SHORT)
    shared = [sample.take(index) for sample, index in zip((a, b), rows, strict=True)]
    level, noise = _level(shared, conditions)
    if high - low <= STEADY or noise > 0.5:
        return _across(shared[0], shared[1], channels, counts_events, overlap, Ground.LEVEL)
    response = fit_response(shared[0], shared[1], conditions, float(low), float(high))
    chosen = testable(shared[0], shared[1], counts_events)
    estimate = response.estimate(chosen)
    if chosen.any() and noise * level / 2 > MISREAD * float(np.median(estimate.error[chosen])):
        return _across(shared[0], shared[1], channels, counts_events, overlap, Ground.LEVEL)
    return _Change(
        estimate, response.influence, response.dof, _sensitivity(response), response.rho, common, overlap, Ground.SHARED, chosen
    )


def _level(samples: Sequence[Sample], conditions: Conditions) -> tuple[float, float]:
    """How far the mean ratios of two runs lie apart, and the part of a ratio's movement within the runs that is noise, 0..1.

    Lumisections that seem to have the same ratio differ in the true one by the product of both.
    """
    ratios = [conditions.of(sample)[1] for sample in samples]
    movement = float(np.mean([ratio.var() for ratio in ratios]))
    noise = float(np.mean([conditions.noise(sample) for sample in samples]))
    apart = float(abs(ratios[0].mean() - ratios[1].mean()))
    if np.isnan(noise):
        return apart, 0.0
    return apart, min(noise / movement, 1.0) if movement > 0 else 1.0


def _across(a: Sample, b: Sample, channels: Channels, counts_events: bool, overlap: float, ground: Ground) -> _Change:
    """The change of channels against their rings."""
    done = compare_across(a, b, channels, counts_events)
    nothing = np.zeros(len(channels))
    return _Change(
        done.estimate, nothing[None], 1, done.sensitivity, nothing, (len(a), len(b)), overlap, ground,
        np.isfinite(done.estimate.error),
    )  # fmt: skip


def _sensitivity(response: Response) -> np.ndarray:
    """How much of a change of gain a channel's counts show, (live,): its slope with pileup over its mean, as gain is to it.

    In units of the largest, and never below a twentieth of it. Where events are unknown the response is one over that of
    the brightest rings: channels that fire in nearly every event fall with pileup, and are where gain has no effect.
    """
    low, high = response.ends()
    slope = (high - low) / np.maximum(high + low, np.finfo(float).tiny)
    if not response.conditions.counts_events:
        slope = slope - min(float(np.quantile(slope, 0.02)), 0.0)
    highest = float(np.quantile(slope, 0.95))
    return np.ones_like(slope) if highest <= 0 else np.clip(slope / highest, 0.05, 1.0)


def _tested(estimate: Estimate, testable: np.ndarray, rate: float) -> Tested:
    h = np.where(testable, estimate.h, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(h >= 1, np.inf, (1 + h) / (1 - h))
        error = np.where(h >= 1, np.nan, 2 * estimate.error / (1 - h) ** 2)
    p = np.where(testable, estimate.p, np.nan)
    q = np.full_like(p, np.nan)
    if testable.any():
        q[testable] = false_discovery_control(p[testable])
    return Tested(ratio, error, np.where(testable, estimate.pull, np.nan), p, q, np.nan_to_num(q, nan=1.0) <= rate)


def _boxes(change: _Change, channels: Channels, rate: float) -> tuple[np.ndarray, np.ndarray, Tested]:
    """Names of the readout boxes, how many channels each has in its test, and the test whether they moved together.

    A box's h is the slope of its channels' over their sensitivity to gain, by weighted least squares: what its most sensitive
    channels show. Its error holds the scatter
    that channels of the whole detector have on their own (else 26 drifts of their own would pass for a common one), and the
    noise that channels of the box share, since its blocks are summed over channels before they are squared. Channels that died,
    or stand out of their box, are left to the channels' own test.
    """
    h, error, sensitivity = change.estimate.h, change.estimate.error, change.sensitivity
    deviation, testable = change.deviation(), change.testable
    names = np.unique(channels.box)
    rows = []
    for name in names:
        mine = (channels.box == name) & testable & (np.abs(h) < 1 - 2 * DEAD) & np.isfinite(error)
        if mine.any():
            common = float(np.median(h[mine] / sensitivity[mine])) * sensitivity
            mine &= np.abs(h - common) < STRANGE * deviation + np.abs(common)
        weight = np.where(mine, sensitivity, 0.0) / deviation**2
        rows.append(weight / max(float(weight @ sensitivity), np.finfo(float).tiny))
    weights = np.stack(rows)
    members = (weights > 0).sum(axis=1)
    enough = members >= BOX_CHANNELS
    independent, scatter = (weights**2 @ np.where(np.isfinite(error), one**2, 0.0) for one in (error, deviation))
    dof = np.full(len(names), float(np.median(change.estimate.dof[testable])) if testable.any() else 1.0)
    left = np.stack([np.where(row > 0, h - (row @ h) * sensitivity, 0.0) / deviation for row in weights])
    total = scatter.copy()
    if change.ground is Ground.SHARED and enough.sum() > 1:
        together = change.influence @ weights[enough].T
        squares = (together**2).sum(axis=0)
        noise, dof[enough] = moderate(squares / independent[enough], change.dof)
        alone, _ = moderate((left**2).sum(axis=1)[enough] / (members[enough] - 1), int(np.median(members[enough])) - 1)
        moved = scatter[enough] * alone + independent[enough] * (noise - 1)
        total[enough] = np.maximum(moved, scatter[enough] / 4)  # few blocks that happen to agree prove nothing
    estimate = Estimate(weights @ h, np.where(enough, np.sqrt(total), np.inf), dof)
    return names, members, _tested(estimate, enough, rate)
