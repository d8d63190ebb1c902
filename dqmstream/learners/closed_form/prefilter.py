"""Which of many runs come into question for a lumisection at all, said by a share of the channels.

The channels asked are those that no fault has spoilt in any block of runs, every so many, and their noise is cut early, so that
no few channels decide. Under the true run another one's density is x nats higher with probability exp(-x) at most (Markov's
inequality), whatever channels are asked: a run that is 20 nats behind is out of the question.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.conditions import Conditions, Look, conditions_under, free_to_move, products_of

RULED_OUT = 20.0
"""Nats behind the best run at which a run is out of the question."""

_THINNED = 4
"""One channel of so many is asked. Of 200 lumisections of 512 runs of a `year` the run that is best by all channels was 7 nats
behind at most; with half of the channels 5, at twice the time."""

_CUT = 5.0
"""Deviations at which noise is cut."""

TOGETHER = 256
"""Runs whose usual gains settle the conditions together, and at which the tangent is taken."""


class Shortlist:
    """Some channels of all runs.

    share: of how many channels each of them speaks.
    """

    def __init__(self, gains: np.ndarray, spoilt: np.ndarray) -> None:
        """gains: (runs, live). spoilt: in how many blocks of runs a channel is faulty, (live,)."""
        asked = max(1, len(spoilt) // _THINNED)
        sound = np.argsort(spoilt, kind="stable")[: max(asked, np.count_nonzero(spoilt == 0))]
        self._channels = np.sort(sound[np.linspace(0, len(sound) - 1, asked).astype(int)])
        gains = gains[:, self._channels].astype(np.float32)
        self._runs = len(gains)
        self._blocks = []
        """Columns of each block of runs, its usual gains, (channels,), and how far its runs are from them, (runs, channels)."""
        for start in range(0, len(gains), TOGETHER):
            block = slice(start, start + TOGETHER)
            usual = np.median(gains[block], axis=0)
            self._blocks.append((block, usual, gains[block] - usual))
        self.share = len(spoilt) / asked

    def scores(self, look: Look) -> tuple[np.ndarray, list[Conditions]]:
        """Log-densities of these channels in each run, but for what all runs have in common: (n, runs).

        And the conditions that they show, under the usual gains of each `TOGETHER` runs.
        """
        look = look.of(self._channels)
        scores = np.empty((len(look.residual), self._runs))
        conditions = [conditions_under(look, self._blocks[0][1])]
        for block, usual, apart in self._blocks:
            if block.start:
                # Runs have drifted little since the last block: a step follows them.
                conditions.append(conditions_under(look, usual, conditions[-1], steps=1))
            scores[:, block] = _scores(look, usual, apart, conditions[-1])
        return scores, conditions


def _scores(look: Look, usual: np.ndarray, apart: np.ndarray, conditions: Conditions) -> np.ndarray:
    under = look.under(usual, conditions)
    # In deviations of what was seen, the same for all runs: those of what is expected would set blocks apart at their edges.
    wider = under.deviation / look.deviation
    residual, per_rate = under.residual * wider, under.per_rate * wider
    noise = np.clip(residual, -_CUT, _CUT)
    slope = np.where(np.abs(residual) < _CUT, look.rate * conditions.pileup * per_rate, 0.0)
    surprise = np.einsum("nc,nc->n", noise, noise)[:, None] - 2 * (noise * slope) @ apart.T + slope**2 @ (apart**2).T
    directions = under.leverage * wider, under.rate * per_rate
    onto = [np.einsum("nc,nc->n", along, noise)[:, None] - (along * slope) @ apart.T for along in directions]
    return np.asarray(free_to_move(onto, products_of(directions)) - 0.5 * surprise)
