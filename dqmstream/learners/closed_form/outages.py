"""Outages: how often each channel and each readout box was out in each run; flickers and trips tell runs apart.

    score_k = sum over boxes of log π_kb where the box is out, else of log(1 - π_kb) and the same for its channels

ε_kc, π_kb: share of the run's lumisections in which channel c, or box b as a whole, counted next to nothing
(`response.outages`). A rate of a run with n lumisections is shrunk to a usual one with the weight of `PRIOR` lumisections. A
channel that died is out in nearly all of them.

Only rates that differ from the usual ones are kept: a few bytes a run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.outages import Outages, outages, silent
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import STAMP, check_stamp, stamp
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

PRIOR = 20.0
"""Weight of the usual rates, in lumisections."""

USUAL_CHANNEL, USUAL_BOX = 0.002, 0.01
"""Usual rates of a channel and of a readout box."""

_ENTRIES = np.dtype([("experience", np.int32), ("place", np.int32), ("lumisections", np.float32)])
"""A rate that is kept: run, channel or box, and number of lumisections in which it was out."""

_ARRAYS = ("lumisections", "channels", "boxes")


@register_strategy("outages")
class OutageRates(Incremental):
    """Learns a run in one pass; keeps the outages that it had."""

    name = "outages"

    def __init__(self, geometry: Geometry, seed: int) -> None:
        super().__init__(geometry, seed)
        self._clear()

    def _clear(self) -> None:
        self._lumisections = np.zeros(0, dtype=np.float32)
        self._channels, self._boxes = np.zeros(0, _ENTRIES), np.zeros(0, _ENTRIES)
        self._of_box: ReadoutBoxes | None = None
        self._odds: tuple[np.ndarray, ...] | None = None

    @property
    def classes(self) -> int:
        return len(self._lumisections)

    def _use_reference(self, reference: Reference) -> None:
        super()._use_reference(reference)
        self._of_box = None

    @property
    def boxes(self) -> ReadoutBoxes:
        """The readout boxes of the live channels."""
        if self._of_box is None:
            self._of_box = ReadoutBoxes(self.reference.live)
        return self._of_box

    def _outages(self, counts: np.ndarray) -> Outages:
        return outages(silent(counts, self.reference.response(counts).counts), self.boxes)

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Rates of channels, (classes, live), and of boxes, (classes, B)."""
        of_channels = self._rates(self._channels, USUAL_CHANNEL, self.reference.channels)
        return of_channels, self._rates(self._boxes, USUAL_BOX, len(self.boxes))

    def _rates(self, entries: np.ndarray, usual: float, places: int) -> np.ndarray:
        seen = np.full((self.classes, places), usual * PRIOR)
        seen[entries["experience"], entries["place"]] += entries["lumisections"]
        return np.asarray(seen / (self._lumisections.astype(np.float64)[:, None] + PRIOR))

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        found = self._outages(train.counts[:, self.reference.live].astype(np.float64))
        self._lumisections = np.append(self._lumisections, np.float32(len(train)))
        self._channels = np.concatenate([self._channels, _entries(experience, found.channels)])
        self._boxes = np.concatenate([self._boxes, _entries(experience, found.boxes)])
        self._odds = None
        flops = self.reference.response_flops(len(train)) + 3.0 * found.channels.size
        notes: dict[str, float | list[float]] = {"outages": float(found.channels.sum()), "box_trips": float(found.boxes.sum())}
        return LearnLog(samples=len(train), flops=flops, notes=notes)

    def _scores(self, maps: Maps) -> np.ndarray:
        return self.scores_of_live(maps.counts[:, self.reference.live])

    def scores_of_live(self, counts: np.ndarray) -> np.ndarray:
        """The same from counts of the live channels, (n, live)."""
        found = self._outages(counts.astype(np.float64))
        if self._odds is None:
            channels, boxes = self.rates()
            self._odds = np.log(channels), np.log1p(-channels), np.log(boxes), np.log1p(-boxes)
        out, on, box_out, box_on = self._odds
        scores = np.tile(on.sum(axis=1) + box_on.sum(axis=1), (len(counts), 1))
        # Outages are rare: all channels count as on, and only those that are out are corrected.
        rows = np.flatnonzero(found.channels.any(axis=1))
        some = np.flatnonzero(found.channels.any(axis=0))
        scores[rows] += found.channels[np.ix_(rows, some)].astype(np.float64) @ (out - on)[:, some].T
        for number, cells in enumerate(self.boxes.cells):
            dark = found.boxes[:, number]
            if dark.any():
                scores[dark] += (box_out - box_on)[:, number] - on[:, cells].sum(axis=1)
        return scores

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to)} | self._reference_state()
        if self.classes:
            state["lumisections"] = self._lumisections.copy()
            for name, entries in (("channels", self._channels), ("boxes", self._boxes)):
                state |= {f"{name}_{field}": entries[field].copy() for field in _ENTRIES.names or ()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        known = bool(set(state) - {STAMP})
        self._clear()
        self._restore_reference(state, known)
        if not known:
            return
        wanted = ["lumisections", *(f"{name}_{field}" for name in _ARRAYS[1:] for field in _ENTRIES.names or ())]
        missing = [name for name in wanted if name not in state]
        if missing:
            raise StateError(f"the state of {self.name} lacks {', '.join(missing)}; it is damaged")
        self._lumisections = np.array(state["lumisections"])
        self._channels, self._boxes = (
            _joined([state[f"{name}_{field}"] for field in _ENTRIES.names or ()]) for name in _ARRAYS[1:]
        )

    def memory_bytes(self) -> int:
        return self._lumisections.nbytes + self._channels.nbytes + self._boxes.nbytes

    def state_bytes(self) -> int:
        return self._reference_bytes()


def _entries(experience: int, out: np.ndarray) -> np.ndarray:
    """Entries of a run: its channels or boxes that were out, bool (n, places), at least once."""
    times = np.count_nonzero(out, axis=0)
    places = np.flatnonzero(times)
    return _joined([np.full(len(places), experience), places, times[places]])


def _joined(fields: list[np.ndarray]) -> np.ndarray:
    entries = np.zeros(len(fields[0]), _ENTRIES)
    for name, values in zip(_ENTRIES.names or (), fields, strict=True):
        entries[name] = values
    return entries
