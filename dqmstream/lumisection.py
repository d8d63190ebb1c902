"""One lumisection, the record that every room speaks, and the HCAL geometry it lives on.

A lumisection (LS) is 2**18 LHC orbits, 23.31 s. Its occupancy map counts, for each channel, the events in which the
channel's charge passed a cut. Maps have shape (depth, ieta, iphi) = (depths, 64, 72):

* ieta < 0 is row ieta + 32, ieta > 0 is row ieta + 31 (there is no ieta 0); ieta is not periodic;
* iphi 1..72 is column iphi - 1; iphi is periodic.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from math import isnan, nan
from struct import Struct

import numpy as np

N_IETA = 64
N_IPHI = 72
LUMISECTION_S = 2**18 * 3564 / 40.0789e6
"""Length of a lumisection in seconds: 2**18 orbits of 3564 bunch places at 40.0789 MHz, 23.31 s."""

MAX_NUMBER = 2**31 - 1
"""Run and lumisection numbers are stored as int64, but CMS numbers fit in an int32; a larger one is damage."""

MAX_EVENTS = 3_000_000
"""Most events that a lumisection can have, unless a setting says otherwise: Level-1 accepts at most 110 kHz, 2.6 million."""

CROSSINGS = 2**18 * 3564
"""Bunch places that pass in a lumisection, 9.3e8: no channel can count more, whatever the settings say."""

MAX_PILEUP = 1000.0
"""Five times what the High-Luminosity LHC is built for; a larger pileup is damage."""

ROUNDING_EVENTS = 1.0
"""By how much counts may be above `n_events`, which is a rate times 23.31 s where triggers tell it, and rounded."""

IETA = np.concatenate([np.arange(-32, 0), np.arange(1, 33)])
"""ieta of each row, shape (64,)."""

IPHI = np.arange(1, N_IPHI + 1)
"""iphi of each column, shape (72,)."""


def ieta_row(ieta: int) -> int:
    """Row of a map that holds ieta. Raises ValueError for ieta 0 and beyond ±32, which no row holds."""
    if ieta == 0 or abs(ieta) > 32:
        raise ValueError(f"ieta must be in -32..-1 or 1..32, not {ieta}")
    return ieta + 32 if ieta < 0 else ieta + 31


def he_depth1_mask() -> np.ndarray:
    """The 932 channels that depth 1 of HE fills: bool, shape (64, 72).

    |ieta| 21-29 has 36 cells a ring (even columns); |ieta| 19 and 20 have columns 0-70, since the published histogram
    overflows at iphi 72.
    """
    live = np.zeros((N_IETA, N_IPHI), dtype=bool)
    ring = np.abs(IETA)
    live[np.ix_((ring >= 21) & (ring <= 29), IPHI % 2 == 1)] = True
    live[np.ix_((ring == 19) | (ring == 20), IPHI <= 71)] = True
    return live


def rbx_mask(side: int, n: int) -> np.ndarray:
    """Channels of readout box n (1..18) on a side (-1, +1): bool, shape (64, 72).

    RBX n covers iphi 4n-5 .. 4n-2, wrapped to 1..72 (CMS HCAL numbering).
    """
    if side not in (-1, 1) or not 1 <= n <= 18:
        raise ValueError(f"a readout box is a side (-1, +1) and a number 1..18, not {side}, {n}")
    columns = (np.arange(4 * n - 5, 4 * n - 1) - 1) % N_IPHI
    box = np.zeros((N_IETA, N_IPHI), dtype=bool)
    box[np.ix_(np.sign(IETA) == side, columns)] = True
    return box


def readout_box(ieta: np.ndarray, iphi: np.ndarray) -> np.ndarray:
    """Readout box of each channel, as `rbx_mask` has them: -18..-1 at negative ieta and 1..18 at positive; all (n,)."""
    sector = (iphi + 5) // 4 % (N_IPHI // 4)
    return np.sign(ieta) * np.where(sector == 0, N_IPHI // 4, sector)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of an occupancy map: depths x 64 ieta x 72 iphi."""

    depths: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.depths <= 7:
            raise ValueError(f"HCAL has 1 to 7 depths, not {self.depths}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.depths, N_IETA, N_IPHI)

    @property
    def cells(self) -> int:
        return self.depths * N_IETA * N_IPHI


@dataclass(frozen=True, slots=True, eq=False)
class Lumisection:
    """One lumisection as it came.

    occupancy: counts, shape (depth, 64, 72), any real dtype. time_ns: start, UTC, nanoseconds since 1970, 0 if unknown.
    n_events, pileup: events and mean pileup of the lumisection, nan if unknown. source: dataset and monitoring element,
    empty if unknown.
    """

    run: int
    lumisection: int
    occupancy: np.ndarray
    time_ns: int = 0
    n_events: float = nan
    pileup: float = nan
    source: str = ""


@dataclass(frozen=True, slots=True)
class RunStart:
    """A run has begun (wire schema pl72). time_ns: UTC, nanoseconds since 1970, 0 if unknown."""

    run: int
    time_ns: int = 0


@dataclass(frozen=True, slots=True)
class RunStop:
    """A run has ended (wire schema 6s4t). time_ns: UTC, nanoseconds since 1970, 0 if unknown."""

    run: int
    time_ns: int = 0


Record = Lumisection | RunStart | RunStop


def check_numbers(run: int, lumisection: int = 1) -> None:
    """Raise ValueError unless run and lumisection are numbers that CMS can have given (1 .. 2**31 - 1)."""
    for name, value in (("run", run), ("lumisection", lumisection)):
        if not 1 <= value <= MAX_NUMBER:
            raise ValueError(f"{name} {value} is not in 1..{MAX_NUMBER}")


MAX_SOURCE = 512
"""Characters of a dataset and monitoring element."""


def check_source(source: str) -> None:
    """Raise ValueError for a dataset and monitoring element that no one would give: too long, or not printable."""
    if len(source) > MAX_SOURCE or not source.isprintable():
        raise ValueError(f"the source {source[:40]!r}... is no name: {len(source)} characters, or some that cannot be printed")


def check_counts(counts: np.ndarray, dtype: np.dtype) -> None:
    """Raise ValueError, with the reason, unless every count can be stored as dtype (float32 or uint16). Any shape.

    Refused are dtypes that are not real numbers, NaN, infinity, negative counts and, for uint16, counts that are not
    whole or above 65535. float64 counts that float32 rounds are taken.
    """
    if counts.dtype.kind not in "iuf":
        raise ValueError(f"occupancy of dtype {counts.dtype} is not a real number")
    low, high = counts.min(), counts.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # min and max carry a NaN on
        raise ValueError("occupancy holds NaN or infinity")
    if low < 0:
        raise ValueError(f"occupancy holds a negative count ({low})")
    limit = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
    if high > limit:
        raise ValueError(f"occupancy holds {high}, above what an archive of {dtype} takes")
    if dtype.kind == "u" and counts.dtype.kind == "f" and not np.array_equal(counts, np.floor(counts)):
        raise ValueError(f"occupancy holds counts that are not whole, and the archive is {dtype}")


def most_counts(n_events: np.ndarray, max_events: float) -> np.ndarray:
    """The largest count that a lumisection of so many events can hold, float64, (n,): a channel counts an event once.

    n_events: (n,), nan where unknown. max_events: most events of any lumisection.
    """
    return np.where(np.isnan(n_events), max_events, np.minimum(n_events + ROUNDING_EVENTS, max_events))


def check_plausible(largest: float, n_events: float, pileup: float, max_events: float = MAX_EVENTS) -> None:
    """Raise ValueError, with the reason, for a count, events or pileup that no lumisection can have.

    largest: the largest count of the map. n_events, pileup: nan where unknown. max_events: most events of any lumisection.
    """
    for name, value, most in (("n_events", n_events, float(max_events)), ("pileup", pileup, MAX_PILEUP)):
        if not (isnan(value) or 0 <= value <= most):
            raise ValueError(f"{name} is {value}, no number from 0 to {most:.15g}")
    if largest > n_events + ROUNDING_EVENTS:
        raise ValueError(
            f"occupancy holds {largest:.9g}, and the lumisection has {n_events:.15g} events: a channel counts each once"
        )
    if largest > max_events:
        raise ValueError(
            f"occupancy holds {largest:.9g}, above the {max_events:.15g} events that a lumisection can have (see --max-events)"
        )


def as_stored(occupancy: np.ndarray, geometry: Geometry, dtype: np.dtype) -> np.ndarray:
    """The map as an archive of this geometry and dtype holds it: little-endian, shape (depth, 64, 72).

    A (64, 72) map is taken as one of a single depth. Raises ValueError for another shape and for counts that
    `check_counts` refuses.
    """
    if occupancy.ndim == 2:
        occupancy = occupancy[None]
    if occupancy.shape != geometry.shape:
        raise ValueError(f"occupancy has shape {occupancy.shape}, the archive holds {geometry.shape}")
    check_counts(occupancy, dtype)
    return np.ascontiguousarray(occupancy, dtype=dtype.newbyteorder("<"))


_TWO_DOUBLES = Struct("<dd").pack


def content_hash(stored: np.ndarray, n_events: float, pileup: float) -> int:
    """What decides whether two lumisections are the same: the first 8 bytes of a SHA-256, as uint64.

    Hashed are the stored row (archive dtype, little-endian), then n_events and pileup as float64. Time is left out: the
    same map sent twice with two clocks is still the same map. Every NaN is hashed as one NaN.
    """
    digest = hashlib.sha256(np.ascontiguousarray(stored, stored.dtype.newbyteorder("<")).data)
    digest.update(_TWO_DOUBLES(*(nan if isnan(value) else value for value in (n_events, pileup))))
    return int.from_bytes(digest.digest()[:8], "little")


def utf8(text: str) -> str:
    """The text with escapes for what UTF-8 has no bytes for, as in names of files that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


RUN_FILE = re.compile(r"^Run(?P<run>\d+)_Dataset_(?P<name>.+)\.(?i:npy)$")
"""The original layout: Run355456_Dataset_x.npy, shape (lumisection, ieta, iphi)."""

SIDECAR_FILE = re.compile(r"^Run(?P<run>\d+)_(?P<what>events|pileup)\.(?i:npy)$")
"""What the simulator writes beside it, shape (lumisection,)."""
