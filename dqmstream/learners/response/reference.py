"""The reference: what each channel should count under a lumisection's own conditions, fitted to the first run.

Luminosity moves all channels together and must not be mistaken for a change of the detector. Two numbers of the same map stand
for it: a, the total of the rings |ieta| 19-23, which rises with pileup, and b, the total of the rings |ieta| 26-28, which are
nearly full and follow the number of events. A response (`response.base`) gives the expected counts as a function of a and b.
The number of events and the pileup filed with a map are not used.

A first run of level pileup leaves the response open at other pileups. The reference then states larger errors there, and later
runs improve it (`Reference.updated_by`). What it expects under the first run's own conditions never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.blank import SATURATED_SHARE, blank, informative
from dqmstream.learners.maps import Maps
from dqmstream.learners.response.base import Expected, Response
from dqmstream.learners.response.fit import fit_response
from dqmstream.learners.response.later_runs import updated
from dqmstream.learners.response.law import probability, sensitivity
from dqmstream.learners.response.outages import filled_first_run
from dqmstream.learners.response.quadratic import Quadratic
from dqmstream.learners.response.saturating import Saturating
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.lumisection import IETA, IPHI, readout_box

CLIP = 10.0
"""Residuals are cut at ± this many standard deviations. A channel beyond it is dead or hot, whatever the exact value."""

A_RINGS, B_RINGS = (19, 23), (26, 28)
"""First and last |ieta| of the rings of a and of b."""

KINDS: tuple[type[Saturating] | type[Quadratic], ...] = (Saturating, Quadratic)
"""Responses that a saved reference may have."""

_CHUNK = 4096


class Reference:
    """Expected counts of the live channels and their standard deviations.

    live: bool, (depth, 64, 72), the cells that counted anything in the reference run; all others are ignored. ring: number
    0, 1, ... of each channel's ring, a pair of depth and |ieta|, (live,).
    """

    def __init__(self, live: np.ndarray, profile: np.ndarray, response: Response | None = None) -> None:
        """profile: mean counts in the reference run, (live,). response: None while it is being fitted."""
        self.live = live
        self._profile = profile
        self._response = response
        depth, row, column = np.nonzero(live)
        self._box = readout_box(IETA[row], IPHI[column])
        self.ring = np.unique(100 * depth + np.abs(IETA)[row], return_inverse=True)[1]
        self._boxes = tuple(_by_box(live, cells, profile) for cells in _condition_cells(live, profile))

    @classmethod
    def fit(cls, maps: Maps, left_out: np.ndarray | None = None) -> Reference:
        """Fit to a run (its train part), without blank lumisections; outages are filled in (`response.outages`).

        left_out: bool, (depth, 64, 72), cells to ignore. Raises InputError if no cell counted anything, or most readout boxes
        were dark throughout.
        """
        maps = maps.take(informative(maps.counts))
        live = np.asarray((maps.counts > 0).any(axis=0))
        if left_out is not None:
            live &= ~left_out
        if not live.any():
            raise InputError("the reference run holds no counts to learn from; start with a run that was read out")
        counts = maps.counts[:, live].astype(np.float64)
        counts = filled_first_run(counts, cls(live, counts.mean(axis=0)).ring)
        profile = counts.mean(axis=0)
        unfitted = cls(live, profile)
        cells, share = unfitted._boxes[1]
        lit = np.median(counts[:, cells] @ share, axis=1) > 0
        if not lit.any():
            raise InputError("the reference run is dark in most readout boxes; start with a run that was read out")
        return cls(live, profile, fit_response(counts[lit], unfitted.conditions_of_live, profile, unfitted.ring, unfitted._box))

    def updated_by(self, maps: Maps) -> Reference:
        """The reference improved by another run (its train part), where that run has conditions outside the fitted range.

        Returns the same object where it has none. The new reference expects the same counts under the first run's conditions,
        and gains measured with the old one stay valid up to `gain_factor`.
        """
        counts = maps.counts[:, self.live].astype(np.float64)
        counts = counts[~self.blank(counts)]
        response = updated(self.fitted, counts, self.conditions_of_live, self._profile, self.ring, self._box)
        return self if response is self.fitted else Reference(self.live, self._profile, response)

    def gain_factor(self, later: Reference) -> np.ndarray:
        """Factor that converts gains measured with this reference to gains with a later one, (live,).

        The measured counts are the same: where they depend less on the rate, the rate must have changed by more.
        """
        one, other = self.fitted, later.fitted
        if one is other or not isinstance(one, Saturating) or not isinstance(other, Saturating):
            return np.ones(self.channels)
        before, now = (sensitivity(1 - np.minimum(probability(law.rate), 1 - 1e-9)) for law in (one, other))
        return np.asarray(np.clip(before / now, 0.1, 10.0))

    def beyond(self, counts: np.ndarray) -> np.ndarray:
        """Whether lumisections lie outside the fitted range of conditions: bool (n,), from maps (n, depth, 64, 72)."""
        of_live = counts[:, self.live].astype(np.float64)
        return np.asarray(self.fitted.beyond(self.conditions_of_live(of_live)) & ~self.blank(of_live))

    def summary(self) -> dict[str, Any]:
        """Kind and fitted range, ready for JSON.

        kind: saturating or quadratic. lowest, highest: conditions of the fit relative to the first run (pileup if saturating,
        else the ratio a/b of dim to bright rings); None in states of older versions.
        """
        lowest, highest = self.fitted.fitted_range or (None, None)
        return {"kind": self.kind, "lowest": lowest, "highest": highest}

    @property
    def rates_uncertain(self) -> bool:
        """Whether the first run's pileup was too level to fix the rates of channels that are full in it, and so their gains."""
        return isinstance(self._response, Saturating) and self._response.error is not None and bool(self._response.error.any())

    @property
    def channels(self) -> int:
        """Number of live channels."""
        return len(self._profile)

    @property
    def version(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the arrays with their names, types and shapes."""
        digest = hashlib.sha256()
        for name, array in sorted(self.state().items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    @property
    def kind(self) -> str:
        """Kind of the fitted response: saturating or quadratic."""
        return self.fitted.kind

    @property
    def fitted(self) -> Response:
        """The fitted response. Raises InputError while there is none."""
        if self._response is None:
            raise InputError("the reference has not been fitted")
        return self._response

    def conditions_of_live(self, counts: np.ndarray) -> np.ndarray:
        """a and b, relative to the reference run: (n, 2), from counts of the live channels, float64 (n, live).

        Each is a median over readout boxes of the box's total, so that one dead box does not move it.
        """
        return np.stack([_lit_median(counts[:, cells] @ share) for cells, share in self._boxes], axis=1)

    def conditions(self, counts: np.ndarray) -> np.ndarray:
        """The same from maps (n, depth, 64, 72): float64 (n, 2)."""
        return self.conditions_of_live(counts[:, self.live].astype(np.float64))

    def blank(self, counts: np.ndarray) -> np.ndarray:
        """Whether lumisections are blank (`learners.blank`): bool (n,), from counts of the live channels (n, live).

        Saturated ones are not blank where the reference run is saturated too; without counts in the rings of b, all are.
        """
        often_full = np.mean(self._profile > 0.999 * self._profile.max()) >= SATURATED_SHARE
        return blank(counts, often_full=bool(often_full)) | ~(self.conditions_of_live(counts.astype(np.float64))[:, 1] > 0)

    def expected(self, counts: np.ndarray) -> np.ndarray:
        """Expected counts under the maps' own conditions: float64 (n, live), from maps (n, depth, 64, 72)."""
        return self.response(counts[:, self.live]).counts

    def response(self, counts: np.ndarray) -> Expected:
        """Expectation under the lumisections' own conditions, from counts of the live channels (n, live)."""
        return self.fitted.expected(self.conditions_of_live(counts.astype(np.float64)))

    @property
    def typical(self) -> Expected:
        """Expectation under the mean conditions of the reference run, (1, live)."""
        return self.response(self._profile[None])

    def residuals(self, counts: np.ndarray) -> np.ndarray:
        """(count - expected) / standard deviation, cut at ±10: float32 (n, live), from maps (n, depth, 64, 72)."""
        return self.residuals_of_live(counts[:, self.live])

    def residuals_of_live(self, counts: np.ndarray) -> np.ndarray:
        """The same from counts of the live channels (n, live), as memories keep them."""
        out = np.empty(counts.shape, dtype=np.float32)
        for start in range(0, len(counts), _CHUNK):
            part = counts[start : start + _CHUNK].astype(np.float64)
            expected, deviation, _ = self.response(part)
            out[start : start + _CHUNK] = np.clip((part - expected) / deviation, -CLIP, CLIP)
        return out

    def scaled_of_live(self, counts: np.ndarray) -> np.ndarray:
        """Counts of the live channels (n, live) over the largest mean count of the reference run: float32, about 0 to 1."""
        return np.asarray(counts / self._profile.max(), dtype=np.float32)

    def response_flops(self, lumisections: int) -> float:
        """Floating-point operations of `response` and the residuals of that many lumisections.

        A lumisection takes 2 x cells x boxes for each of a and b (matrix products), and 12 a channel: 4 for the probability to
        fire (a power counts as one), 6 for the expectation and its deviation, 2 for the residual.
        """
        return float(lumisections * (self._condition_flops + 12 * self.channels))

    def fit_flops(self, lumisections: int) -> float:
        """Floating-point operations of `fit` on that many lumisections.

        Conditions as above; for a channel and lumisection, 16 for least squares of three terms, and 30 for the law, its slope
        and their products in each of four rounds and at the end.
        """
        return float(lumisections * (self._condition_flops + (16 + 5 * 30) * self.channels))

    @property
    def _condition_flops(self) -> int:
        return sum(2 * share.size for _, share in self._boxes)

    def to_map(self, values: np.ndarray) -> np.ndarray:
        """Values of the live channels (n, live) on the map, zero elsewhere: (n, depth, 64, 72)."""
        out = np.zeros((len(values), *self.live.shape), dtype=values.dtype)
        out[:, self.live] = values
        return out

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {"live": self.live, "profile": self._profile} | prefixed("response", self.fitted.state())

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Reference:
        """The reference whose `state` this is. Raises StateError if an array is missing."""
        found = {name: np.array(array) for name, array in within(state, "response").items()}
        whole = [(kind, names) for kind in KINDS for names in (kind.arrays, (*kind.arrays, *kind.more))]
        kinds = [kind for kind, names in whole if set(names) == found.keys()]
        if not kinds or not {"live", "profile"} <= state.keys():
            raise StateError("the state's reference lacks some of its arrays; it is damaged or of another version")
        return cls(np.array(state["live"]), np.array(state["profile"]), kinds[0](**found))


def _condition_cells(live: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the channels of a and of b among the live ones.

    Where one of the two groups of rings has no live cell (another part of the detector), a takes the dimmer half of the live
    cells and b the brighter half, by mean count.
    """
    ring = np.abs(IETA)[np.nonzero(live)[1]]
    groups = [np.flatnonzero((ring >= low) & (ring <= high)) for low, high in (A_RINGS, B_RINGS)]
    if all(group.size for group in groups):
        return groups[0], groups[1]
    order = np.argsort(profile, kind="stable")
    return order[: (order.size + 1) // 2], order[order.size // 2 :]


def _lit_median(boxes: np.ndarray) -> np.ndarray:
    """Median of each row, (n, boxes) -> (n,); where most boxes of a row are dark, the median of those that count."""
    middle = np.asarray(np.median(boxes, axis=1))
    for row in np.flatnonzero((middle == 0) & (boxes > 0).any(axis=1)):
        middle[row] = np.median(boxes[row][boxes[row] > 0])
    return middle


def _by_box(live: np.ndarray, cells: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells, and the matrix (cells, boxes) that turns their counts into box totals relative to the reference run."""
    _, row, column = np.nonzero(live)
    box = readout_box(IETA[row[cells]], IPHI[column[cells]])
    share = (box[:, None] == np.unique(box)).astype(np.float64)
    return cells, share / (profile[cells] @ share)
