"""Statistical memory: a run is its gains and the spreads of its common modes; lumisections are scored by their log-density.

The model of the count x_c of channel c in a lumisection of run k, with N events and pileup R, is

    x_c = N A_c P(R λ_c (1 + d_kc) (1 + u_b(c))) + s_c noise,    u_b ~ Normal(0, σ_kb²)

    P, A, λ    law, efficiency and rate of the channel (`response.law`)
    d_kc       gain of the channel in run k: a relative change of its rate
    u_b        common mode of readout box b: a different number in every lumisection, with a spread σ_kb of the run's own
    s          standard deviation of the expected count

N and R are fitted to the lumisection under the gains of the run, and integrated out around it. The score of a run is the
logarithm of this density, in closed form (`closed_form.density`).

A run is learnt in one pass and takes 1 kB. Gains are fitted in each run and smoothed over the runs (`response.gains`); without
smoothing, the errors of 900 gains hide the common modes. Accuracies: docs/decisions/2026-11-29-closed-forms.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.closed_form.density import KnownRuns, clipped, log_densities
from dqmstream.learners.closed_form.marginal import mode_log_likelihood
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.gain_codec import pack, unpack
from dqmstream.learners.memory.merging import NearestRows, merged_rows
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.conditions import fit_conditions
from dqmstream.learners.response.gains import fit_gains, smooth_gains
from dqmstream.learners.response.law import silence
from dqmstream.learners.response.observation import Observation, observe
from dqmstream.learners.response.reference import CLIP, Reference
from dqmstream.learners.response.rings import ring_medians
from dqmstream.learners.saved_state import STAMP, check_stamp, stamp
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

SIGMAS = np.concatenate([[0.0], np.geomspace(0.003, 0.2, 40)])
"""Grid of the spreads σ of a common mode. Below the first one, a single lumisection does not show it."""

EVIDENCE = 8.0
"""Increase of a run's log-likelihood from which a box has a common mode (docs/decisions/2026-11-29-closed-forms.md)."""

_CHUNK = 1024
"""Lumisections that are scored at once."""

_ALTERNATIONS = 2
"""Rounds in which the conditions of a run's lumisections and its gains are fitted in turn."""

_ROWS = {"gains": np.int8, "sigmas": np.uint8, "scale": np.float16, "weight": np.float32}
"""What is kept of each row: packed gains; spreads, as positions in `SIGMAS`; errors of the gains relative to those of the first
run, one number a ring; number of runs that share the row."""

_ARRAYS = (*_ROWS, "row_of_class", "errors", "lumisections")


@register_strategy("statistical")
class Statistical(Incremental):
    """Learns a run as one row of numbers; where the budget of bytes is full, the two most similar rows become one."""

    name = "statistical"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget of all rows, for the whole stream."""
        super().__init__(geometry, seed, memory_bytes=memory_bytes)
        self._budget_bytes = memory_bytes
        self._boxes: ReadoutBoxes | None = None
        self._known_runs: KnownRuns | None = None
        self._nearest: NearestRows | None = None
        self._rows: dict[str, np.ndarray] = {}
        self._row_of_class = np.zeros(0, dtype=np.int32)
        self._errors = np.zeros(0, dtype=np.float32)
        self._lumisections = 0

    @property
    def classes(self) -> int:
        return len(self._row_of_class)

    @property
    def boxes(self) -> ReadoutBoxes:
        """The readout boxes of the live channels."""
        if self._boxes is None:
            self._boxes = ReadoutBoxes(self.reference.live)
        return self._boxes

    @property
    def gains(self) -> np.ndarray:
        """Gains d of each class as measured, relative to the reference: float64, (classes, live)."""
        return self._gains_of(self._row_of_class)

    @property
    def gain_errors(self) -> np.ndarray:
        """Statistical errors of `gains`: float64, (classes, live)."""
        return self._row_errors()[self._row_of_class]

    @property
    def sigmas(self) -> np.ndarray:
        """Relative spread σ of each box's common mode in each class, 0 where none was found: (classes, B)."""
        return SIGMAS[self._rows["sigmas"][self._row_of_class]]

    def _gains_of(self, rows: np.ndarray | list[int] | slice) -> np.ndarray:
        return unpack(self._rows["gains"][rows], self._unit)

    @property
    def _unit(self) -> np.ndarray:
        """Error of a gain from a single lumisection, (live,)."""
        return np.asarray(self._errors * np.sqrt(np.float64(self._lumisections)))

    def known(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Smoothed gains and their errors, (rows, live); variances of common modes, (rows, B); row of each class."""
        return self._runs.gains, self._row_errors(), self._runs.variances, self._row_of_class

    def _use_reference(self, reference: Reference) -> None:
        if self._reference is not None and reference is not self._reference:
            # Gains are stored in units of the first run's errors, so converting these converts all gains.
            self._errors = (self._errors * self._reference.gain_factor(reference)).astype(np.float32)
            self._boxes = self._known_runs = self._nearest = None
        super()._use_reference(reference)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        observed = observe(self.reference, train.counts[:, self.reference.live].astype(np.float64))
        gain = self._runs.gains[self._row_of_class[-1]] if self.classes else np.zeros(observed.residual.shape[1])
        for _ in range(_ALTERNATIONS):
            observed = observed.under(0.0, fit_conditions(observed, gain))
            gain, error = fit_gains(observed, gain)
        if experience == 0:
            self._errors, self._lumisections = error.astype(np.float32), len(train)
        sigmas = self._common_modes(observed.under(gain))
        row: dict[str, Any] = {
            "gains": pack(gain, self._unit),
            "sigmas": sigmas,
            "scale": ring_medians(error / self._errors, self.reference.ring).astype(np.float16),
            "weight": np.float32(1),
        }
        for name, value in row.items():
            before = self._rows.get(name)
            self._rows[name] = np.stack([value]) if before is None else np.concatenate([before, [value]])
        self._row_of_class = np.append(self._row_of_class, np.int32(len(self._rows["scale"]) - 1))
        if self._nearest is not None:
            self._nearest.add()
        while self.memory_bytes() > self._budget_bytes:
            self._merge()
        self._known_runs = None
        log = LearnLog(samples=len(train), flops=self.reference.response_flops(len(train)))
        # For a channel and lumisection: 4 x 25 for conditions and 6 x 20 for gains in each round; 25 for modes.
        log.flops += len(train) * ((220.0 * _ALTERNATIONS + 25.0) * gain.size + 5.0 * len(SIGMAS) * len(self.boxes))
        log.notes |= {"common_modes": float(np.count_nonzero(sigmas)), "rows": float(len(self._rows["scale"]))}
        return log

    def _common_modes(self, observed: Observation) -> np.ndarray:
        """Most likely spread of each box's common mode, as a position in `SIGMAS`, 0 without enough evidence: uint8, (B,).

        observed: the run's lumisections under its own gains.
        """
        noise, leverage = clipped(observed), observed.rate_leverage
        information, projection = self.boxes.sums(leverage**2), self.boxes.sums(leverage * noise)
        gain = np.stack([mode_log_likelihood(sigma**2, information, projection).sum(axis=0) for sigma in SIGMAS])
        return np.where(gain.max(axis=0) > EVIDENCE, gain.argmax(axis=0), 0).astype(np.uint8)

    def _scores(self, maps: Maps) -> np.ndarray:
        return self.scores_of_live(maps.counts[:, self.reference.live])

    def scores_of_live(self, counts: np.ndarray) -> np.ndarray:
        """The same from counts of the live channels, (n, live)."""
        scores = np.empty((len(counts), self.classes))
        for start in range(0, len(counts), _CHUNK):
            observed = observe(self.reference, counts[start : start + _CHUNK].astype(np.float64))
            scores[start : start + _CHUNK] = self.scores_of(observed)
        return scores

    def scores_of(self, observed: Observation) -> np.ndarray:
        """The same from an observation of the lumisections."""
        return log_densities(observed, self.boxes, self._runs)[:, self._row_of_class]

    def draw(self, experiences: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw lumisections of learnt runs under the conditions of given lumisections.

        experiences: run of each draw, (n,). counts: of the live channels in any lumisections, (n, live); only their conditions
        are used. Returns whole counts, float32, (n, live), with the run's smoothed gains, common modes of its boxes, and
        binomial noise.
        """
        gains, drawn = self._runs.gains, np.empty(counts.shape, dtype=np.float32)
        for start in range(0, len(counts), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            row = self._row_of_class[experiences[chunk]]
            observed = observe(self.reference, counts[chunk].astype(np.float64))
            mode = SIGMAS[self._rows["sigmas"][row]] * rng.standard_normal((len(row), len(self.boxes)))
            rate = observed.rate * (1 + gains[row])
            for box, cells in enumerate(self.boxes.cells):
                rate[:, cells] *= np.maximum(1 + mode[:, box, None], 0.0)
            quiet = silence(rate)
            # The variance of a count, N p (1 - p), changes with p too.
            share = np.sqrt((1 - quiet) * quiet / (observed.quiet * (1 - observed.quiet)))
            noise = share * rng.standard_normal(rate.shape)
            drawn[chunk] = np.maximum(np.rint(observed.deviation * (observed.full * (1 - quiet) + noise)), 0)
        return drawn

    @property
    def _runs(self) -> KnownRuns:
        """The rows, with gains smoothed over the runs; computed once after each run."""
        if self._known_runs is None:
            gains = smooth_gains(self._gains_of(slice(None)), self._row_errors(), self.reference.ring)
            self._known_runs = KnownRuns(gains, SIGMAS[self._rows["sigmas"]] ** 2)
        return self._known_runs

    def _row_errors(self) -> np.ndarray:
        return np.asarray(self._rows["scale"].astype(np.float64)[:, self.reference.ring] * self._errors)

    def _merge(self) -> None:
        """Replace the two most similar rows by their weighted mean; their classes then have equal scores."""
        if len(self._rows["scale"]) == 1:
            raise InputError(
                f"a memory of {self._budget_bytes} bytes cannot hold what is kept of one run; raise --memory-bytes"
            )
        if self._nearest is None:
            self._nearest = NearestRows(self._distances, len(self._rows["scale"]))
        first, second = self._nearest.pair
        pair = [first, second]
        weight = self._rows["weight"][pair].astype(np.float64)
        share = weight / weight.sum()
        merged = {
            "gains": pack(share @ self._gains_of(pair), self._unit),
            "sigmas": np.abs(SIGMAS[:, None] - np.sqrt(share @ SIGMAS[self._rows["sigmas"][pair]] ** 2)).argmin(axis=0),
            "scale": ((self._rows["scale"][pair].astype(np.float64) ** -2).sum(axis=0) ** -0.5).astype(np.float16),
            "weight": np.float32(weight.sum()),
        }
        for name, value in merged.items():
            self._rows[name][first] = value
            self._rows[name] = np.delete(self._rows[name], second, axis=0)
        self._row_of_class = merged_rows(self._row_of_class, first, second)
        self._nearest.merged(first, second)

    def _distances(self, row: int) -> np.ndarray:
        """Distance of a row from each row, (rows,): how well a single lumisection separates them, twice in nats."""
        gains, variance = self._gains_of(slice(None)), SIGMAS[self._rows["sigmas"]] ** 2
        in_one = 1 / self._unit**2
        width = 1 + variance * self.boxes.sums(in_one)
        ratio = width / width[row]
        apart = np.minimum((gains - gains[row]) ** 2 * in_one, CLIP**2).sum(axis=1)
        return np.asarray(apart + 0.5 * (ratio + 1 / ratio - 2).sum(axis=1))

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to)} | self._reference_state()
        if self.classes:
            state |= {name: array.copy() for name, array in self._rows.items()}
            state |= {
                "row_of_class": self._row_of_class.copy(),
                "errors": self._errors.copy(),
                "lumisections": np.array(self._lumisections),
            }
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        missing = [name for name in _ARRAYS if name not in state]
        if missing and len(missing) < len(_ARRAYS):
            raise StateError(f"the state of {self.name} lacks {', '.join(missing)}; it is damaged or of another version")
        other = [] if missing else [name for name, kind in _ROWS.items() if state[name].dtype != kind]
        if other:
            raise StateError(
                f"the state of {self.name} has {', '.join(other)} of other types; it is damaged or of another version"
            )
        self._restore_reference(state, known=not missing)
        self._boxes = self._known_runs = self._nearest = None
        self._rows = {} if missing else {name: np.array(state[name]) for name in _ROWS}
        self._row_of_class = np.zeros(0, dtype=np.int32) if missing else np.array(state["row_of_class"])
        self._errors = np.zeros(0, dtype=np.float32) if missing else np.array(state["errors"])
        self._lumisections = 0 if missing else int(state["lumisections"])

    def memory_bytes(self) -> int:
        return sum(array.nbytes for array in self._rows.values()) + self._row_of_class.nbytes

    def state_bytes(self) -> int:
        return self._reference_bytes() + self._errors.nbytes
