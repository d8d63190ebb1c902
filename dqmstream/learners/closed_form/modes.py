"""Modes: gains, variances, and what moves together in a run, in one Gaussian density.

    z = (r - h d_k - m_k) / sqrt(v_c f_kc),    z ~ Normal(0, I + D diag(s_k) D' + U_k U_k')

    r        residuals to the reference under the lumisection's own conditions, outages filled in (`response.outages`)
    h d_k    change by the gains of run k; gains and conditions as in `closed_form.statistical`
    m_k      what the law of the response misses at the lumisection's pileup, the same function for all runs
             (`response.pileup_error`), and parts that respond to it in another way in run k (`closed_form.pileup_slopes`)
    v_c      variance of the channel, over all runs; f_kc: factor of run k, 1 unless channel or ring clearly differ in it
    D, s_k   parts of the detector that move as a whole, and their variances in run k (`closed_form.variance_components`)
    U_k      free modes of run k

Where `statistical` knows common modes of readout boxes only and takes the spread of counts from the first run, this density
knows rings, mirror rings and any strong pattern, and the spread of each run. It has more numbers to learn, so inside the law it
is a little less sure. Channels that fire in nearly every event are left out: their counts are not Gaussian. Events and pileup
are free directions. What was tried: docs/decisions/2026-11-29-mixture-of-densities.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.closed_form.mode_rows import ModeRows, ring_and_channel_factors
from dqmstream.learners.closed_form.pileup_slopes import find_slopes, shifts
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.closed_form.variance_components import component_variances, detector_parts, free_modes
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.response.conditions import fit_conditions
from dqmstream.learners.response.observation import ConditionFactors, Observation, observe
from dqmstream.learners.response.outages import filled, silent
from dqmstream.learners.response.pileup_error import PileupError
from dqmstream.learners.response.reference import CLIP, Reference
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

FEWEST_SILENT = 3.0
"""Events in which a channel is silent, under the mean conditions of the reference run, below which it is left out."""

SHARE_GAINS = 0.4
"""Share of the budget for the gains, where this strategy stands alone."""

_FREE = 1e3
"""Standard deviation of the free directions, in deviations of the counts."""

_ODD = 0.1
"""Gains farther than this from the usual ones are evaluated without the linear approximation."""

_CHUNK = 1024
"""Lumisections that are scored at once."""


def without_outages(reference: Reference, counts: np.ndarray) -> np.ndarray:
    """Counts of the live channels, (n, live), with outages filled in: float64."""
    counts = counts.astype(np.float64)
    expected = reference.response(counts).counts
    return filled(counts, expected, silent(counts, expected), reference.ring)


@dataclass(frozen=True, eq=False)
class _Density:
    """Gaussian of a run, ready to score: 1/sqrt(variance) (used,), modes over it (used, m), their solver (m, m), log det."""

    weight: np.ndarray
    modes: np.ndarray
    solver: np.ndarray
    log_determinant: float

    def of(self, residual: np.ndarray) -> np.ndarray:
        """Log-density of residuals (n, used), up to a constant: (n,)."""
        z = residual * self.weight
        along = (z @ self.modes) @ self.solver
        square = np.einsum("nc,nc->n", z, z) - np.einsum("nm,nm->n", along, along)
        return np.asarray(-0.5 * (square + self.log_determinant), dtype=np.float64)


@register_strategy("modes")
class Modes(Incremental):
    """Learns a run in one pass: its gains, and some numbers a run for what moves in it."""

    name = "modes"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int, statistical: Statistical | None = None) -> None:
        """memory_bytes: budget of all that is kept. statistical: gains that another strategy learns before each run."""
        super().__init__(geometry, seed, memory_bytes=memory_bytes)
        self.budget_bytes = memory_bytes
        self._own_gains = statistical is None
        self.statistical = statistical or Statistical(geometry, seed, int(SHARE_GAINS * memory_bytes))
        self._clear()

    def _clear(self) -> None:
        self.rows = ModeRows()
        self._pileup_error = PileupError()
        self._densities: list[_Density] | None = None
        self._parts: np.ndarray | None = None
        self._of_typical: Observation | None = None

    @property
    def classes(self) -> int:
        return self.rows.classes

    def _use_reference(self, reference: Reference) -> None:
        super()._use_reference(reference)
        self._densities = self._parts = self._of_typical = None

    @property
    def _typical(self) -> Observation:
        """The mean counts of the reference run, compared with the reference; computed once."""
        if self._of_typical is None:
            self._of_typical = observe(self.reference, self.reference.typical.counts)
        return self._of_typical

    @property
    def _used(self) -> np.ndarray:
        """Live channels that are scored: bool, (live,)."""
        typical = self.reference.typical
        return np.asarray((typical.events * (1 - typical.fired))[0] >= FEWEST_SILENT)

    @property
    def _directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Free directions, (live, 2), and those of the parts of the detector, (live, parts), in deviations of the counts."""
        if self._parts is None:
            self._parts = detector_parts(self.reference.live, self.reference.ring)
        by_rate = self._typical.rate_leverage[0]
        return np.stack([self._typical.leverage[0], by_rate], axis=1), self._parts * by_rate[:, None]

    def _log_pileup(self, observed: Observation, conditions: ConditionFactors) -> np.ndarray:
        """Logarithm of the pileup relative to the reference run, (n,)."""
        return np.asarray(np.log(np.median(observed.rate / self._typical.rate, axis=1) * conditions.pileup[:, 0]))

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        counts = without_outages(self.reference, train.counts[:, self.reference.live])
        if self._own_gains:
            maps = replace(train, counts=self.reference.to_map(counts.astype(np.float32)))
            self.statistical.learn_inside(self.reference, experience, maps, validation, past)
        observed, gain = observe(self.reference, counts), self.statistical.gains[-1]
        conditions = fit_conditions(observed, gain)
        residual = np.clip(observed.under(gain, conditions).residual, -CLIP, CLIP)
        residual -= residual.mean(axis=0)
        log_pileup = self._log_pileup(observed, conditions)
        residual = self._pileup_error.learn(log_pileup, residual)
        n = len(residual)
        variance = (residual**2).sum(axis=0) / max(n - 1, 1)
        pooled = self.rows.pool(variance, n, self.reference.ring)
        factor = ring_and_channel_factors(residual, pooled, self.reference.ring)
        z = residual / np.sqrt(pooled * factor)
        z[:, ~self._used] = 0.0
        free, parts = (along / np.sqrt(pooled * factor)[:, None] * self._used[:, None] for along in self._directions)
        flat, _ = np.linalg.qr(free)
        z, parts = z - (z @ flat) @ flat.T, parts - flat @ (flat.T @ parts)
        slopes = find_slopes(log_pileup, z, parts)
        for part, shift in shifts(slopes, log_pileup):
            z -= shift[:, None] * parts[:, part]
        moving = component_variances(z, parts)
        some = np.flatnonzero(moving)
        modes = free_modes(z, parts[:, some] * np.sqrt(moving[some]))
        self.rows.add(factor, moving, modes, self._pileup_error.mean(log_pileup), slopes)
        self.rows.fit(self.budget_bytes - (self.statistical.memory_bytes() if self._own_gains else 0))
        self._densities = None
        log = LearnLog(samples=n, flops=self.reference.response_flops(n))
        log.flops += 2.0 * n * residual.shape[1] * (n + parts.shape[1] + 60)
        log.notes |= {"moving_parts": float(len(some)), "free_modes": float(modes.shape[1])}
        log.notes["pileup_slopes"] = float(len(slopes))
        return log

    def _scores(self, maps: Maps) -> np.ndarray:
        return self.scores_of_live(maps.counts[:, self.reference.live])

    def scores_of_live(self, counts: np.ndarray) -> np.ndarray:
        """The same from counts of the live channels, (n, live)."""
        counts = without_outages(self.reference, counts)
        scores = np.empty((len(counts), self.classes))
        for start in range(0, len(counts), _CHUNK):
            scores[start : start + _CHUNK] = self._scores_of(counts[start : start + _CHUNK])
        return scores

    def _scores_of(self, counts: np.ndarray) -> np.ndarray:
        used = np.flatnonzero(self._used)
        gains, _, _, row = self.statistical.known()
        usual = np.median(gains, axis=0)
        observed = observe(self.reference, counts)
        conditions = fit_conditions(observed, usual)
        log_pileup = self._log_pileup(observed, conditions)
        observed, usual, gains = observed.of(used), usual[used], gains[:, used]
        under = observed.under(usual, conditions)
        missed = self._pileup_error.expected(log_pileup)[:, used]
        residual = (np.clip(under.residual, -CLIP, CLIP) - missed).astype(np.float32)
        slope = (observed.rate * conditions.pileup * under.per_rate).astype(np.float32)
        densities, parts = self._ready(used), self._directions[1][used].astype(np.float32)
        scores = np.empty((len(counts), self.classes))
        for k, density in enumerate(densities):
            gain = gains[row[k]]
            own = residual - slope * (gain - usual).astype(np.float32)
            odd = np.flatnonzero(np.abs(gain - usual) > _ODD)
            if odd.size:
                own[:, odd] = np.clip(observed.of(odd).under(gain[odd], conditions).residual, -CLIP, CLIP) - missed[:, odd]
            own += self._pileup_error.at_mean(self.rows.mean[k])[used].astype(np.float32)
            for part, shift in shifts(self.rows.slopes_of(k), log_pileup):
                own -= shift[:, None] * parts[:, part]
            scores[:, k] = density.of(own)
        return scores

    def _ready(self, used: np.ndarray) -> list[_Density]:
        """The density of each run, over the used channels; computed once after each run."""
        if self._densities is None:
            free, parts = self._directions
            self._densities = [self._density(k, used, free[used], parts[used]) for k in range(self.classes)]
        return self._densities

    def _density(self, k: int, used: np.ndarray, free: np.ndarray, parts: np.ndarray) -> _Density:
        factor, moving, modes = self.rows.of(k)
        variance = self.rows.pooled[used] * factor[used]
        weight = 1 / np.sqrt(variance)
        some = np.flatnonzero(moving)
        columns = np.concatenate([_FREE * free, parts[:, some] * np.sqrt(moving[some])], axis=1) * weight[:, None]
        columns = np.concatenate([columns, modes[used]], axis=1)
        inner = np.eye(columns.shape[1]) + columns.T @ columns
        root = np.linalg.cholesky(inner)
        solver = np.linalg.inv(root).T
        log_determinant = float(np.log(variance).sum() + 2 * np.log(np.diag(root)).sum())
        single = np.float32
        return _Density(weight.astype(single), columns.astype(single), solver.astype(single), log_determinant)

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to)}
        if self.classes:
            state |= self._reference_state() | prefixed("rows", self.rows.state())
            state |= prefixed("pileup_error", self._pileup_error.state())
            state |= prefixed("statistical", self.statistical.state()) if self._own_gains else {}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        known: dict[str, Any] = {name: within(state, name) for name in ("rows", "pileup_error", "statistical")}
        learnt = bool(set(state) - {STAMP})
        if learnt and not all(known[name] for name in ("rows", "pileup_error")):
            raise StateError(f"the state of {self.name} lacks some of its arrays; it is damaged")
        self._clear()
        self._restore_reference(state, learnt)
        if self._own_gains:
            self.statistical.restore(known["statistical"] or {STAMP: stamp(self.statistical._belongs_to)})
        if learnt:
            self.rows.restore(known["rows"])
            self._pileup_error.restore(known["pileup_error"])

    def memory_bytes(self) -> int:
        gains = self.statistical.memory_bytes() if self._own_gains else 0
        return gains + self.rows.memory_bytes() + self._pileup_error.nbytes

    def state_bytes(self) -> int:
        return self._reference_bytes() + (self.statistical.state_bytes() if self._own_gains else 0)
