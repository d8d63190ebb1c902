"""What the known runs show of the law of the response being off, used to correct residuals and pulls.

Slopes with pileup (`monitoring.slopes`) and larger scatter (`monitoring.spreads`). Both are 0 and 1 where the law holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.evidence import KnownRows, Residuals, pulls
from dqmstream.learners.monitoring.slopes import Slopes
from dqmstream.learners.monitoring.spreads import STEP, Spreads
from dqmstream.learners.monitoring.stretches import WINDOW, window_sums
from dqmstream.learners.saved_state import prefixed, within

ResidualsOf = Callable[[KnownRows, Maps], Residuals]
"""Residuals of lumisections of the run that was just learnt, under its own gains."""


class Corrections:
    """Learns from each run after its gains are known, and completes `KnownRows`."""

    def __init__(self, ring: np.ndarray) -> None:
        """ring: number of each channel's ring, (live,)."""
        self._ring = ring
        self.slopes, self.spreads = Slopes(len(ring)), Spreads(int(ring.max()) + 1)

    def learn(self, known: KnownRows, residuals_of: ResidualsOf, train: Maps, stretches: Sequence[Maps]) -> None:
        """Learn from the run of the last class. known: of all runs. stretches: held-out lumisections."""
        experience = len(known.row) - 1
        row = known.row[experience]
        plain = residuals_of(replace(known, slope=np.zeros(len(self._ring))), train)
        self.slopes.add_run(plain.log_rate, plain.noise, plain.leverage)
        known = self.complete(known)
        known = replace(known, spread=np.ones_like(known.spread))

        def pulls_of(residuals: Residuals, total: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            squares, onto, by_gain = residuals.sums(total)
            return pulls(known, np.full(len(squares), row), squares, onto, by_gain)

        residuals, steps = residuals_of(known, train), np.arange(0, len(train) - STEP + 1, STEP)
        short = pulls_of(residuals, lambda values: np.add.reduceat(values[: len(steps) * STEP], steps, axis=0))
        long = pulls_of(residuals, lambda values: window_sums(values, np.array([len(train)])))
        self.spreads.add_run(experience, short, long[STEP - 1 :])
        for maps in stretches:
            if len(maps) >= STEP:
                last = residuals_of(known, maps.take(np.arange(max(0, len(maps) - WINDOW), len(maps))))
                self.spreads.add_block(pulls_of(last, lambda values: values.sum(axis=0, keepdims=True))[0], self._ring)

    def complete(self, known: KnownRows) -> KnownRows:
        """The known runs with slopes and spreads."""
        centre = np.full(len(known.gains), np.nan)
        centre[known.row[: len(self.slopes.centre)]] = self.slopes.centre
        spread = self.spreads.of_rows(known.row, self._ring)
        return replace(known, spread=spread, slope=self.slopes.of_channels(self._ring), centre=centre)

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return prefixed("slopes", self.slopes.state()) | prefixed("spreads", self.spreads.state())

    def restore(self, state: Mapping[str, np.ndarray], classes: int) -> None:
        """Return to a state that `state` gave after this number of classes; one of an older version corrects nothing.

        Raises StateError if it is damaged.
        """
        self.slopes.restore(within(state, "slopes"), classes)
        self.spreads.restore(within(state, "spreads"))
