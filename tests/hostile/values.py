"""Kinds with damaged values, with maps of wrong shape or dtype, and with impossible numbers."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
from streaming_data_types.dataarray_da00 import Variable

from dqmstream.streaming.wire import checksum
from tests.hostile.draw import (
    MAP_AXES,
    Draw,
    Made,
    kind,
    occupancy,
    plain,
    signed,
)
from tests.maps import SOURCE

# Values that are not whole


@kind("dead")
def empty(draw: Draw) -> Made:
    return draw.key, draw.one_of(b"", None), signed(b"")


@kind("dead")
def noise(draw: Draw) -> Made:
    magic = draw.one_of(b"", b"da00", b"pl72", b"6s4t", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00")
    body = draw.rng.bytes(int(draw.rng.integers(1, 400)))
    value = magic + body if magic[:1] == b"\x93" else body[:4].ljust(4, b"\0") + magic + body[4:]
    return draw.key, value, signed(value, *draw.numbers)


@kind("dead")
def truncated(draw: Draw) -> Made:
    value, more = draw.any_value()
    short = value[: int(draw.rng.integers(1, max(len(value) // 2, 2)))]
    return draw.key, short, [("crc32c", checksum(draw.one_of(short, value))), *more]


@kind("dead")
def cut_at_the_end(draw: Draw) -> Made:
    value = draw.npy()[: -int(draw.rng.integers(1, 64))]
    return draw.key, value, signed(value, *draw.numbers)


def flip(draw: Draw, value: bytes) -> bytes:
    damaged = bytearray(value)
    head = min(len(value), 700)
    for _ in range(int(draw.rng.integers(1, 4))):
        place = int(draw.one_of(draw.rng.integers(len(value)), draw.rng.integers(head)))
        damaged[place] ^= 1 << int(draw.rng.integers(8))
    return bytes(damaged)


@kind("dead")
def flipped(draw: Draw) -> Made:
    value, more = draw.any_value()
    damaged = flip(draw, value)
    return draw.key, damaged if damaged != value else value + b"\0", signed(value, *more)


@kind("either")
def flipped_and_signed_again(draw: Draw) -> Made:
    value, more = draw.any_value()
    damaged = flip(draw, value)
    return draw.key, damaged, signed(damaged, *more)


@kind("dead")
def wrong_schema(draw: Draw) -> Made:
    value = draw.da00()
    return plain(draw, value[:4] + draw.one_of(b"f144", b"ev44", b"DA00", b"\0\0\0\0") + value[8:])


@kind("either")
def schema_of_another(draw: Draw) -> Made:
    value, more = draw.any_value()
    value = value[:4] + draw.one_of(b"da00", b"pl72", b"6s4t") + value[8:]
    return draw.key, value, signed(value, *more)


# Maps that are none


@kind("dead")
def wrong_shape(draw: Draw) -> Made:
    shape = draw.one_of((72, 64), (64, 71), (1, 1), (64, 73))
    deep = np.zeros(draw.one_of((2, 64, 72), (8, 64, 72), (1, 72, 64)))
    made = draw.one_of(occupancy(np.zeros(shape)), occupancy(deep, ["depth", *MAP_AXES]), occupancy(np.zeros(4608), ["cell"]))
    return plain(draw, draw.da00(occupancy=made))


@kind("dead")
def wrong_axes(draw: Draw) -> Made:
    value = draw.da00(occupancy=occupancy(draw.counts, ["iphi", "ieta"]))
    return plain(draw, draw.one_of(value, draw.da00(occupancy=occupancy(draw.counts, unit="GeV"))))


@kind("dead")
def wrong_dtype(draw: Draw) -> Made:
    counts = draw.counts
    array = draw.one_of(
        counts.astype(np.complex64), counts.astype("U4"), counts.astype(np.float16), counts.astype(bool),
        counts.astype("S2"), counts.astype("M8[s]"), counts.astype(np.longdouble), np.asfortranarray(counts),
        np.zeros((64, 72), [("a", "f4"), ("b", "f8")]),
    )  # fmt: skip
    value = draw.npy(array)
    return draw.key, value, signed(value, *draw.numbers)


@kind("dead")
def text_for_a_map(draw: Draw) -> Made:
    return plain(draw, draw.da00(occupancy=Variable("occupancy", "x" * 4608, axes=["ieta"], unit="count")))


class Witness:
    """Records that it was unpickled."""

    unpickled = 0

    def __reduce__(self) -> tuple[Callable[[], int], tuple[()]]:
        return (_unpickle, ())


def _unpickle() -> int:
    Witness.unpickled += 1
    return 0


@kind("dead")
def pickled(draw: Draw) -> Made:
    value = draw.one_of(draw.npy(np.array([Witness()], dtype=object)), pickle.dumps(Witness()))
    return draw.key, value, signed(value, *draw.numbers)


def bad_counts(draw: Draw, bad: float) -> bytes:
    counts = draw.counts.astype(np.float64)
    counts[int(draw.rng.integers(64)), int(draw.rng.integers(72))] = bad
    return draw.da00(occupancy=occupancy(counts))


@kind("dead")
def not_finite(draw: Draw) -> Made:
    return plain(draw, bad_counts(draw, draw.one_of(np.nan, np.inf, -np.inf)))


@kind("dead")
def negative(draw: Draw) -> Made:
    return plain(draw, bad_counts(draw, draw.one_of(-1.0, -1e-300, -1e300)))


@kind("dead")
def above_uint16(draw: Draw) -> Made:
    return plain(draw, bad_counts(draw, draw.one_of(65536.0, 70_000.0, 99_999.0)))


@kind("dead")
def above_any_events(draw: Draw) -> Made:
    return plain(draw, bad_counts(draw, draw.one_of(100_002.0, 1e30, 2.0**63)))


@kind("dead")
def not_whole(draw: Draw) -> Made:
    return plain(draw, bad_counts(draw, draw.one_of(0.5, 1e-300, 3.999999)))


# Numbers that are none


def bad_number(draw: Draw, name: str) -> Variable | None:
    made = [np.array(n) for n in (0, -1, -(2**63), 2**31, 2**63 - 1)]
    made += [np.array(2**64 - 1, np.uint64), np.array(7.0), np.arange(2), np.empty((0,), np.int64)]
    return draw.one_of(None, Variable(name, "7"), Variable(name, np.array([7]), axes=["x"]), *(Variable(name, d) for d in made))


@kind("dead")
def bad_run(draw: Draw) -> Made:
    return None, *plain(draw, draw.da00(run=bad_number(draw, "run")))[1:]


@kind("dead")
def bad_lumisection(draw: Draw) -> Made:
    return plain(draw, draw.da00(lumisection=bad_number(draw, "lumisection")))


@kind("dead")
def named_twice(draw: Draw) -> Made:
    return plain(draw, draw.da00(again=Variable("run", np.array(draw.run))))


@kind("dead")
def bad_conditions(draw: Draw) -> Made:
    name = draw.one_of("n_events", "pileup")
    data = draw.one_of(np.array(-1.0), np.array(np.inf), np.array(1e30), np.array(3, np.int64), np.array(1.0, np.float32))
    return plain(draw, draw.da00(**{name: draw.one_of(Variable(name, data), Variable(name, "many"))}))


@kind("row")
def conditions_with_a_payload(draw: Draw) -> Made:
    """Every NaN means unknown, and -0.0 is 0.0."""
    bits = draw.one_of(0x7FF8000000000001, 0xFFF8DEADBEEF0000, 0x7FF0000000000001, 0x8000000000000000)
    data = np.array([bits], np.uint64).view(np.float64).reshape(())
    return plain(draw, draw.da00(pileup=Variable("pileup", data)))


@kind("dead")
def bad_time(draw: Draw) -> Made:
    return plain(draw, draw.da00(time_ns=draw.one_of(-1, -(2**63), 2**63 - 1, 2**62 + 1)))


@kind("dead")
def bad_source(draw: Draw) -> Made:
    source = draw.one_of(SOURCE, "/Muon#Other", "x" * 600, "x" * 100_000, "/Zero\x1b[2JBias", "a\nb", "\0")
    return plain(draw, draw.da00(source=source).replace(b"ZeroBias", b"Zero\xff\xfeas"))
