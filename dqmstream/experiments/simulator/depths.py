"""All seven depths of HCAL around a simulated run of HE depth 1, which keeps its bits.

Geometry: HB |ieta| 1-16 in depths 1-4 (16: 1-3), HE 16-29 in depths 1-7 as built in 2018, HF 30-32 in depths 1-4 (the maps end
at 32). HO is left out, since it has maps of its own. Cells of 10 degrees are at odd iphi; iphi 72 is there, which the published
maps of depth 1 lack. Measured are the rates of HE depth 1 alone. All others are chosen so that rings and depths differ as they
do in occupancy maps: HB is dim, HE falls by a quarter a depth, HF is bright.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.simulator.detector import FINGERPRINT_SIGMA, LIVE, RING_RATES, probability
from dqmstream.experiments.simulator.draws import Purpose, generator, walk
from dqmstream.experiments.simulator.faults import Fault
from dqmstream.experiments.simulator.run import SimulatedRun
from dqmstream.experiments.simulator.streams import NamedStream
from dqmstream.lumisection import IETA, IPHI, N_IETA, N_IPHI

DEPTHS = 7
HE_DEPTHS = {16: (4,), 17: (2, 3), 18: (2, 3, 4, 5), 29: (1, 2, 3), **dict.fromkeys(range(19, 26), (1, 2, 3, 4, 5, 6)),
             **dict.fromkeys((26, 27, 28), (1, 2, 3, 4, 5, 6, 7))}  # fmt: skip
"""|ieta| -> depths of HE."""

OUTER_HE_RATES = {16: 0.10, 17: 0.13, 18: 0.16}
"""|ieta| -> rate per unit of R in depth 1 of HE, if it had that depth (chosen)."""

HE_FALL, HB_RATE, HB_RISE, HF_RATE = 0.75, 0.06, 0.004, 1.2
"""Ratio of the rates of neighbouring depths of HE; rate of HB at ieta 0 and its rise per |ieta|; rate of HF in depth 1, which
falls as 1 / depth (chosen)."""

_CHANNEL_KINDS = ("dead", "degraded", "hot")


@lru_cache(maxsize=1)
def nominal_rates() -> np.ndarray:
    """Median rate of each channel per unit of R, (7, 64, 72), zero where HCAL has no channel. Read-only."""
    ring, wide = np.abs(IETA), IPHI % 2 == 1
    out = np.zeros((DEPTHS, N_IETA, N_IPHI))
    for number, depths in HE_DEPTHS.items():
        rate = (RING_RATES | OUTER_HE_RATES)[number]
        columns = wide if number >= 21 else np.ones(N_IPHI, dtype=bool)
        for depth in depths:
            out[depth - 1][np.ix_(ring == number, columns)] = rate * HE_FALL ** (depth - 1)
    for number in range(1, 17):
        for depth in (1, 2, 3, 4) if number < 16 else (1, 2, 3):
            out[depth - 1, ring == number] = HB_RATE + HB_RISE * number
    for depth in (1, 2, 3, 4):
        out[depth - 1][np.ix_(ring >= 30, wide)] = HF_RATE / depth
    out.setflags(write=False)
    return out


@lru_cache(maxsize=1)
def other_channels() -> np.ndarray:
    """The channels beside those of the published maps of HE depth 1: bool, (7, 64, 72). Read-only."""
    other = nominal_rates() > 0
    other[0] &= ~LIVE
    other.setflags(write=False)
    return other


def in_he() -> np.ndarray:
    """The channels of HE: bool, (7, 64, 72)."""
    he = nominal_rates() > 0
    ring = np.abs(IETA)
    he[:, (ring < 16) | (ring > 29)] = False
    he[:3, ring == 16] = False
    return he


@dataclass(frozen=True, slots=True, eq=False)
class AllDepthsRun:
    """A run of all depths. he: its HE depth 1 as a `SimulatedRun`, with the same counts.

    counts: uint16, (n, 7, 64, 72). rate: per unit of pileup, (7, 64, 72). truth: that of `he`, with gains of all channels (by
    rising depth, ieta, iphi) and channels of faults as [ieta, iphi, depth].
    """

    he: SimulatedRun
    counts: np.ndarray
    rate: np.ndarray
    truth: dict[str, Any]

    @property
    def run(self) -> int:
        return self.he.run

    @property
    def events(self) -> np.ndarray:
        return self.he.events

    @property
    def pileup(self) -> np.ndarray:
        return self.he.pileup


def check_depths(named: NamedStream, depths: int) -> None:
    """Raise InputError unless depths is 1, or 7 for a stream that has all depths."""
    if depths not in (1, DEPTHS):
        raise InputError(f"a simulated detector has 1 depth (HE) or {DEPTHS} (HCAL), not {depths}")
    if depths > 1 and (named.faults_within or named.noisy_boxes or named.outside is not None):
        raise InputError(
            f"the stream {named.name} is of HE depth 1 alone, since its channels change within runs: leave out --depths, or "
            "choose campaign, campaign-null, null, moderate, small, year or pair"
        )


def all_depths(runs: Iterable[SimulatedRun], named: NamedStream, seed: int, numbers: Sequence[int]) -> Iterator[AllDepthsRun]:
    """Draw all depths of the runs with those numbers, which are the first of a stream, one after another."""
    for index, run in enumerate(runs):
        yield with_all_depths(run, named, seed, index, numbers.__getitem__)


def chosen(seed: int) -> dict[str, object]:
    """What truth.json tells of the depths, in place of HE depth 1 alone."""
    live = nominal_rates() > 0
    lasting = _fingerprint(seed)
    lasting[0, LIVE] = 1.0
    return {
        "depths": DEPTHS,
        "nominal_rates": [float(f"{value:.5g}") for value in nominal_rates()[live]],
        "fingerprint_of_other_channels": [float(f"{value:.5g}") for value in lasting[live]],
        "order_of_depths": "gain, nominal_rates and fingerprint_of_other_channels list the channels by rising depth, ieta and "
        "iphi; the latter is 1 in the channels of fingerprint",
    }


def with_all_depths(
    he: SimulatedRun, named: NamedStream, seed: int, index: int, run_number: Callable[[int], int]
) -> AllDepthsRun:
    """Draw the other depths of run `index` of a stream around its HE depth 1.

    Each of the other channels drifts on a walk of its own with the stream's step; as many channels fail as in depth 1; a
    readout box, module or HEM15/16 that fails does so in all depths of HE. run_number: gives the number of the run at an index.
    """
    other, gain = other_channels(), drift(named, seed, index)
    faults = [*(_in_all_depths(fault) for fault in he.faults), *_channel_faults(named, seed, index, run_number)]
    for fault, channels in faults:
        gain = np.where(channels & other, gain * fault["factor"], gain)
    rate = rates(he.rate, named, seed, gain)
    counts = np.zeros((len(he.events), *other.shape), dtype=np.uint16)
    rng = generator(seed, Purpose.DEPTHS, index, 0)
    p = probability(rate[other], np.nan_to_num(he.pileup)[:, None])
    counts[:, other] = rng.binomial(he.events.astype(np.int64)[:, None], p)
    counts[:, 0, LIVE] = he.counts[:, LIVE]
    gain[0, LIVE] = he_gain(he)
    live = nominal_rates() > 0
    truth = he.truth | {
        "gain": [float(f"{value:.5g}") for value in gain[live]],
        "faults": [fault for fault, _ in faults],
    }
    return AllDepthsRun(he, counts, rate, truth)


def drift(named: NamedStream, seed: int, index: int) -> np.ndarray:
    """Gains of run `index` after the stream's drift alone, (7, 64, 72)."""
    shape = (DEPTHS, N_IETA, N_IPHI)
    return np.asarray(np.exp(named.drift_sigma * _walk(seed, index))) if named.drift_sigma else np.ones(shape)


def rates(he_rate: np.ndarray, named: NamedStream, seed: int, gain: np.ndarray) -> np.ndarray:
    """Rate of each channel per unit of pileup, (7, 64, 72): `he_rate`, (64, 72), in HE depth 1, others from their gains."""
    rate = np.where(other_channels(), nominal_rates() / named.pileup_per_r * _fingerprint(seed) * gain, 0.0)
    rate[0, LIVE] = he_rate[LIVE]
    return rate


def he_gain(he: SimulatedRun) -> np.ndarray:
    """Gains of the live channels of HE depth 1 over the fingerprint, as in the run's truth, (932,)."""
    return np.array(he.truth["gain"])


def _in_all_depths(fault: Fault) -> tuple[dict[str, Any], np.ndarray]:
    """Truth and channels, bool (7, 64, 72), of a fault of HE depth 1; one of several channels is a fault of all depths."""
    channels = np.zeros((DEPTHS, N_IETA, N_IPHI), dtype=bool)
    channels[0] = fault.channels
    if fault.kind in ("box", "module", "hem15/16"):
        channels |= in_he() & fault.location.cells
    return fault.truth() | {"channels": _named(channels)}, channels


def _channel_faults(
    named: NamedStream, seed: int, index: int, run_number: Callable[[int], int]
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Faults of single channels of the other depths in run `index`. They begin as often as those of depth 1."""
    rates = [rate for rate in named.faults if rate.kind in _CHANNEL_KINDS]
    places = np.argwhere(other_channels())
    found = []
    for number, rate in enumerate(rates):
        for begun in range(max(1, index - int(rate.longest_runs) + 1), index + 1):
            begins, which, life, level = generator(seed, Purpose.DEPTHS, begun, 1, number).random(4)
            runs = min(max(1.0, np.ceil(np.log1p(-life) / np.log1p(-1 / rate.mean_runs))), rate.longest_runs)
            if begins >= rate.births_p or begun + runs <= index:
                continue
            depth, row, column = places[int(which * len(places))].tolist()
            channels = np.zeros((DEPTHS, N_IETA, N_IPHI), dtype=bool)
            channels[depth, row, column] = True
            low, high = rate.factor
            truth = {
                "kind": rate.kind,
                "where": f"ieta {IETA[row]} iphi {column + 1} depth {depth + 1}",
                "factor": float(f"{low + (high - low) * level:.5g}"),
                "acts_on": "rate",
                "since_run": run_number(begun),
                "channels": _named(channels),
            }
            found.append((truth, channels))
    return found


def _named(channels: np.ndarray) -> list[list[int]]:
    return [[int(IETA[row]), int(column) + 1, int(depth) + 1] for depth, row, column in np.argwhere(channels)]


def _walk(seed: int, index: int) -> np.ndarray:
    """A random walk of each channel, (7, 64, 72)."""
    return np.stack([walk(seed, index, depth) for depth in range(1, DEPTHS + 1)])


def _fingerprint(seed: int) -> np.ndarray:
    """Lognormal factors around 1, (7, 64, 72)."""
    normal = generator(seed, Purpose.DEPTHS).standard_normal((DEPTHS, N_IETA, N_IPHI))
    return np.asarray(np.exp(FINGERPRINT_SIGMA * normal))
