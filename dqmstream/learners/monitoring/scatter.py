"""How much more counts scatter in the known runs than the law of the response says.

Where the law is off, pulls of a known run are larger than 1, and the evidence for a new run grows without one. Two factors on
the variance of a pull correct it:

* one for each ring, from held-out lumisections of all runs, followed over time (an empirical null: Efron, J. Am. Stat. Assoc.
  99 (2004) 96), and
* one for each channel that stands out in a run, such as one that flickers or is in a box that trips, from the train part.

Within the law both are 1. A new run stays visible: its own channels are not among those that scatter in the known run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.closed_form.density import KnownRuns, clipped, log_densities
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.evidence import ODD, KnownRows, Residuals, pulls
from dqmstream.learners.monitoring.stretches import WINDOW, window_sums
from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.observation import Observation
from dqmstream.learners.response.rings import MEDIAN_OF_SQUARE, ring_medians

STEP = 10
"""Lumisections of a window within which the scatter of a channel is measured."""

LEAST_WINDOWS = 5
"""Windows without which no channel stands out."""

LARGEST = 1e4
"""Largest factor of a channel."""

FADING = 0.9
"""Weight of a block relative to the next one, in the factors of the rings."""

PRIOR = 1.0
"""Prior blocks that follow the law."""

_ARRAYS = ("rings", "blocks", "run", "channel", "factor")

ResidualsOf = Callable[[KnownRows, Maps], Residuals]
"""Residuals of lumisections of the run that was just learnt, under its own gains."""


class Scatter:
    """Factors on the variances of pulls, learnt from each run after its gains are known.

    rings: sum of the factors of the rings over blocks, with their weights, (rings,). blocks: sum of the weights. run, channel,
    factor: experience, position and factor of each channel that stands out in a run, (k,), ascending by run.
    """

    def __init__(self, ring: np.ndarray) -> None:
        """ring: number of each channel's ring, (live,)."""
        self._ring = ring
        self._runs: KnownRuns | None = None
        self.rings, self.blocks = np.zeros(int(ring.max()) + 1), 0.0
        self.run, self.channel = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
        self.factor = np.zeros(0, dtype=np.float32)

    def learn(self, known: KnownRows, residuals_of: ResidualsOf, train: Maps, stretches: Sequence[Maps]) -> None:
        """Learn from the run of the last class. known: of all runs. stretches: its held-out lumisections."""
        row = known.row[-1]
        known = replace(known, spread=np.ones_like(known.spread))

        def pulls_of(residuals: Residuals, total: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            squares, onto, by_gain = residuals.sums(total)
            return pulls(known, np.full(len(squares), row), squares, onto, by_gain)

        windows = np.arange(0, len(train) - STEP + 1, STEP)
        if len(windows) >= LEAST_WINDOWS:
            residuals = residuals_of(known, train)
            short = pulls_of(residuals, lambda values: np.add.reduceat(values[: len(windows) * STEP], windows, axis=0))
            long = pulls_of(residuals, lambda values: window_sums(values, np.array([len(train)])))
            self._add_run(len(known.row) - 1, short, long[STEP - 1 :])
        for maps in stretches:
            if len(maps) >= STEP:
                last = residuals_of(known, maps.take(np.arange(max(0, len(maps) - WINDOW), len(maps))))
                pull = pulls_of(last, lambda values: values.sum(axis=0, keepdims=True))[0]
                self.rings = FADING * self.rings + ring_medians(pull**2, self._ring) / MEDIAN_OF_SQUARE
                self.blocks = FADING * self.blocks + 1

    def _add_run(self, experience: int, short: np.ndarray, long: np.ndarray) -> None:
        """Add the channels that stand out in a run. short, long: pulls of windows of 10 and of up to 30, (windows, live)."""
        of_short = (short**2).mean(axis=0)
        odd = np.flatnonzero(of_short > ODD)
        factor = np.clip(np.maximum(of_short[odd], (long[:, odd] ** 2).mean(axis=0)), ODD, LARGEST)
        self.run = np.concatenate([self.run, np.full(len(odd), experience, dtype=np.int32)])
        self.channel = np.concatenate([self.channel, odd.astype(np.int32)])
        self.factor = np.concatenate([self.factor, factor.astype(np.float32)])

    @property
    def of_rings(self) -> np.ndarray:
        """Factor of each ring, 1 or more, (rings,)."""
        return np.maximum((self.rings + PRIOR) / (self.blocks + PRIOR), 1.0)

    @property
    def any_odd(self) -> bool:
        """Whether a channel stands out in any run."""
        return len(self.run) > 0

    def spread(self, row: np.ndarray) -> np.ndarray:
        """Factor of each channel in each row of known runs, float32, (rows, live). row: of each class, (classes,)."""
        found = np.ones((int(row.max()) + 1, len(self._ring)), dtype=np.float32)
        np.maximum.at(found, (row[self.run], self.channel), self.factor)
        return np.asarray(found * self.of_rings[self._ring].astype(np.float32))

    def log_densities(self, observed: Observation, boxes: ReadoutBoxes, known: KnownRows) -> np.ndarray:
        """Log-density of lumisections in each class, as of the statistical memory: (n, classes).

        A channel that stands out in a run has its own variance s there, which changes the log-density by
        (r² (1 - 1/s) - log s) / 2, with its residual r. The common modes of boxes with such channels are not used, since these
        have moved them.
        """
        if self._runs is None or self._runs.gains is not known.gains:
            odd = boxes.sums(known.spread >= ODD) > 0
            self._runs = KnownRuns(known.gains, np.where(odd, 0.0, known.variances))
        found = log_densities(observed, boxes, self._runs)[:, known.row]
        gains = known.gains[known.row[self.run], self.channel]
        square = clipped(observed.of(self.channel).under(gains)) ** 2
        runs, first = np.unique(self.run, return_index=True)
        change = 0.5 * (square * (1 - 1 / self.factor) - np.log(self.factor))
        found[:, runs] += np.add.reduceat(change, first, axis=1)
        return found

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {name: np.array(getattr(self, name)) for name in _ARRAYS}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave; one of an older version holds nothing. Raises StateError if it is damaged."""
        if not state:
            return
        if missing := [name for name in _ARRAYS if name not in state]:
            raise StateError(f"the state of the scatter lacks {', '.join(missing)}; it is damaged or of another version")
        self.rings, self.blocks = np.array(state["rings"]), float(state["blocks"])
        self.run, self.channel, self.factor = (np.array(state[name]) for name in ("run", "channel", "factor"))
