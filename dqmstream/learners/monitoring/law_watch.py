"""Where the law of the response is off: variance of the counts, and channels that move together, in held-out lumisections.

After each run, its held-out lumisections are compared with the run's own gains, with events and pileup fitted to each of them:

* variance of each channel over N p (1 - p), its median in each ring, and the channels that vary much more than their ring;
* common mode of each ring on each side, from lumisection to lumisection;
* largest common mode of all channels, without those of readout boxes that the run is known to have.

Variances and modes of rings are followed over the runs, newer ones with more weight; the rest is said of the newest run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.closed_form.density import clipped
from dqmstream.learners.maps import Maps, joined
from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.conditions import fit_conditions
from dqmstream.learners.response.observation import Observation, observe
from dqmstream.learners.response.reference import Reference
from dqmstream.lumisection import IETA, IPHI, readout_box

LEAST_LUMISECTIONS = 20
"""Held-out lumisections of a run without which it is not used."""

LEAST_BINOMIAL = 10.0
"""Binomial variance of a count below which its scatter says little: the channel is nearly always silent or nearly full."""

NEARLY_FULL = 0.1
"""Probability of silence below which a channel counts nearly every event."""

MEASURED = 0.25
"""Share of a ring's channels that must have a variance."""

WIDE = 1.2
"""Variance of a ring, over that of the law, from which the ring is named."""

ODD = 3.0
"""Variance of a channel, over that of its ring, from which the channel is named."""

SURE = 5.0
"""Standard errors by which a variance must exceed 1."""

MODE = 0.005
"""Relative size of the common mode of a ring from which it is named."""

LARGE = 1.3
"""Variance of the largest common mode, over the largest that independent channels have, from which it is named."""

LISTED = 6
"""Rings or channels that a sentence names."""

FADING = 0.8
"""Weight of a run relative to the next one."""

_ARRAYS = ("weight", "variance", "error", "mode", "mode_error", "odd", "odd_variance", "largest", "loading", "run")


class LawWatch:
    """Follows variances and common modes; `summary` says where the law is off.

    weight: of all runs. variance, error: weighted sums over runs of the rings' variances and their squared errors, (rings,).
    mode, mode_error: the same for the squared sizes of the modes of rings on a side, (2 rings,). odd, odd_variance: channels
    that stand out in the newest run, (k,). largest: its largest mode over that of independent channels. loading: share of that
    mode in rings on a side, then in boxes. run: its number.
    """

    def __init__(self, reference: Reference) -> None:
        depth, row, column = np.nonzero(reference.live)
        self._place = np.stack([IETA[row], IPHI[column], depth + 1], axis=1)
        self._ring, self._side = reference.ring, 2 * reference.ring + (IETA[row] > 0)
        self._box = np.unique(readout_box(IETA[row], IPHI[column]), return_inverse=True)
        rings = int(self._ring.max()) + 1
        self.weight, self.run, self.largest = 0.0, 0, 0.0
        self.variance, self.error = np.zeros(rings), np.zeros(rings)
        self.mode, self.mode_error = np.zeros(2 * rings), np.zeros(2 * rings)
        self.odd, self.odd_variance = np.zeros(0, dtype=np.int64), np.zeros(0)
        self.loading = np.zeros(2 * rings + len(self._box[0]))

    def learn(
        self, run: int, stretches: Sequence[Maps], reference: Reference, gain: np.ndarray, box_variance: np.ndarray
    ) -> None:
        """Use the held-out lumisections of a run.

        run: its number. gain: its gains, (live,). box_variance: of the known common modes of its boxes, (B,).
        """
        if sum(map(len, stretches)) < LEAST_LUMISECTIONS:
            return
        counts = joined(stretches).counts[:, reference.live].astype(np.float64)
        observed = observe(reference, counts)
        observed = observed.under(gain, fit_conditions(observed, gain))
        of_channel = self._variances(observed)
        variance, error = self._of_rings(of_channel, len(counts))
        self.run, self.weight = run, FADING * self.weight + 1
        self.variance, self.error = FADING * self.variance + variance, FADING**2 * self.error + error**2
        # A channel is judged beside its ring, whatever the variance of the ring.
        ratio = np.nan_to_num(of_channel / np.maximum(variance, 1)[self._ring])
        self.odd = np.flatnonzero(ratio > ODD)
        self.odd_variance = of_channel[self.odd]
        usual = np.nan_to_num(ratio, nan=np.inf) <= ODD
        usual &= np.isfinite(of_channel)
        size, size_error = self._modes(observed, usual)
        self.mode, self.mode_error = FADING * self.mode + size, FADING**2 * self.mode_error + size_error**2
        ends = np.cumsum([len(maps) for maps in stretches])
        self._largest_mode(observed, usual, ReadoutBoxes(reference.live), box_variance, ends)

    def _variances(self, observed: Observation) -> np.ndarray:
        """Variance of each channel's counts over the binomial one, nan where that is small, (live,).

        The number of events is that which nearly full channels show. Efficiencies are not used: a reference run that scatters
        more than binomial gives too large ones.
        """
        full = observed.full * observed.deviation
        mean, nearly = full * (1 - observed.quiet), np.where(observed.quiet < NEARLY_FULL, full, np.nan)
        some = np.asarray((observed.quiet < NEARLY_FULL).any(axis=1))[:, None]
        events = np.nanmedian(np.where(some, nearly, np.inf), axis=1, keepdims=True)
        binomial = mean * np.where(some, np.maximum(1 - mean / events, 0.0), observed.quiet)
        used = binomial > LEAST_BINOMIAL
        square = np.where(used, (clipped(observed) * observed.deviation) ** 2 / np.maximum(binomial, LEAST_BINOMIAL), 0.0)
        count = used.sum(axis=0)
        enough = count >= LEAST_LUMISECTIONS / 2
        return np.divide(square.sum(axis=0), count, out=np.full(len(count), np.nan), where=enough)

    def _of_rings(self, of_channel: np.ndarray, lumisections: int) -> tuple[np.ndarray, np.ndarray]:
        """Median of each ring and its error; 1 and 0 where few channels have a variance: (rings,) each."""
        median, error = np.ones(len(self.variance)), np.zeros(len(self.variance))
        for ring in range(len(median)):
            mine = self._ring == ring
            found = of_channel[mine & np.isfinite(of_channel)]
            if len(found) >= MEASURED * mine.sum():
                median[ring] = np.median(found)
                error[ring] = 1.25 * median[ring] * np.sqrt(2 / lumisections / len(found))
        return median, error

    def _modes(self, observed: Observation, usual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared relative size of the common mode of each ring on each side, and its error, (2 rings,) each."""
        size, error = np.zeros(len(self.mode)), np.zeros(len(self.mode))
        noise, along = clipped(observed), observed.rate_leverage
        for side in np.unique(self._side[usual]):
            mine = usual & (self._side == side)
            information = (along[:, mine] ** 2).sum(axis=1)
            lit = information > 0
            if lit.sum() >= LEAST_LUMISECTIONS:
                moved = (along[:, mine] * noise[:, mine]).sum(axis=1)[lit] / information[lit]
                by_chance = float(np.mean(1 / information[lit]))
                size[side], error[side] = np.var(moved) - by_chance, by_chance * np.sqrt(2 / lit.sum())
        return size, error

    def _largest_mode(
        self, observed: Observation, usual: np.ndarray, boxes: ReadoutBoxes, box_variance: np.ndarray, ends: np.ndarray
    ) -> None:
        """Largest common mode of channels, without a constant in each stretch and without the modes of boxes that have one."""
        noise, along = clipped(observed), observed.rate_leverage
        for cells, variance in zip(boxes.cells, box_variance, strict=True):
            if variance > 0:
                total = np.maximum((along[:, cells] ** 2).sum(axis=1, keepdims=True), 1e-300)
                noise[:, cells] -= along[:, cells] * (along[:, cells] * noise[:, cells]).sum(axis=1, keepdims=True) / total
        noise = noise[:, usual]
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            noise[begin:end] -= noise[begin:end].mean(axis=0)
        noise /= np.maximum(noise.std(axis=0), 1e-3)
        self.loading[:], self.largest = 0.0, 0.0
        n, channels = noise.shape
        if channels < 2:
            return
        values, vectors = np.linalg.eigh(noise @ noise.T / channels)
        # Largest eigenvalue of independent channels: Marchenko and Pastur, Math. USSR Sb. 1 (1967) 457.
        self.largest = float(values[-1] / (1 + np.sqrt(n / channels)) ** 2)
        share = np.zeros(len(usual))
        share[usual] = (vectors[:, -1] @ noise) ** 2
        share /= max(share.sum(), 1e-300)
        of_side = np.bincount(self._side, weights=share, minlength=len(self.mode))
        self.loading = np.concatenate([of_side, np.bincount(self._box[1], weights=share, minlength=len(self._box[0]))])

    def summary(self) -> dict[str, Any]:
        """Where the law is off, ready for JSON.

        run: newest run that was used. rings: those whose counts vary more than the law says: depth, |ieta|, variance over that
        of the law, its error. modes: rings on a side that move together: depth, ieta, relative size. channels: of the newest
        run, with their variance; largest first. largest: its largest common mode over that of independent channels, with the
        rings and boxes that take most part, or None. holds: whether nothing is named. sentences: the same in words.
        """
        found: dict[str, Any] = {
            "rings": self._named_rings(),
            "modes": self._named_modes(),
            "channels": self._named_channels(),
            "largest": self._named_largest(),
        }
        off = any(found.values())
        return {"run": self.run or None, **found, "holds": not off, "sentences": _sentences(self.run, found)}

    @property
    def holds(self) -> bool:
        """Whether variances and common modes are those of the law, but for single channels."""
        return not (self._named_rings() or self._named_modes() or self._named_largest())

    def _named_rings(self) -> list[dict[str, Any]]:
        if not self.weight:
            return []
        variance, error = self.variance / self.weight, np.sqrt(self.error) / self.weight
        named = np.flatnonzero((variance > WIDE) & (variance - 1 > SURE * error)).tolist()
        figures = ({"variance": round(float(variance[ring]), 2), "error": round(float(error[ring]), 2)} for ring in named)
        return [{**self._ring_name(2 * ring + 1, abs), **of_ring} for ring, of_ring in zip(named, figures, strict=True)]

    def _named_modes(self) -> list[dict[str, Any]]:
        if not self.weight:
            return []
        size, error = self.mode / self.weight, np.sqrt(self.mode_error) / self.weight
        return [
            {**self._ring_name(side, int), "size": round(float(np.sqrt(size[side])), 4)}
            for side in np.flatnonzero((size > MODE**2) & (size > SURE * error)).tolist()
        ]

    def _named_channels(self) -> list[dict[str, Any]]:
        order = np.argsort(-self.odd_variance, kind="stable")
        names = (dict(zip(("ieta", "iphi", "depth"), self._place[self.odd[i]].tolist(), strict=True)) for i in order)
        return [{**name, "variance": round(float(self.odd_variance[i]), 1)} for name, i in zip(names, order, strict=True)]

    def _named_largest(self) -> dict[str, Any] | None:
        if self.largest < LARGE:
            return None
        sides, boxes = np.split(self.loading, [len(self.mode)])
        fair = np.bincount(self._side, minlength=len(sides)) / len(self._side)
        fair_box = np.bincount(self._box[1], minlength=len(boxes)) / len(self._side)
        in_rings = [self._ring_name(side, int) for side in np.flatnonzero(sides > 2 * fair).tolist()]
        in_boxes = self._box[0][boxes > 2 * fair_box].tolist()
        return {"over_independent": round(self.largest, 2), "rings": in_rings, "boxes": in_boxes}

    def _ring_name(self, side: int, sign: Callable[[int], int]) -> dict[str, int]:
        """Depth and ieta of a ring on a side."""
        mine = self._side == side
        ieta, _, depth = self._place[mine if mine.any() else self._ring == side // 2][0]
        return {"depth": int(depth), "ieta": sign(int(ieta))}

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {name: np.array(getattr(self, name)) for name in _ARRAYS}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave; one of an older version holds nothing. Raises StateError if it is damaged."""
        if not state:
            return
        if missing := [name for name in _ARRAYS if name not in state]:
            raise StateError(f"the state of the law's watch lacks {', '.join(missing)}; it is damaged or of another version")
        for name in _ARRAYS:
            value = np.array(state[name])
            setattr(self, name, value if value.ndim else value.item())


def _sentences(run: int, found: Mapping[str, Any]) -> list[str]:
    """What is off, in plain words. run: number of the newest run."""
    told = []
    if rings := sorted(found["rings"], key=lambda one: -float(one["variance"])):
        each = [f"ring |ieta| {one['ieta']}{_depth(one)} {one['variance']:.1f} times" for one in rings]
        told.append(f"counts vary more than the law of the response expects: {_listed(each)}")
    if modes := sorted(found["modes"], key=lambda one: -float(one["size"])):
        each = [f"ieta {one['ieta']:+d}{_depth(one)} by {100 * one['size']:.1f} %" for one in modes]
        told.append(f"all channels of a ring move together from lumisection to lumisection: {_listed(each)}")
    if found["channels"]:
        each = [f"{one['ieta']}/{one['iphi']}/{one['depth']} {one['variance']:.0f} times" for one in found["channels"]]
        told.append(f"run {run}: single channels vary much more than their ring (ieta/iphi/depth): {_listed(each)}")
    if largest := found["largest"]:
        in_rings = ", ".join(f"{ring['ieta']:+d}{_depth(ring)}" for ring in largest["rings"])
        in_boxes = ", ".join(f"{box:+d}" for box in largest["boxes"])
        where = "; ".join([f"ieta {in_rings}"] * bool(in_rings) + [f"RBX {in_boxes}"] * bool(in_boxes))
        told.append(
            f"run {run}: channels move together in a way that no readout box explains, {largest['over_independent']:.1f} times "
            f"the largest mode of independent channels, mainly in {where or 'all rings and boxes alike'}"
        )
    return told


def _listed(each: Sequence[str]) -> str:
    """The first entries, and how many there are besides."""
    more = f" and {len(each) - LISTED} more" if len(each) > LISTED else ""
    return ", ".join(each[:LISTED]) + more


def _depth(one: Mapping[str, int]) -> str:
    return f" depth {one['depth']}" if one["depth"] > 1 else ""
