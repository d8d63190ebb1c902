"""One lumisection, the record that every room speaks: its HCAL geometry, and the rules of a valid row.

A lumisection (LS) is 2**18 LHC orbits, 23.31 s. Its occupancy map counts, for each channel, the events in which the
channel's charge passed a cut. Maps have shape (depth, ieta, iphi) = (depths, 64, 72):

* ieta < 0 is row ieta + 32, ieta > 0 is row ieta + 31 (there is no ieta 0); ieta is not periodic;
* iphi 1..72 is column iphi - 1; iphi is periodic.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan, nan
from struct import Struct
from typing import Any

import numpy as np

N_IETA = 64
N_IPHI = 72
LUMISECTION_S = 2**18 * 3564 / 40.0789e6
"""Length of a lumisection in seconds: 2**18 orbits of 3564 bunch crossings at 40.0789 MHz, 23.31 s."""

MAX_NUMBER = 2**31 - 1
"""Largest run or lumisection number. CMS numbers fit in an int32; a larger one is damage."""

MAX_EVENTS = 3_000_000
"""Default for the most events of a lumisection. The Level-1 trigger accepts at most 110 kHz, 2.6 million events."""

CROSSINGS = 2**18 * 3564
"""Bunch crossings in a lumisection, 9.3e8. No channel can count more, whatever the settings are."""

MAX_PILEUP = 1000.0
"""Largest pileup: five times that of the High-Luminosity LHC. A larger one is damage."""

ROUNDING_EVENTS = 1.0
"""How far a count may exceed `n_events`, which may be a rounded product of a trigger rate and 23.31 s."""

MOST_SHARE = 1.01
"""Largest share of events that a channel can count, with room for rounded numbers of events."""

IETA = np.concatenate([np.arange(-32, 0), np.arange(1, 33)])
"""ieta of each row, shape (64,)."""

IPHI = np.arange(1, N_IPHI + 1)
"""iphi of each column, shape (72,)."""


def ieta_row(ieta: int) -> int:
    """Row of a map for ieta. Raises ValueError for ieta 0 and beyond ±32, which have no row."""
    if ieta == 0 or abs(ieta) > 32:
        raise ValueError(f"ieta must be in -32..-1 or 1..32, not {ieta}")
    return ieta + 32 if ieta < 0 else ieta + 31


def he_depth1_mask() -> np.ndarray:
    """The 932 channels of depth 1 of HE: bool, shape (64, 72).

    Rings |ieta| 21-29 have 36 cells (even columns). Rings 19 and 20 have columns 0-70, since the published histogram overflows
    at iphi 72.
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
    """Readout box of each channel, as in `rbx_mask`: -18..-1 at negative ieta, 1..18 at positive. All arrays (n,)."""
    sector = (iphi + 5) // 4 % (N_IPHI // 4)
    return np.sign(ieta) * np.where(sector == 0, N_IPHI // 4, sector)


def readout_module(ieta: np.ndarray, iphi: np.ndarray) -> np.ndarray:
    """Number of the readout module of each channel, negative at negative ieta; all arrays (n,).

    A module reads alternate cells of two neighbouring iphi on one side.
    """
    column = iphi - 1
    row = np.where(ieta < 0, ieta + 32, ieta + 31)
    return np.asarray(np.sign(ieta) * (1 + 2 * (column // 2) + (row + column) % 2))


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
    """One lumisection as it was received or read.

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
    """The start of a run (wire schema pl72). time_ns: UTC, nanoseconds since 1970, 0 if unknown."""

    run: int
    time_ns: int = 0


@dataclass(frozen=True, slots=True)
class RunStop:
    """The end of a run (wire schema 6s4t). time_ns: UTC, nanoseconds since 1970, 0 if unknown."""

    run: int
    time_ns: int = 0


Record = Lumisection | RunStart | RunStop


MAX_TIME_NS = 2**62
"""The year 2116. A later time is damage, and so is one before 1970."""

MAX_SOURCE = 512
"""Most characters of a source, the dataset and monitoring element."""


Faults = Iterator[tuple[Any, Callable[[], str]]]
"""The rules of a valid row, one after another: whether it is broken, and the reason.

The same rules hold for one lumisection, whose values are scalars, and for n at once, whose values are arrays (n,): broken is
a bool or bool (n,). The reason is text for one lumisection only.
"""


def raise_fault(faults: Faults) -> None:
    """Raise ValueError with the reason of the first broken rule; the rules behind it are not evaluated."""
    for broken, reason in faults:
        if broken:
            raise ValueError(reason())


def sound_rows(faults: Faults, count: int) -> np.ndarray:
    """Which of many lumisections break no rule: bool, shape (count,)."""
    sound = np.ones(count, bool)
    with np.errstate(all="ignore"):  # a rule also compares values that broke an earlier one
        for broken, _ in faults:
            sound &= np.logical_not(broken)
    return sound


def row_faults(
    *,
    run: Any,
    lumisection: Any,
    time_ns: Any,
    counts: np.ndarray,
    n_events: Any,
    pileup: Any,
    dtype: np.dtype,
    max_events: float,
    interpolated: bool = False,
) -> Faults:
    """All rules of a row in an archive of this dtype (float32 or uint16), which hold for messages and files alike.

    run, lumisection, time_ns: whole numbers, scalars or (n,). counts: any dtype, shape (cells,) or (n, cells). n_events,
    pileup: scalars or (n,), nan where unknown. max_events: most events of any lumisection. interpolated: rows lie between
    lumisections, so counts of less than 1 are possible.
    """
    yield from number_faults(run, lumisection)
    yield from time_faults(time_ns)
    yield counts.dtype.kind not in "iuf", lambda: f"occupancy of dtype {counts.dtype} is not a real number"
    low, high = counts.min(axis=-1), counts.max(axis=-1)
    if not interpolated:
        yield (
            are_shares(counts, high),
            lambda: f"occupancy holds values that are not whole, up to {high:.6g}: they are shares of events, not counts",
        )
    yield from count_faults(counts, low, high, dtype)
    yield from plausibility_faults(high.astype(dtype).astype(np.float64), n_events, pileup, max_events)


def number_faults(run: Any, lumisection: Any) -> Faults:
    """Run and lumisection are numbers that CMS can have given."""
    yield (run < 1) | (run > MAX_NUMBER), lambda: f"run {run} is not in 1..{MAX_NUMBER}"
    yield (lumisection < 1) | (lumisection > MAX_NUMBER), lambda: f"lumisection {lumisection} is not in 1..{MAX_NUMBER}"


def time_faults(time_ns: Any) -> Faults:
    """The time lies between 1970 and 2116; 0 is unknown."""
    yield (time_ns < 0) | (time_ns > MAX_TIME_NS), lambda: f"the time {time_ns} ns since 1970 is not in 0..{MAX_TIME_NS}"


def count_faults(counts: np.ndarray, low: Any, high: Any, dtype: np.dtype) -> Faults:
    """Each count of a real dtype can be stored as dtype; a float64 count may be rounded to float32.

    low, high: smallest and largest count, scalars or (n,); both NaN where a count is.
    """
    yield np.logical_not(np.isfinite(low) & np.isfinite(high)), lambda: "occupancy holds NaN or infinity"
    yield low < 0, lambda: f"occupancy holds a negative count ({low})"
    limit = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
    yield high > limit, lambda: f"occupancy holds {high}, above what an archive of {dtype} takes"
    if dtype.kind == "u" and counts.dtype.kind == "f":
        whole = (counts == np.floor(counts)).all(axis=-1 if np.ndim(high) else None)
        yield ~whole, lambda: f"occupancy holds counts that are not whole, and the archive is {dtype}"


def are_shares(counts: np.ndarray, high: Any) -> Any:
    """Whether maps hold shares of events, from 0 to 1, and not counts, which are whole: bool or bool (n,).

    counts: shape (cells,) or (n, cells). high: the largest value of each, scalar or (n,).
    """
    small = np.asarray((high > 0) & (high <= MOST_SHARE))
    if counts.dtype.kind == "f" and small.any():
        small[small] = (counts[small] != np.floor(counts[small])).any(axis=-1)
        return small if small.ndim else bool(small)
    return np.zeros_like(small) if small.ndim else False


def plausibility_faults(largest: Any, n_events: Any, pileup: Any, max_events: float) -> Faults:
    """A lumisection can have such events, pileup and counts. largest: the largest count as stored, float64."""
    yield (
        (n_events < 0) | (n_events > max_events),
        lambda: f"n_events is {n_events}, no number from 0 to {float(max_events):.15g}",
    )
    yield (pileup < 0) | (pileup > MAX_PILEUP), lambda: f"pileup is {pileup}, no number from 0 to {MAX_PILEUP:.15g}"
    yield (
        largest > n_events + ROUNDING_EVENTS,
        lambda: f"occupancy holds {largest:.9g}, and the lumisection has {n_events:.15g} events: a channel counts each once",
    )
    yield (
        largest > max_events,
        lambda: (
            f"occupancy holds {largest:.9g}, above the {max_events:.15g} events that a lumisection can have (see --max-events)"
        ),
    )


def check_numbers(run: int, lumisection: int = 1) -> None:
    """Raise ValueError, with the reason, where a number is not in 1 .. 2**31 - 1."""
    raise_fault(number_faults(run, lumisection))


def check_counts(counts: np.ndarray, dtype: np.dtype) -> None:
    """Raise ValueError, with the reason, unless every count can be stored as dtype (float32 or uint16). Any shape.

    Refused are dtypes that are not real numbers, NaN, infinity, negative counts and, for uint16, counts that are not
    whole or above 65535. float64 counts that float32 rounds are accepted.
    """
    if counts.dtype.kind not in "iuf":
        raise ValueError(f"occupancy of dtype {counts.dtype} is not a real number")
    raise_fault(count_faults(counts, counts.min(), counts.max(), dtype))


def check_plausible(largest: float, n_events: float, pileup: float, max_events: float = MAX_EVENTS) -> None:
    """Raise ValueError, with the reason, for a count, events or pileup that no lumisection can have.

    largest: the largest count of the map. n_events, pileup: nan where unknown. max_events: most events of any lumisection.
    """
    raise_fault(plausibility_faults(largest, n_events, pileup, max_events))


def most_counts(n_events: np.ndarray, max_events: float) -> np.ndarray:
    """The largest count that a lumisection of so many events can hold, float64, (n,): a channel counts an event once.

    n_events: (n,), nan where unknown. max_events: most events of any lumisection.
    """
    return np.where(np.isnan(n_events), max_events, np.minimum(n_events + ROUNDING_EVENTS, max_events))


def check_source(source: str) -> None:
    """Raise ValueError for a dataset and monitoring element that is too long or not printable."""
    if len(source) > MAX_SOURCE or not source.isprintable():
        raise ValueError(f"the source {source[:40]!r}... is no name: {len(source)} characters, or some that cannot be printed")


def with_depths(occupancy: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The map with shape (depth, 64, 72); one of shape (64, 72) has a single depth. Raises ValueError for another shape."""
    if occupancy.ndim == 2:
        occupancy = occupancy[None]
    if occupancy.shape != geometry.shape:
        raise ValueError(f"occupancy has shape {occupancy.shape}, the archive holds {geometry.shape}")
    return occupancy


_TWO_DOUBLES = Struct("<dd").pack


def content_hash(stored: np.ndarray, n_events: float, pileup: float) -> int:
    """Hash that decides whether two lumisections have the same contents: the first 8 bytes of a SHA-256, as uint64.

    The hash is of the stored map (archive dtype, little-endian), then n_events and pileup as float64, with all NaN equal. Time
    is not part of it: the same map sent twice with two times is the same.
    """
    digest = hashlib.sha256(np.ascontiguousarray(stored, stored.dtype.newbyteorder("<")).data)
    digest.update(_TWO_DOUBLES(*(nan if isnan(value) else value for value in (n_events, pileup))))
    return int.from_bytes(digest.digest()[:8], "little")


def utf8(text: str) -> str:
    """The text with escapes for bytes that are not UTF-8, as names of files may have."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


RUN_FILE = re.compile(r"^Run(?P<run>\d+)_Dataset_(?P<name>.+)\.(?i:npy)$")
"""The original layout: Run355456_Dataset_x.npy, shape (lumisection, ieta, iphi)."""

SIDECAR_FILE = re.compile(r"^Run(?P<run>\d+)_(?P<what>events|pileup)\.(?i:npy)$")
"""Files beside it with events and pileup, shape (lumisection,)."""
