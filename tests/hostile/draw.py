"""How messages are drawn, and the table of all kinds of them.

Seeded: the same seed gives the same messages. Each is built around a lumisection of its own, (run, number) of its index, so
what is stored of it can be told from all others.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from streaming_data_types.dataarray_da00 import Variable, serialise_da00
from streaming_data_types.run_start_pl72 import serialise_pl72
from streaming_data_types.run_stop_6s4t import serialise_6s4t

from dqmstream.streaming.wire import checksum
from tests.maps import SOURCE

Headers = list[tuple[str, bytes]]
RUNS = 5
TIME_NS = 1_650_000_000_000_000_000
EVENTS = 100_000.0
MAP_AXES = ["ieta", "iphi"]


class Sent(NamedTuple):
    """A message and its fate in a uint16 archive of SOURCE: row, control, duplicate, dead, or either of row and dead."""

    kind: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    fate: str


@dataclass(frozen=True)
class Draw:
    """The input of a maker: a random generator, and an index that identifies a lumisection."""

    rng: np.random.Generator
    index: int

    @property
    def run(self) -> int:
        return 1 + self.index % RUNS

    @property
    def number(self) -> int:
        return 1 + self.index // RUNS

    @property
    def key(self) -> bytes:
        return b"%d" % self.run

    @property
    def counts(self) -> np.ndarray:
        """A map of whole counts, different for each index."""
        counts = base_map(self.index % 16).copy()
        counts[0, :3] = [self.index % 60_000, self.index // 60_000, 7]
        return counts

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def da00(self, *, time_ns: int = TIME_NS, source: str = SOURCE, **changes: Variable | None) -> bytes:
        """The lumisection as da00, with variables changed or added, or left out where None."""
        variables = {
            "occupancy": occupancy(self.counts),
            "run": Variable("run", np.array(self.run)),
            "lumisection": Variable("lumisection", np.array(self.number)),
            "n_events": Variable("n_events", np.array(EVENTS)),
            **changes,
        }
        return serialise_da00(source, time_ns, [v for v in variables.values() if v is not None])

    def npy(self, array: np.ndarray | None = None) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, self.counts if array is None else array, allow_pickle=True)
        return buffer.getvalue()

    @property
    def numbers(self) -> Headers:
        """Headers with run and lumisection, as for a .npy message."""
        return [("run", self.key), ("lumisection", b"%d" % self.number), ("source", SOURCE.encode())]

    def any_value(self) -> tuple[bytes, Headers]:
        """A valid value in a random format, and the headers that it needs beside its checksum."""
        which = self.one_of("da00", "pl72", "6s4t", "npy")
        if which == "pl72":
            return serialise_pl72("", "", run_name=str(self.run), start_time=TIME_NS // 10**6, stop_time=0), []
        if which == "6s4t":
            return serialise_6s4t("", run_name=str(self.run), stop_time=TIME_NS // 10**6), []
        return (self.da00(), []) if which == "da00" else (self.npy(), self.numbers)


def occupancy(counts: np.ndarray, axes: list[str] | None = None, unit: str = "count") -> Variable:
    return Variable("occupancy", counts, axes=axes or MAP_AXES, unit=unit)


@cache
def base_map(which: int) -> np.ndarray:
    return np.random.default_rng(which).poisson(300, (64, 72)).astype(np.float32)


def signed(value: bytes, *more: tuple[str, bytes]) -> Headers:
    """Headers with the right checksum of a value, which may be anything."""
    return [("crc32c", checksum(value)), *more]


Made = tuple[bytes | None, bytes | None, Headers]
KINDS: dict[str, tuple[Callable[[Draw], Made], str]] = {}


def kind(fate: str) -> Callable[[Callable[[Draw], Made]], Callable[[Draw], Made]]:
    """Add a maker to the corpus under its name."""

    def enter(make: Callable[[Draw], Made]) -> Callable[[Draw], Made]:
        KINDS[make.__name__.strip("_")] = (make, fate)
        return make

    return enter


def plain(draw: Draw, value: bytes) -> Made:
    """The value with its right key and checksum: only the value may be wrong."""
    return draw.key, value, signed(value)
