"""A fast prefilter for many known runs: it drops runs that are more than 20 nats behind the best on a quarter of the channels.

If run k is the true one, the log-density of another run is x nats higher with probability exp(-x) at most (Markov's
inequality), whatever channels are used; so a run that is 20 nats behind is dropped. Channels that were faulty in some run are
avoided, and residuals are cut at ±5 deviations, so that no few channels decide.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.closed_form.marginal import inner_products, integrated_out
from dqmstream.learners.response.conditions import fit_conditions
from dqmstream.learners.response.observation import ConditionFactors, Observation

RULED_OUT = 20.0
"""Nats behind the best run from which a run is dropped."""

_THINNED = 4
"""One channel of 4 is used (docs/decisions/2026-11-29-closed-forms.md)."""

_CUT = 5.0
"""Residuals are cut at ± this many deviations."""

PREFILTER_BLOCK = 256
"""Runs that share one fit of the conditions and one linear approximation."""


class Prefilter:
    """Log-densities of lumisections in many runs, by a share of the channels.

    share: number of channels that each used one stands for.
    """

    def __init__(self, gains: np.ndarray, faulty: np.ndarray) -> None:
        """gains: (runs, live). faulty: in how many blocks of runs each channel is faulty, (live,)."""
        used = max(1, len(faulty) // _THINNED)
        sound = np.argsort(faulty, kind="stable")[: max(used, np.count_nonzero(faulty == 0))]
        self._channels = np.sort(sound[np.linspace(0, len(sound) - 1, used).astype(int)])
        gains = gains[:, self._channels].astype(np.float32)
        self._runs = len(gains)
        self._blocks = []
        """For each block of runs: columns, usual gains (channels,), and distances from them (runs, channels)."""
        for start in range(0, len(gains), PREFILTER_BLOCK):
            block = slice(start, start + PREFILTER_BLOCK)
            usual = np.median(gains[block], axis=0)
            self._blocks.append((block, usual, gains[block] - usual))
        self.share = len(faulty) / used

    def scores(self, observed: Observation) -> tuple[np.ndarray, list[ConditionFactors]]:
        """Log-densities by the used channels, up to a constant common to all runs, (n, runs); and the conditions of each block.

        The conditions are those fitted with the block's usual gains.
        """
        observed = observed.of(self._channels)
        scores = np.empty((len(observed.residual), self._runs))
        conditions = [fit_conditions(observed, self._blocks[0][1])]
        for block, usual, apart in self._blocks:
            if block.start:
                # Runs drift little from block to block: one step from the last conditions is enough.
                conditions.append(fit_conditions(observed, usual, conditions[-1], steps=1))
            scores[:, block] = _scores(observed, usual, apart, conditions[-1])
        return scores, conditions


def _scores(observed: Observation, usual: np.ndarray, apart: np.ndarray, conditions: ConditionFactors) -> np.ndarray:
    under = observed.under(usual, conditions)
    # In the deviations of the observation, common to all runs; those under usual gains differ between blocks.
    wider = under.deviation / observed.deviation
    residual, per_rate = under.residual * wider, under.per_rate * wider
    noise = np.clip(residual, -_CUT, _CUT)
    slope = np.where(np.abs(residual) < _CUT, observed.rate * conditions.pileup * per_rate, 0.0)
    surprise = np.einsum("nc,nc->n", noise, noise)[:, None] - 2 * (noise * slope) @ apart.T + slope**2 @ (apart**2).T
    directions = under.leverage * wider, under.rate * per_rate
    onto = [np.einsum("nc,nc->n", along, noise)[:, None] - (along * slope) @ apart.T for along in directions]
    return np.asarray(integrated_out(onto, inner_products(directions)) - 0.5 * surprise)
