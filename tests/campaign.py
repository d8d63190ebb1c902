"""Runs as in data taking: short and long ones, pileup levelled near 62, empty and truncated lumisections, all depths.

Counts are binomial and saturate with pileup as in the published HE maps; the rates of other depths and subdetectors are
invented, in the cells that HCAL has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.real_conditions import FAR
from dqmstream.lumisection import IETA, IPHI, ieta_row

RESPONSE_SHAPE = 4.75
PILEUP_PER_RATE = 4.5
"""Pileup of the published run 355456, for which rates are given."""
HE_RATES = dict(zip(range(19, 30), (0.187, 0.217, 0.435, 0.565, 0.747, 1.0, 1.41, 2.14, 2.14, 3.68, 2.16), strict=True))
EVENTS = 1100.0
"""Zero-bias events of a complete lumisection, as in most of 2024."""


@dataclass(frozen=True)
class Fault:
    """A factor on the rate from lumisection `since` on, for one channel, or for columns of a side if depth is None."""

    factor: float
    ieta: int
    iphi: int | Sequence[int]
    depth: int | None = None
    since: int = 1


@dataclass(frozen=True)
class RunPlan:
    """One run: pileup of each lumisection, the numbers of the empty and the truncated ones, and the faults."""

    run: int
    pileup: np.ndarray
    empty: Sequence[int] = ()
    truncated: Sequence[int] = ()
    faults: Sequence[Fault] = field(default_factory=tuple)


def levelled(lumisections: int, rng: np.random.Generator) -> np.ndarray:
    """Pileup under luminosity levelling: 61.7 ± 0.3."""
    return 61.7 + 0.3 * rng.uniform(-1, 1, lumisections)


def falling(lumisections: int, until: float = 42.0) -> np.ndarray:
    """Pileup after the end of levelling."""
    return 61.7 * (until / 61.7) ** np.linspace(0, 1, lumisections)


def ramp(lumisections: int) -> np.ndarray:
    """Pileup at the start of a fill, with dips where the beams are optimised."""
    pileup = np.linspace(1.0, 61.7, lumisections)
    pileup[7::13] *= 0.6
    return pileup


def rates(depths: int) -> np.ndarray:
    """Rate of each channel at pileup 4.5, zero in cells without a channel: (depths, 64, 72).

    HE 19-29 and HF 30-32; HB 1-16 as well where there is more than one depth.
    """
    rng = np.random.default_rng(7)
    ring, odd = np.abs(IETA), IPHI % 2 == 1
    out = np.zeros((depths, 64, 72))
    for depth in range(1, depths + 1):
        at = out[depth - 1]
        for number, rate in HE_RATES.items():
            columns = odd if number >= 21 else IPHI <= 72
            at[np.ix_(ring == number, columns)] = rate * 0.75 ** (depth - 1)
        if depth <= 4 and depths > 1:
            at[ring <= 16] = (0.06 + 0.004 * ring[ring <= 16])[:, None]
        if depth <= 2:
            at[np.ix_(ring >= 30, odd)] = 1.2 / depth
    out *= np.exp(0.08 * rng.standard_normal(out.shape))
    for ieta, iphi, gain in FAR:
        out[0, ieta_row(ieta), iphi - 1] *= gain
    return out


def draw(plan: RunPlan, depths: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw counts, uint16, (n, depths, 64, 72), and events, (n,), of a run."""
    rng = np.random.default_rng((seed, plan.run))
    n = len(plan.pileup)
    live = np.clip(rng.normal(0.985, 0.01, n), 0, 1)
    live[np.asarray(plan.truncated, int) - 1] = rng.uniform(0.1, 0.5, len(plan.truncated))
    live[np.asarray(plan.empty, int) - 1] = 0.0
    events = rng.poisson(EVENTS * live)
    base = rates(depths)
    counts = np.empty((n, *base.shape), np.uint16)
    for k in range(n):
        rate = base
        for fault in plan.faults:
            if k + 1 >= fault.since:
                rate = rate.copy()
                columns = np.atleast_1d(np.asarray(fault.iphi)) - 1
                rows = np.flatnonzero(np.sign(IETA) == np.sign(fault.ieta)) if fault.depth is None else [ieta_row(fault.ieta)]
                where = slice(None) if fault.depth is None else [fault.depth - 1]
                rate[np.ix_(np.arange(depths)[where], rows, columns)] *= fault.factor
        full = 1.0 - (1.0 + plan.pileup[k] / PILEUP_PER_RATE * rate / RESPONSE_SHAPE) ** -RESPONSE_SHAPE
        counts[k] = rng.binomial(events[k], full)
    return counts, events.astype(np.float64)


def write(folder: Path, plan: RunPlan, depths: int, seed: int = 0) -> Path:
    """Write counts, events and pileup of a run as files that `import` reads, and return the path of the counts."""
    folder.mkdir(parents=True, exist_ok=True)
    counts, events = draw(plan, depths, seed)
    path = folder / f"Run{plan.run}_Dataset_ZeroBias.npy"
    np.save(path, counts if depths > 1 else counts[:, 0])
    np.save(folder / f"Run{plan.run}_events.npy", events)
    np.save(folder / f"Run{plan.run}_pileup.npy", plan.pileup)
    return path


def campaign(seed: int = 0) -> list[RunPlan]:
    """Six runs of two fills: a ramp, a levelled run, one of twenty lumisections, falling pileup, and two with faults."""
    rng = np.random.default_rng(seed)
    box = [4 * 5 - 5 + i for i in range(4)]  # iphi of RBX 5
    return [
        RunPlan(380100, ramp(60), empty=[1, 2]),
        RunPlan(380105, levelled(200, rng), empty=[51], truncated=[88, 140]),
        RunPlan(380110, levelled(20, rng), truncated=[20]),
        RunPlan(380115, np.concatenate([levelled(80, rng), falling(120)]), empty=[9, 150], truncated=[33]),
        RunPlan(380120, falling(200, 36.0), empty=[17], faults=[Fault(0.8, +1, box), Fault(0.0, -22, 31, depth=1)]),
        RunPlan(
            380125, np.concatenate([levelled(100, rng), falling(100)]), empty=[51],
            faults=[Fault(0.8, +1, box), Fault(0.0, -22, 31, depth=1), Fault(0.0, 24, 11, depth=1, since=101)],
        ),
    ]  # fmt: skip
