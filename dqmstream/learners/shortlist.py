"""Which of many runs come into question for a lumisection at all, said by a share of the channels.

The channels asked are those that no fault has spoilt in any block of runs, every so many, and their noise is cut early, so that
no few channels decide. Under the true run another one's density is x nats higher with probability exp(-x) at most (Markov's
inequality), whatever channels are asked: a run that is 20 nats behind is out of the question.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.modes import Look, conditions_under, free_to_move

RULED_OUT = 20.0
"""Nats behind the best run at which a run is out of the question."""

_THINNED = 4
"""One channel of so many is asked. Of 200 lumisections of 512 runs of a `year` the run that is best by all channels was 7 nats
behind at most; with half of the channels 5, at twice the time."""

_CUT = 5.0
"""Deviations at which noise is cut."""

_TOGETHER = 256
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
        self._gains = gains[:, self._channels]
        self.share = len(spoilt) / asked

    def scores(self, look: Look) -> np.ndarray:
        """Log-densities of these channels in each run, but for what all runs have in common: (n, runs)."""
        look = look.of(self._channels)
        scores = np.empty((len(look.residual), len(self._gains)))
        for start in range(0, len(self._gains), _TOGETHER):
            block = slice(start, start + _TOGETHER)
            scores[:, block] = _scores(look, self._gains[block])
        return scores


def _scores(look: Look, gains: np.ndarray) -> np.ndarray:
    usual = np.median(gains, axis=0)
    conditions = conditions_under(look, usual)
    under, apart = look.under(usual, conditions), gains - usual
    per_rate = under.per_rate
    noise = np.clip(under.residual, -_CUT, _CUT)
    slope = np.where(np.abs(under.residual) < _CUT, look.rate * conditions.pileup * per_rate, 0.0)
    surprise = (noise**2 + 2 * np.log(under.deviation)).sum(axis=1)[:, None]
    surprise = surprise - 2 * (noise * slope) @ apart.T + slope**2 @ (apart**2).T
    directions = under.leverage, under.rate * per_rate
    onto = [np.einsum("nc,nc->n", along, noise)[:, None] - (along * slope) @ apart.T for along in directions]
    pairs = {(i, j): np.einsum("nc,nc->n", directions[i], directions[j])[:, None] for i, j in ((0, 0), (0, 1), (1, 1))}
    return np.asarray(free_to_move(onto, pairs) - 0.5 * surprise)
