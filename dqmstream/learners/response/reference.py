"""What each channel should count under a lumisection's own conditions, as the first run taught it.

A first run whose pileup is level teaches little of other pileups. The reference knows which it was taught, has wider errors
beyond, and learns from later runs there (`Reference.after`); what it says under the first run's own conditions never moves.

Luminosity moves all channels together, and must not be mistaken for a change of the detector. Two numbers of the same map
stand for it: a, from the rings |ieta| 19-23, which rise with pileup, and b, from the rings |ieta| 26-28, which are nearly
full and follow the number of events. What a channel should count by them is `learners.response.response`.

Events and pileup that are written beside a map are not asked: with the law fitted to them in place of a and b, the accuracy of
gain maps on 20 runs of `small` was .8775, .9100, .8858 on seeds 0-2, and is .8792, .9117, .8783 as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.blank import ALIKE, blank, telling
from dqmstream.learners.maps import Maps
from dqmstream.learners.response.fit import after, fit
from dqmstream.learners.response.response import KINDS, Expected, Response, Saturating, probability, sensitivity
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.lumisection import IETA, IPHI, readout_box

CLIP = 10.0
"""Residuals are cut at this many standard deviations: beyond it a channel is dead or hot, and how much no longer matters."""

A_RINGS, B_RINGS = (19, 23), (26, 28)

_CHUNK = 4096


class Reference:
    """Expected counts and spread of the live channels.

    live: bool, shape (depth, 64, 72), the cells that counted anything in the reference run; all else is left out. ring: a
    number 0, 1, ... for each pair of depth and |ieta|, (live,).
    """

    def __init__(self, live: np.ndarray, profile: np.ndarray, response: Response | None = None) -> None:
        """profile: mean counts, (live,). response: of the live channels; None in the course of a fit."""
        self.live = live
        self._profile = profile
        self._response = response
        depth, row, column = np.nonzero(live)
        self._box = readout_box(IETA[row], IPHI[column])
        self.ring = np.unique(100 * depth + np.abs(IETA)[row], return_inverse=True)[1]
        self._boxes = tuple(_by_box(live, cells, profile) for cells in _condition_cells(live, profile))

    @classmethod
    def fit(cls, maps: Maps, left_out: np.ndarray | None = None) -> Reference:
        """Fit on the lumisections of a run (its train part) that are not blank. Raises InputError if nothing counted.

        left_out: bool, shape (depth, 64, 72), cells that are no channels of this reference.
        """
        maps = maps.take(telling(maps.counts))
        live = np.asarray((maps.counts > 0).any(axis=0))
        if left_out is not None:
            live &= ~left_out
        if not live.any():
            raise InputError("the reference run holds no counts to learn from; start with a run that was read out")
        counts = maps.counts[:, live].astype(np.float64)
        profile = counts.mean(axis=0)
        unfitted = cls(live, profile)
        cells, share = unfitted._boxes[1]
        lit = np.median(counts[:, cells] @ share, axis=1) > 0
        if not lit.any():
            raise InputError("the reference run is dark in most readout boxes; start with a run that was read out")
        return cls(live, profile, fit(counts[lit], unfitted._conditions, profile, unfitted.ring, unfitted._box))

    def after(self, maps: Maps) -> Reference:
        """The reference when lumisections of another run (its train part) have taught it what it was not taught.

        It is itself where they are under the conditions that it knows. Otherwise it is another, which expects the same under
        the conditions of the first run: what was measured by it stays, but for the factor of `rescaled`.
        """
        counts = maps.counts[:, self.live].astype(np.float64)
        counts = counts[~self.blank(counts)]
        response = after(self._known, counts, self._conditions, self._profile, self.ring, self._box)
        return self if response is self._known else Reference(self.live, self._profile, response)

    def rescaled(self, later: Reference) -> np.ndarray:
        """By what to multiply changes of rates that were measured by this reference so that they hold for a later one, (live,).

        Counts are what was seen: a rate of which they depend less must have changed by more.
        """
        one, other = self._known, later._known
        if one is other or not isinstance(one, Saturating) or not isinstance(other, Saturating):
            return np.ones(self.channels)
        before, now = (sensitivity(1 - np.minimum(probability(law.rate), 1 - 1e-9)) for law in (one, other))
        return np.asarray(np.clip(before / now, 0.1, 10.0))

    def beyond(self, counts: np.ndarray) -> np.ndarray:
        """Whether lumisections are under conditions that it was not taught: bool (n,), from maps (n, depth, 64, 72)."""
        of_live = counts[:, self.live].astype(np.float64)
        return np.asarray(self._known.beyond(self._conditions(of_live)) & ~self.blank(of_live))

    def told(self) -> dict[str, Any]:
        """What it is, ready for JSON: kind; lowest and highest conditions that it was taught, relative to the first run (pileup
        where its kind is saturating, else the ratio of dim to bright rings), None where an old state does not say."""
        lowest, highest = self._known.taught or (None, None)
        return {"kind": self.kind, "lowest": lowest, "highest": highest}

    @property
    def rates_unsure(self) -> bool:
        """Whether the first run's pileup was too level to tell the rates of channels that are full in it, nor their gains."""
        return isinstance(self._response, Saturating) and self._response.error is not None and bool(self._response.error.any())

    @property
    def channels(self) -> int:
        """Number of live channels."""
        return len(self._profile)

    @property
    def version(self) -> str:
        """16 hexadecimal digits of the SHA-256 of its arrays, with their names, types and shapes."""
        digest = hashlib.sha256()
        for name, array in sorted(self.state().items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    @property
    def kind(self) -> str:
        """Which form of response the reference run follows: saturating or quadratic."""
        return self._known.kind

    @property
    def _known(self) -> Response:
        if self._response is None:
            raise InputError("the reference has not been fitted")
        return self._response

    def _conditions(self, counts: np.ndarray) -> np.ndarray:
        # A median over readout boxes: in a mean one dead box moved the residuals of all other channels by 5 deviations.
        return np.stack([_middle(counts[:, cells] @ share) for cells, share in self._boxes], axis=1)

    def blank(self, counts: np.ndarray) -> np.ndarray:
        """Whether lumisections say nothing of the live channels: bool (n,), from their counts (n, live).

        A saturated lumisection is not blank where those of the reference run are saturated too.
        """
        often_full = np.mean(self._profile > 0.999 * self._profile.max()) >= ALIKE
        return blank(counts, often_full=bool(often_full)) | ~(self._conditions(counts.astype(np.float64))[:, 1] > 0)

    def conditions(self, counts: np.ndarray) -> np.ndarray:
        """a and b of each lumisection, relative to the reference run: float64, shape (n, 2), from maps (n, depth, 64, 72)."""
        return self._conditions(counts[:, self.live].astype(np.float64))

    def expected(self, counts: np.ndarray) -> np.ndarray:
        """Expected counts under the conditions that the maps themselves show: float64, shape (n, live)."""
        return self.response(counts[:, self.live]).counts

    def response(self, counts: np.ndarray) -> Expected:
        """What the live channels should count under the conditions that their counts (n, live) show: all (n, live)."""
        return self._known.expected(self._conditions(counts.astype(np.float64)))

    @property
    def typical(self) -> Expected:
        """The same under the mean conditions of the reference run, (1, live)."""
        return self.response(self._profile[None])

    def residuals(self, counts: np.ndarray) -> np.ndarray:
        """(count - expected) / deviation, cut at ±10: float32, shape (n, live), from maps (n, depth, 64, 72)."""
        return self.residuals_of_live(counts[:, self.live])

    def residuals_of_live(self, counts: np.ndarray) -> np.ndarray:
        """The same from the counts of the live channels, shape (n, live), which is what memories keep."""
        out = np.empty(counts.shape, dtype=np.float32)
        for start in range(0, len(counts), _CHUNK):
            part = counts[start : start + _CHUNK].astype(np.float64)
            expected, deviation, _ = self.response(part)
            out[start : start + _CHUNK] = np.clip((part - expected) / deviation, -CLIP, CLIP)
        return out

    def scaled_of_live(self, counts: np.ndarray) -> np.ndarray:
        """Counts of the live channels (n, live) over the reference run's largest mean: float32, from 0 to about 1."""
        return np.asarray(counts / self._profile.max(), dtype=np.float32)

    def response_flops(self, lumisections: int) -> float:
        """Floating-point operations of `response` and of the residual, for so many lumisections.

        2 cells boxes for each of the two conditions (a product of matrices), and 12 a channel: 4 for its probability to fire
        (a power counts as one), 6 for the expectation and the deviation, 2 for the residual.
        """
        return float(lumisections * (self._condition_flops + 12 * self.channels))

    def fit_flops(self, lumisections: int) -> float:
        """Floating-point operations of `fit` on so many lumisections.

        Conditions as above, 16 a channel and lumisection for least squares of three terms, and in each of four rounds and at
        the end 30 for the law, its slope and their products.
        """
        return float(lumisections * (self._condition_flops + (16 + 5 * 30) * self.channels))

    @property
    def _condition_flops(self) -> int:
        return sum(2 * share.size for _, share in self._boxes)

    def to_map(self, values: np.ndarray) -> np.ndarray:
        """Values of the live channels (n, live) put back on the map, zero elsewhere: shape (n, depth, 64, 72)."""
        out = np.zeros((len(values), *self.live.shape), dtype=values.dtype)
        out[:, self.live] = values
        return out

    def state(self) -> dict[str, np.ndarray]:
        """All of it, as named arrays."""
        return {"live": self.live, "profile": self._profile} | prefixed("response", self._known.state())

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Reference:
        """Take back what `state` gave. Raises StateError if an array is missing."""
        found = {name: np.array(array) for name, array in within(state, "response").items()}
        whole = [(kind, names) for kind in KINDS for names in (kind.arrays, (*kind.arrays, *kind.more))]
        kinds = [kind for kind, names in whole if set(names) == found.keys()]
        if not kinds or not {"live", "profile"} <= state.keys():
            raise StateError("the state's reference lacks some of its arrays; it is damaged or of another version")
        return cls(np.array(state["live"]), np.array(state["profile"]), kinds[0](**found))


def fitted_gains(residual: np.ndarray, leverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain of each channel by least squares, and its error (inf where nothing is known).

    residual: (n, channels), in deviations. leverage: by how many of them the count moves where the gain is 1, (n, channels).
    """
    information = (leverage**2).sum(axis=0)
    known = information > 0
    gain = np.divide((leverage * residual).sum(axis=0), information, out=np.zeros(len(information)), where=known)
    error = np.divide(1.0, np.sqrt(information), out=np.full(len(information), np.inf), where=known)
    return gain, error


def _condition_cells(live: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions, among the live cells, of those that make a and b.

    Where a ring group holds no live cell (another part of the detector), a is the dimmer and b the brighter half of the
    live cells, by their mean count: dim channels rise with pileup, bright ones are full and follow the number of events.
    """
    ring = np.abs(IETA)[np.nonzero(live)[1]]
    groups = [np.flatnonzero((ring >= low) & (ring <= high)) for low, high in (A_RINGS, B_RINGS)]
    if all(group.size for group in groups):
        return groups[0], groups[1]
    order = np.argsort(profile, kind="stable")
    return order[: (order.size + 1) // 2], order[order.size // 2 :]


def _middle(boxes: np.ndarray) -> np.ndarray:
    """Medians of rows, (n, boxes) to (n,). Where most boxes of a row are dark, that of those which count: it is their light."""
    middle = np.asarray(np.median(boxes, axis=1))
    for row in np.flatnonzero((middle == 0) & (boxes > 0).any(axis=1)):
        middle[row] = np.median(boxes[row][boxes[row] > 0])
    return middle


def _by_box(live: np.ndarray, cells: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells, and a matrix (cells, boxes) that makes their counts each readout box's total over its mean total."""
    _, row, column = np.nonzero(live)
    box = readout_box(IETA[row[cells]], IPHI[column[cells]])
    share = (box[:, None] == np.unique(box)).astype(np.float64)
    return cells, share / (profile[cells] @ share)
