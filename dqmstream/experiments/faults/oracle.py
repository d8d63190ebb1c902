"""The oracle: a bound that knows the true gains, events and pileup and what can fail, but not where and when."""

from __future__ import annotations

import numpy as np

from dqmstream.experiments.simulator import LIVE, SimulatedRun
from dqmstream.experiments.simulator.detector import probability
from dqmstream.experiments.simulator.faults import ANOMALY_LONGEST, ANOMALY_MULTIPLIERS
from dqmstream.learners.monitoring.fault_filter import FailureGroups, FaultFilter, Likelihoods, Rates, Suspicion

LOST = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BOX = (0.0, 0.8, 0.84, 0.88, 0.92, 0.95)
"""Factors on the rate of a degraded channel and of a box. A box that is off stands for one of HEM15 and HEM16."""

LASTING, FLICKERS, BEGINS = 0.01, 0.3, 1e-6
"""Probability per lumisection that a lasting or a flickering fault ends, and that a fault begins."""

_CHUNK = 50


class Oracle:
    """A bound for detectors that use past lumisections only: exact likelihoods in the chains of the learner's fault score."""

    name = "oracle"

    def __init__(self) -> None:
        self._live = LIVE[None]
        ends = (FLICKERS, LASTING, *(LASTING for _ in LOST), *(1 / ANOMALY_LONGEST for _ in ANOMALY_MULTIPLIERS))
        self._rates = (
            Rates((BEGINS,) * 2 + (BEGINS / 3,) * len(LOST) + (10 * BEGINS,) * len(ANOMALY_MULTIPLIERS), ends),
            Rates((BEGINS,), (LASTING,)),
            Rates((BEGINS,) * len(BOX), (LASTING,) * len(BOX)),
        )

    @property
    def live(self) -> np.ndarray:
        """bool, (depth, 64, 72), of the last run that was scored; depth 1 of HE before."""
        return self._live

    def of(self, run: SimulatedRun) -> Suspicion:
        """Scores as of a detector's `look`, from the true parameters of the run except its faults."""
        self._live = run.live.reshape(-1, *LIVE.shape)
        chains = FaultFilter(FailureGroups.of(self._live), *self._rates)
        found = [
            chains.step(self._likelihoods(run, slice(start, start + _CHUNK))) for start in range(0, len(run.counts), _CHUNK)
        ]
        return Suspicion(*(np.concatenate([getattr(one, name) for one in found]) for name in ("score", "channels")))

    def _likelihoods(self, run: SimulatedRun, chunk: slice) -> Likelihoods:
        counts, events = run.counts[chunk][:, run.live], run.events[chunk, None]
        rate, pileup = run.rate[run.live], run.pileup[chunk, None]

        def of(fired: np.ndarray) -> np.ndarray:
            p = np.clip(fired, 1e-12, 1 - 1e-12)
            return np.asarray(counts * np.log(p) + (events - counts) * np.log1p(-p))

        def at(factor: float) -> np.ndarray:
            return of(probability(factor * rate, pileup))

        good, off = probability(rate, pileup), at(0.0)
        short = [of(good * multiplier) for multiplier in ANOMALY_MULTIPLIERS]
        return Likelihoods(
            of(good),
            np.stack([off, at(2.0), *(at(factor) for factor in LOST), *short], axis=2),
            off[..., None],
            np.stack([at(factor) for factor in BOX], axis=2),
        )
