"""Statistical memory: of each run its gains and what its readout boxes do together, and a classifier that asks only these.

The counts x of a lumisection of run k are, with N events, each seen with efficiency A, and R pileup,

    x_c = N A_c P(R λ_c (1 + d_kc) (1 + u_b(c))) + s_c noise,    u_b ~ Normal(0, σ_kb²)

P: law of the response (`learners.response.response`). d_kc: gain of a channel, a change of its rate. u_b: common mode of its
readout
box, another number in every lumisection, of which a run has its own spread σ_kb. s: deviation of a count that is expected so. N
and R are what the lumisection shows under the gains of the run that is asked, and free around it. The score of a run is the
logarithm of that density, in closed form (`learners.closed_form.density`): trained in one pass, forgetting nothing, 1 kB a run.

Gains are fitted by that law and smoothed over the runs (`learners.response.gains`): without it, 900 gains known to half a per
cent would
drown what boxes say.

Accuracy on 20 runs of 400, seeds 0 to 2: .898, .932, .908 on `small`, .563, .558, .533 on `structured`; after 60 runs of a
`year` of 200 .911, .859, .921, where gains that were a tangent's, each run's drawn to the mean of all, had .845, .810, .877.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.closed_form.density import Runs, cut, log_densities, mode_log_likelihood
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.gain_codec import pack, unpack
from dqmstream.learners.memory.merging import Nearest, in_one_row
from dqmstream.learners.response.conditions import Look, Modes, conditions_under
from dqmstream.learners.response.gains import course, fitted
from dqmstream.learners.response.reference import CLIP, Reference
from dqmstream.learners.response.response import of_each, silence
from dqmstream.learners.saved_state import STAMP, check_stamp, stamp
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

SIGMAS = np.concatenate([[0.0], np.geomspace(0.003, 0.2, 40)])
"""Spreads of a common mode that are tried: below the first no lumisection shows it."""

EVIDENCE = 8.0
"""A common mode is taken for one where it raises the log-likelihood of the run by more. On `null`, 10 streams of 20 runs, it
took 3 of 7200 boxes for such, none with a spread above .009."""

_CHUNK = 1024
_SETTLINGS = 2
"""Rounds in which the conditions of a run's lumisections and its gains are taken from each other."""

_ROWS = {"gains": np.int8, "sigmas": np.uint8, "scale": np.float16, "weight": np.float32}
"""Of each row: gains, packed; spreads, as places in `SIGMAS`; errors of the gains of each ring, over those of the first run;
runs that share it."""

_ARRAYS = (*_ROWS, "row_of_class", "errors", "lumisections")


class Statistical(Incremental):
    """Learns a run by one row of numbers. Where the budget is full, the two runs that are most alike share a row."""

    name = "statistical"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: of all rows, for the whole stream."""
        super().__init__(geometry, seed, memory_bytes=memory_bytes)
        self._budget_bytes = memory_bytes
        self._modes: Modes | None = None
        self._asked: Runs | None = None
        self._nearest: Nearest | None = None
        self._rows: dict[str, np.ndarray] = {}
        self._row_of_class = np.zeros(0, dtype=np.int32)
        self._errors = np.zeros(0, dtype=np.float32)
        self._lumisections = 0

    @property
    def classes(self) -> int:
        return len(self._row_of_class)

    @property
    def modes(self) -> Modes:
        """The common modes of the reference's channels."""
        if self._modes is None:
            self._modes = Modes(self.reference)
        return self._modes

    @property
    def gains(self) -> np.ndarray:
        """d of each class and live channel as they were measured, relative to the reference: float64, (classes, live)."""
        return self._gains_of(self._row_of_class)

    @property
    def gain_errors(self) -> np.ndarray:
        """Statistical errors of `gains`: float64, (classes, live)."""
        return self._row_errors()[self._row_of_class]

    @property
    def sigmas(self) -> np.ndarray:
        """Spread of each box's common mode in each class, as a share of its rate, 0 where none was found: (classes, B)."""
        return SIGMAS[self._rows["sigmas"][self._row_of_class]]

    def _gains_of(self, rows: np.ndarray | list[int] | slice) -> np.ndarray:
        return unpack(self._rows["gains"][rows], self._unit)

    @property
    def _unit(self) -> np.ndarray:
        """By how much one lumisection alone misjudges a gain, (live,)."""
        return np.asarray(self._errors * np.sqrt(np.float64(self._lumisections)))

    def known(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is asked: gains and their errors, (rows, live); variances of the boxes' modes, (rows, B); row of a class."""
        return self._runs.gains, self._row_errors(), self._runs.variances, self._row_of_class

    def _refer_to(self, reference: Reference) -> None:
        if self._reference is not None and reference is not self._reference:
            # Gains and their errors are kept in units of the first run's errors.
            self._errors = (self._errors * self._reference.rescaled(reference)).astype(np.float32)
            self._modes = self._asked = self._nearest = None
        super()._refer_to(reference)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        look = self.modes.look(train.counts[:, self.reference.live].astype(np.float64))
        gain = self._runs.gains[self._row_of_class[-1]] if self.classes else np.zeros(look.residual.shape[1])
        for _ in range(_SETTLINGS):
            look = look.under(0.0, conditions_under(look, gain))
            gain, error = fitted(look, gain)
        if experience == 0:
            self._errors, self._lumisections = error.astype(np.float32), len(train)
        sigmas = self._common_modes(look.under(gain))
        row: dict[str, Any] = {
            "gains": pack(gain, self._unit),
            "sigmas": sigmas,
            "scale": of_each(error / self._errors, self.modes.ring).astype(np.float16),
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
        self._asked = None
        log = LearnLog(samples=len(train), flops=self.reference.response_flops(len(train)))
        # A channel and lumisection: in each round 4 times 25 to settle conditions and 6 times 20 for gains; 25 for modes.
        log.flops += len(train) * ((220.0 * _SETTLINGS + 25.0) * gain.size + 5.0 * len(SIGMAS) * len(self.modes.boxes))
        log.notes |= {"common_modes": float(np.count_nonzero(sigmas)), "rows": float(len(self._rows["scale"]))}
        return log

    def _common_modes(self, look: Look) -> np.ndarray:
        """Place in `SIGMAS` of each box's spread, uint8 (B,): the most likely, 0 where the evidence is thin.

        look: under the gains of the run.
        """
        noise, leverage = cut(look), look.rate_leverage
        information, projection = self.modes.by_box(leverage**2), self.modes.by_box(leverage * noise)
        gain = np.stack([mode_log_likelihood(sigma**2, information, projection).sum(axis=0) for sigma in SIGMAS])
        return np.where(gain.max(axis=0) > EVIDENCE, gain.argmax(axis=0), 0).astype(np.uint8)

    def _scores(self, maps: Maps) -> np.ndarray:
        return self.scores_of_live(maps.counts[:, self.reference.live])

    def scores_of_live(self, counts: np.ndarray) -> np.ndarray:
        """The same from the counts of the live channels, (n, live)."""
        scores = np.empty((len(counts), self.classes))
        for start in range(0, len(counts), _CHUNK):
            look = self.modes.look(counts[start : start + _CHUNK].astype(np.float64))
            scores[start : start + _CHUNK] = self.scores_of_look(look)
        return scores

    def scores_of_look(self, look: Look) -> np.ndarray:
        """The same of lumisections that were looked at already (`modes`)."""
        return log_densities(look, self.modes, self._runs)[:, self._row_of_class]

    def draw(self, experiences: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What runs that were learnt would have counted under the conditions of other lumisections.

        experiences: the run of each draw, (n,). counts: of the live channels, (n, live), of any run; only their conditions are
        used. Returns whole counts float32, (n, live): gains as they are asked, a common mode of each box, and the noise of a
        count of events, which is all that a row knows of its run.
        """
        gains, drawn = self._runs.gains, np.empty(counts.shape, dtype=np.float32)
        for start in range(0, len(counts), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            row = self._row_of_class[experiences[chunk]]
            look = self.modes.look(counts[chunk].astype(np.float64))
            mode = SIGMAS[self._rows["sigmas"][row]] * rng.standard_normal((len(row), len(self.modes.boxes)))
            rate = look.rate * (1 + gains[row])
            for box, cells in enumerate(self.modes.cells):
                rate[:, cells] *= np.maximum(1 + mode[:, box, None], 0.0)
            quiet = silence(rate)
            # N events that fire with probability p count N p, with variance N p (1 - p): where p changes both do.
            share = np.sqrt((1 - quiet) * quiet / (look.quiet * (1 - look.quiet)))
            noise = share * rng.standard_normal(rate.shape)
            drawn[chunk] = np.maximum(np.rint(look.deviation * (look.full * (1 - quiet) + noise)), 0)
        return drawn

    @property
    def _runs(self) -> Runs:
        """What the rows say, with gains smoothed over the runs; worked out once between two runs."""
        if self._asked is None:
            gains = course(self._gains_of(slice(None)), self._row_errors(), self.modes.ring)
            self._asked = Runs(gains, SIGMAS[self._rows["sigmas"]] ** 2)
        return self._asked

    def _row_errors(self) -> np.ndarray:
        return np.asarray(self._rows["scale"].astype(np.float64)[:, self.modes.ring] * self._errors)

    def _merge(self) -> None:
        """Have the two rows that one lumisection tells apart worst become one, their mean; both classes score the same then."""
        if len(self._rows["scale"]) == 1:
            raise InputError(f"a memory of {self._budget_bytes} bytes cannot hold what is kept of one run")
        if self._nearest is None:
            self._nearest = Nearest(self._apart, len(self._rows["scale"]))
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
        self._row_of_class = in_one_row(self._row_of_class, first, second)
        self._nearest.merged(first, second)

    def _apart(self, row: int) -> np.ndarray:
        """How well one lumisection tells a row from each of the rows, (rows,)."""
        gains, variance = self._gains_of(slice(None)), SIGMAS[self._rows["sigmas"]] ** 2
        in_one = 1 / self._unit**2
        width = 1 + variance * self.modes.by_box(in_one)
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
        self._modes = self._asked = self._nearest = None
        self._rows = {} if missing else {name: np.array(state[name]) for name in _ROWS}
        self._row_of_class = np.zeros(0, dtype=np.int32) if missing else np.array(state["row_of_class"])
        self._errors = np.zeros(0, dtype=np.float32) if missing else np.array(state["errors"])
        self._lumisections = 0 if missing else int(state["lumisections"])

    def memory_bytes(self) -> int:
        return sum(array.nbytes for array in self._rows.values()) + self._row_of_class.nbytes

    def state_bytes(self) -> int:
        return self._reference_bytes() + self._errors.nbytes
