"""Runs of occupancy maps whose truth is known: what differs between two runs is drawn here, and written beside them.

A channel's count is Binomial(N, p), p = 1 - (1 + R * rate / k)**-k, where N is the number of events of the
lumisection, R acts like pileup, and rate is the channel's own. Measured on the two published runs (ring residuals
of 1.5 % at most): k = 4.75 and the rate of each ring, with N about 1510 and R = 1 for run 355456, N about 942 and R
about 12 for run 357479. Measured there too: channels differ by 6-10 % in a ring. Chosen: how N and R move, the
truncated lumisections, and all that differs between runs (`dqmstream.experiments.streams`).

N and R move *within* each run over the same ranges in all of them. If they differed between runs, luminosity alone
would name the run, and no classifier could be blamed for finding nothing else.

A run's bits depend on the stream, the seed, the run's index and its length, and not on how many runs are asked for.
They are the same with one version of NumPy; NumPy does not promise the same draws from another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.streams import CHOICES, NamedStream, named_stream
from dqmstream.lumisection import IETA, MAX_NUMBER, N_IETA, N_IPHI, he_depth1_mask, ieta_row, rbx_mask

K = 4.75
"""Shape of the response (measured)."""

RING_RATES = dict(zip(range(19, 30), (0.187, 0.217, 0.435, 0.565, 0.747, 1.00, 1.41, 2.14, 2.14, 3.68, 2.16), strict=True))
"""|ieta| -> median rate of the ring's channels per unit of R (measured)."""

FINGERPRINT_SIGMA = 0.08
"""Spread of the channels in a ring, in the logarithm of the rate (chosen within the measured 6-10 %)."""

EVENTS_MEDIAN, EVENTS_SIGMA, EVENTS_RANGE = 1250.0, 0.2, (600.0, 2600.0)
PILEUP_START, PILEUP_END, PILEUP_SIGMA = 7.0, 3.0, 0.06
CORRELATION = 0.9
"""Of both random processes, from one lumisection to the next."""

TRUNCATED_P, TRUNCATED_RANGE = 0.005, (0.1, 0.6)
"""Probability that a lumisection is cut short, and the fraction of its events that is then left (chosen)."""

FIRST_RUN = 355400
RUN_GAP_MEDIAN, RUN_GAP_SIGMA = 25.0, 1.0
"""Run numbers step by 1 plus a lognormal number: most runs a detector takes are not kept for its monitoring."""

READOUT_BOXES = tuple((side, n) for side in (-1, 1) for n in range(1, 19))
LIVE = he_depth1_mask()

_FINGERPRINT, _NOISY_BOXES, _RUN = range(3)  # first word of a spawn key: one per purpose, so that none shifts another


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedRun:
    """One run of n lumisections, numbered from 1.

    counts: float64 whole numbers, (n, 64, 72). events: N of each lumisection, float64 whole numbers, (n,). pileup:
    R of each lumisection, (n,); it acts like pileup, and its unit is the R of run 355456. rate: true rate of each
    channel per unit of R with all gains of this run, (64, 72), zero where there is no channel. truth: what is
    different in this run, ready for JSON (see `write`).
    """

    run: int
    counts: np.ndarray
    events: np.ndarray
    pileup: np.ndarray
    rate: np.ndarray
    truth: dict[str, Any]

    def expected(self, events: np.ndarray, pileup: np.ndarray) -> np.ndarray:
        """True mean counts of this run's detector under any conditions: (m, 64, 72) for events and pileup (m,).

        The exact likelihood of a map is Binomial(events, expected / events) in each live channel, but for noisy
        boxes.
        """
        return np.asarray(events)[:, None, None] * probability(self.rate, np.asarray(pileup)[:, None, None])


@dataclass(frozen=True, slots=True)
class _BoxLoss:
    """A readout box that has lost gain for a run."""

    side: int
    n: int
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """The detector before a run: log gain of the walk, (64, 72), and which channels are dead, bool (64, 72)."""

    log_gain: np.ndarray
    dead: np.ndarray


def probability(rate: np.ndarray, pileup: np.ndarray | float) -> np.ndarray:
    """Probability that a channel of that rate fires in an event (the measured response); the arguments broadcast."""
    return -np.expm1(-K * np.log1p(rate * pileup / K))


def nominal_rate() -> np.ndarray:
    """Median rate of each channel's ring, (64, 72), zero where depth 1 of HE has no channel."""
    rate = np.zeros((N_IETA, N_IPHI))
    for ring, value in RING_RATES.items():
        rate[[ieta_row(-ring), ieta_row(ring)]] = value
    return np.where(LIVE, rate, 0.0)


def fingerprint(seed: int) -> np.ndarray:
    """Lasting differences between channels: lognormal, median 1 in each ring, (64, 72); one for all runs of a seed."""
    log_factor = FINGERPRINT_SIGMA * _generator(seed, _FINGERPRINT).standard_normal((N_IETA, N_IPHI))
    for ring in RING_RATES:
        cells = LIVE & (np.abs(IETA) == ring)[:, None]
        log_factor[cells] -= np.median(log_factor[cells])
    return np.exp(log_factor)


def draw_counts(rate: np.ndarray, events: np.ndarray, pileup: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Binomial counts, float64 (n, 64, 72), for rate (64, 72) or (n, 64, 72) and events, pileup (n,)."""
    counts = np.zeros((len(events), N_IETA, N_IPHI))
    p = probability(rate[..., LIVE], pileup[:, None])
    counts[:, LIVE] = rng.binomial(events.astype(np.int64)[:, None], p)
    return counts


def run_numbers(seed: int, runs: int, first_run: int = FIRST_RUN) -> list[int]:
    """Numbers of the runs, ascending from first_run with irregular gaps. InputError for numbers CMS cannot give."""
    numbers = [first_run]
    for index in range(1, runs):
        gap = _run_generators(seed, index)[0].lognormal(np.log(RUN_GAP_MEDIAN), RUN_GAP_SIGMA)
        numbers.append(numbers[-1] + 1 + int(gap))
    first, last = numbers[0], numbers[-1]
    if first < 1 or last > MAX_NUMBER:
        raise InputError(f"run numbers {first}..{last} are not in 1..{MAX_NUMBER}: choose another first run")
    return numbers


def stream(
    name: str, *, seed: int, runs: int | None = None, lumisections: int = 400, first_run: int = FIRST_RUN
) -> Iterator[SimulatedRun]:
    """The runs of a named stream, drawn one at a time as they are asked for.

    runs: how many, by default the stream's own number. Raises InputError at once for a name that does not exist,
    fewer than one run or lumisection, a negative seed, and more runs than have distinct truths.
    """
    named, numbers = _checked(name, seed, runs, lumisections, first_run)
    return _draw(named, seed, numbers, lumisections)


def write(
    out: Path,
    name: str,
    seed: int,
    runs: int | None = None,
    lumisections: int = 400,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a stream in the original layout into a folder of its own, and return the paths, truth.json last.

    `Run{number}_Dataset_{name}.npy`, float64 (n, 64, 72); `Run{number}_events.npy` and `Run{number}_pileup.npy`,
    float64 (n,); `truth.json`: every number that was chosen, and for each run its gains over the fingerprint (all
    live channels in row-major order, 5 significant digits; the exact ones come from `stream` with the same seed),
    dead channels, losses of readout boxes, noisy boxes and truncated lumisections. progress is called with (runs
    written, runs in all).

    Each file appears whole or not at all, truth.json when all others are there; the same call repeats itself over what
    it left. Raises InputError, besides the reasons of `stream`, if the folder cannot be written or holds anything else.
    """
    named, numbers = _checked(name, seed, runs, lumisections, FIRST_RUN)
    layout = {number: _layout(out, number, name) for number in numbers}
    truth_file = out / "truth.json"
    paths = [*(path for three in layout.values() for path in three), truth_file]
    try:
        out.mkdir(parents=True, exist_ok=True)
        own = {path.name for path in paths} | {_unfinished(path).name for path in paths}
        strange = sorted(entry.name for entry in out.iterdir() if entry.name not in own)
        if strange:
            raise InputError(f"{out} holds other files ({strange[0]}): choose an empty or new folder")
        truth_file.unlink(missing_ok=True)
        truths = []
        for done, simulated in enumerate(_draw(named, seed, numbers, lumisections), start=1):
            arrays = (simulated.counts, simulated.events, simulated.pileup)
            for path, array in zip(layout[simulated.run], arrays, strict=True):
                with _unfinished(path).open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                _unfinished(path).replace(path)
            truths.append(simulated.truth)
            if progress is not None:
                progress(done, len(numbers))
        _unfinished(truth_file).write_text(json.dumps(_chosen(named, seed, lumisections) | {"runs": truths}) + "\n")
        _unfinished(truth_file).replace(truth_file)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror or error}; choose another folder") from error
    return paths


def _checked(name: str, seed: int, runs: int | None, lumisections: int, first_run: int) -> tuple[NamedStream, list[int]]:
    """The stream and its run numbers, or InputError."""
    named = named_stream(name)
    runs = named.runs if runs is None else runs
    for what, value, least in (("runs", runs, 1), ("lumisections", lumisections, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{what} must be {least} or more, not {value}")
    if named.noisy_boxes and runs > (most := len(_box_sets(named.noisy_boxes))):
        raise InputError(f"the stream {name} has {most} different runs at most, not {runs}: ask for fewer")
    return named, run_numbers(seed, runs, first_run)


def _draw(named: NamedStream, seed: int, numbers: list[int], lumisections: int) -> Iterator[SimulatedRun]:
    base = nominal_rate() * fingerprint(seed)
    state = _State(log_gain=np.zeros((N_IETA, N_IPHI)), dead=np.zeros((N_IETA, N_IPHI), dtype=bool))
    for index, number in enumerate(numbers):
        _, changes, conditions, hits = _run_generators(seed, index)
        losses: list[_BoxLoss] = []
        if index > 0:
            state = _changed(state, named, changes)
            losses = _box_losses(named, changes)
        gain = np.where(state.dead, 0.0, np.exp(state.log_gain))
        for loss in losses:
            gain[rbx_mask(loss.side, loss.n)] *= loss.factor
        boxes = _noisy_boxes(named, seed, index)
        events, pileup, truncated = _conditions(lumisections, conditions)
        rate = base * gain
        moving = _common_mode(rate, boxes, named.noise_sigma, lumisections, hits) if boxes else rate
        yield SimulatedRun(
            run=number,
            counts=draw_counts(moving, events, pileup, hits),
            events=events,
            pileup=pileup,
            rate=rate,
            truth={
                "run": number,
                "gain": _compact(gain),
                "dead": [{"ieta": int(IETA[row]), "iphi": int(column) + 1} for row, column in np.argwhere(state.dead)],
                "rbx": [asdict(loss) for loss in losses],
                "common_mode": [{"side": side, "n": n, "sigma": named.noise_sigma} for side, n in boxes],
                "truncated": truncated,
            },
        )


def _changed(state: _State, named: NamedStream, rng: np.random.Generator) -> _State:
    """The detector one run later. Every number is drawn whether it is used or not, so that streams stay comparable."""
    step = rng.standard_normal((N_IETA, N_IPHI))
    dies, repaired, which_dies, which_repaired = rng.random(4)
    dead = state.dead.copy()
    if repaired < named.repair_p and state.dead.any():
        dead[tuple(_pick(np.argwhere(state.dead), which_repaired))] = False
    if dies < named.death_p:
        dead[tuple(_pick(np.argwhere(LIVE & ~state.dead), which_dies))] = True
    return _State(log_gain=state.log_gain + named.drift_sigma * step, dead=dead)


def _box_losses(named: NamedStream, rng: np.random.Generator) -> list[_BoxLoss]:
    lost, which, where = rng.random(3)
    if lost >= named.rbx_p:
        return []
    side, n = READOUT_BOXES[int(which * len(READOUT_BOXES))]
    low, high = named.rbx_factor
    return [_BoxLoss(side, n, low + (high - low) * float(where))]


def _pick(rows: np.ndarray, where: float) -> np.ndarray:
    return rows[int(where * len(rows))]


def _box_sets(size: int) -> list[tuple[tuple[int, int], ...]]:
    return list(combinations(READOUT_BOXES, size))


def _noisy_boxes(named: NamedStream, seed: int, index: int) -> tuple[tuple[int, int], ...]:
    """Noisy boxes of a run: one shuffle of all sets serves the whole stream, so no set comes twice."""
    if not named.noisy_boxes:
        return ()
    sets = _box_sets(named.noisy_boxes)
    return sets[_generator(seed, _NOISY_BOXES).permutation(len(sets))[index]]


def _common_mode(
    rate: np.ndarray, boxes: tuple[tuple[int, int], ...], sigma: float, lumisections: int, rng: np.random.Generator
) -> np.ndarray:
    """The rate in each lumisection, (n, 64, 72): each box moves as a whole, its factor has mean 1."""
    moving = np.broadcast_to(rate, (lumisections, *rate.shape)).copy()
    for side, n in boxes:
        moving[:, rbx_mask(side, n)] *= 1 + sigma * rng.standard_normal(lumisections)[:, None]
    return moving


def _conditions(lumisections: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[dict[str, object]]]:
    """Events and pileup of each lumisection, (n,) each, and which lumisections are truncated to which fraction."""
    events = np.round(np.clip(EVENTS_MEDIAN * np.exp(EVENTS_SIGMA * _ar1(lumisections, rng)), *EVENTS_RANGE))
    falling = np.linspace(PILEUP_START, PILEUP_END, lumisections)
    pileup = falling * np.exp(PILEUP_SIGMA * _ar1(lumisections, rng))
    short = rng.random(lumisections) < TRUNCATED_P
    fraction = rng.uniform(*TRUNCATED_RANGE, lumisections)
    events[short] = np.round(events[short] * fraction[short])
    truncated: list[dict[str, object]] = [
        {"lumisection": int(row) + 1, "fraction": _digits(fraction[row])} for row in np.flatnonzero(short)
    ]
    return events, pileup, truncated


def _ar1(length: int, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers of unit variance, each correlated with the one before, (length,); stationary from the first."""
    values = rng.standard_normal(length)
    innovation = np.sqrt(1 - CORRELATION**2)
    for i in range(1, length):
        values[i] = CORRELATION * values[i - 1] + innovation * values[i]
    return values


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _run_generators(seed: int, index: int) -> list[np.random.Generator]:
    """Generators of a run, from its own child of the seed: number, changes, conditions, counts."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed, spawn_key=(_RUN, index)).spawn(4)]


def _layout(out: Path, number: int, name: str) -> tuple[Path, Path, Path]:
    return (
        out / f"Run{number}_Dataset_{name}.npy",
        out / f"Run{number}_events.npy",
        out / f"Run{number}_pileup.npy",
    )


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def _compact(cells: np.ndarray) -> list[float]:
    """Values of the live channels in row-major order, 5 significant digits."""
    return [_digits(value) for value in cells[LIVE]]


def _chosen(named: NamedStream, seed: int, lumisections: int) -> dict[str, object]:
    """The head of truth.json: all that the runs have in common."""
    return {
        "stream": asdict(named),
        "seed": seed,
        "lumisections": lumisections,
        "numpy": np.__version__,
        "model": "counts ~ Binomial(events, p), p = 1 - (1 + pileup * rate / k)**-k, rate = ring * fingerprint * gain",
        "k": K,
        "ring_rates": RING_RATES,
        "events": {"median": EVENTS_MEDIAN, "log_sigma": EVENTS_SIGMA, "range": EVENTS_RANGE},
        "pileup": {"start": PILEUP_START, "end": PILEUP_END, "log_sigma": PILEUP_SIGMA},
        "correlation": CORRELATION,
        "truncated": {"probability": TRUNCATED_P, "fraction": TRUNCATED_RANGE},
        "fingerprint_sigma": FINGERPRINT_SIGMA,
        "choices": CHOICES,
        "order": "gain and fingerprint list the live channels by rising ieta, then rising iphi",
        "fingerprint": _compact(fingerprint(seed)),
    }
