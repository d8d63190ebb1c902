"""A corpus of messages that a broken, careless or hostile producer might send, each with what must become of it.

Seeded: the same seed gives the same messages. Each is built around a lumisection of its own, (run, number) of its index, so
what is stored of it can be told from all others.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterator
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
MAP_AXES = ["ieta", "iphi"]


class Sent(NamedTuple):
    """A message and its fate in a uint16 archive of SOURCE: row, control, duplicate, dead, or either row or dead."""

    kind: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    fate: str


@dataclass(frozen=True)
class Draw:
    """What a kind is made from: a random generator and the index, which names a lumisection."""

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
        """A map of whole counts that no other index has."""
        counts = base_map(self.index % 16).copy()
        counts[0, :3] = [self.index % 60_000, self.index // 60_000, 7]
        return counts

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def da00(self, *, time_ns: int = TIME_NS, source: str = SOURCE, **changes: Variable | None) -> bytes:
        """The lumisection as da00, with variables changed, added, or left out where None."""
        variables = {
            "occupancy": occupancy(self.counts),
            "run": Variable("run", np.array(self.run)),
            "lumisection": Variable("lumisection", np.array(self.number)),
            "n_events": Variable("n_events", np.array(1500.0)),
            **changes,
        }
        return serialise_da00(source, time_ns, [v for v in variables.values() if v is not None])

    def npy(self, array: np.ndarray | None = None) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, self.counts if array is None else array, allow_pickle=True)
        return buffer.getvalue()

    @property
    def numbers(self) -> Headers:
        """Run and lumisection in headers, as an .npy message has them."""
        return [("run", self.key), ("lumisection", b"%d" % self.number), ("source", SOURCE.encode())]

    def any_value(self) -> tuple[bytes, Headers]:
        """A sound value of any schema, and the headers that it needs beside its checksum."""
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
    """Headers with the right checksum, whatever the value says."""
    return [("crc32c", checksum(value)), *more]


Made = tuple[bytes | None, bytes | None, Headers]
KINDS: dict[str, tuple[Callable[[Draw], Made], str]] = {}


def kind(fate: str) -> Callable[[Callable[[Draw], Made]], Callable[[Draw], Made]]:
    """Enter a maker into the corpus under its name."""

    def enter(make: Callable[[Draw], Made]) -> Callable[[Draw], Made]:
        KINDS[make.__name__.strip("_")] = (make, fate)
        return make

    return enter


def plain(draw: Draw, value: bytes) -> Made:
    """The value with its right key and checksum: all that is wrong lies in it."""
    return draw.key, value, signed(value)


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
    """Says so when it is unpickled."""

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
    return plain(draw, bad_counts(draw, draw.one_of(65536.0, 1e30, 2.0**63)))


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
    data = draw.one_of(np.array(-1.0), np.array(np.inf), np.array(-np.inf), np.array(3, np.int64), np.array(1.0, np.float32))
    return plain(draw, draw.da00(**{name: draw.one_of(Variable(name, data), Variable(name, "many"))}))


@kind("row")
def conditions_with_a_payload(draw: Draw) -> Made:
    """Any NaN means unknown, and there is one zero."""
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


# Sizes that nobody has


@kind("dead")
def absurd_npy(draw: Draw) -> Made:
    shape = draw.one_of("(1000000000000,)", "(64, 72, 999999999999999999)", f"({'9' * 60},)", "(0,)", "(" * 5000, "-" * 9000)
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = draw.one_of(struct.pack("<I", len(header)), b"\xff\xff\xff\xff", b"\0\0\0\0")
    value = b"\x93NUMPY\x02\x00" + length + header + bytes(64)
    return draw.key, value, signed(value, *draw.numbers)


@kind("either")
def absurd_da00(draw: Draw) -> Made:
    """Some offset or length made absurd."""
    value = bytearray(draw.da00())
    places = [p for p in range(8, len(value) - 4, 4) if not 800 < p < len(value) - 800]
    place = draw.one_of(*places)
    value[place : place + 4] = struct.pack("<I", draw.one_of(2**32 - 1, 2**31 - 1, 2**31, 10**6, len(value)))
    return plain(draw, bytes(value))


@cache
def bomb(listed: int, length: int) -> bytes:
    """A da00 whose every variable has every axis, each axis a text of all that follows: `listed`^2 * `length` bytes told."""
    out = bytearray(struct.pack("<I4s", 0, b"da00"))
    out += struct.pack("<HHHHH", 10, 16, 0, 0, 4)  # vtable of the array: data alone
    out += struct.pack("<HHHHHHHHHH", 20, 40, 4, 0, 0, 0, 8, 12, 0, 16)  # of a variable: name, data_type, axes, data
    array = len(out)
    struct.pack_into("<I", out, 0, array)
    out += struct.pack("<iI", array - 8, 4)
    variables = len(out)
    variable = variables + 4 + 4 * listed
    out += struct.pack("<I", listed) + b"".join(struct.pack("<I", variable - variables - 4 - 4 * i) for i in range(listed))
    data = variable + 20
    axes = data + 8
    text = axes + 4 + 4 * listed
    out += struct.pack("<iIbxxxII", variable - 18, text - variable - 4, 1, axes - variable - 12, data - variable - 16)
    out += struct.pack("<Ibxxx", 1, 7)
    out += struct.pack("<I", listed) + b"".join(struct.pack("<I", text - axes - 4 - 4 * i) for i in range(listed))
    return bytes(out + struct.pack("<I", length) + b"x" * length)


@kind("dead")
def da00_bomb(draw: Draw) -> Made:
    return plain(draw, bomb(draw.one_of(8, 1000, 20_000), draw.one_of(100, 100_000)))


# Keys and headers


@kind("dead")
def wrong_key(draw: Draw) -> Made:
    value = draw.da00()
    return draw.one_of(b"", b"%d" % (draw.run + 1), b" %d" % draw.run, b"\xff\0", b"9" * 100_000), value, signed(value)


@kind("dead")
def wrong_checksum(draw: Draw) -> Made:
    value = draw.da00()
    right = checksum(value)
    several: list[Headers] = [
        [], [("CRC32C", right)], [("crc32c", b"")], [("crc32c", right.upper() + b" ")], [("crc32c", b"0" * 50_000)],
        [("crc32c", b"\xff" * 8)], [("crc32c", right), ("crc32c", b"00000000")], [("crc32c", b"00000000"), ("crc32c", right)],
    ]  # fmt: skip
    return draw.key, value, several[int(draw.rng.integers(len(several)))]


@kind("dead")
def bad_npy_headers(draw: Draw) -> Made:
    value = draw.npy()
    bad = (b"", b"0", b"-1", b"1_0", b" 7", b"7.0", b"\xff", "٣".encode(), b"9" * 5000, b"99999999999", b"4294967297")
    changed = draw.one_of(
        *(("run", text) for text in bad), *(("lumisection", text) for text in bad), ("source", b"\xff\xfe"),
        *(("n_events", text) for text in (b"inf", b"1_0", b"1e999", b"many", b"-1", b"9" * 5000)),
    )  # fmt: skip
    return None, value, signed(value, *(h for h in draw.numbers if h[0] != changed[0]), changed)


@kind("dead")
def bad_run_name(draw: Draw) -> Made:
    name = draw.one_of("", "0", "-3", "7_0", " 7", "٣", "99999999999", "run 7", "x" * 10_000, "9" * 10_000)
    start = serialise_pl72("", "", run_name=name, start_time=0, stop_time=0)
    late = serialise_6s4t("", run_name=str(draw.run), stop_time=2**64 - 1)
    value = draw.one_of(start, serialise_6s4t("", run_name=name, stop_time=0), late)
    return draw.one_of(None, draw.key), value, signed(value)


# What is unusual, and right


@kind("row")
def good_npy(draw: Draw) -> Made:
    value = draw.npy(draw.counts.astype(draw.one_of("<u2", ">u2", "<f8", ">f4", "<i8", "<u4")))
    return draw.key, value, signed(value, *draw.numbers)


@kind("row")
def odd_headers(draw: Draw) -> Made:
    value = draw.da00()
    odd = [("crc32c", checksum(value)), ("", b""), ("naïve\n\x1b[2J", draw.rng.bytes(40)), ("run", b"999")]
    return draw.key, value, signed(value, *odd, *(("same", b"%d" % k) for k in range(int(draw.rng.integers(300)))))


class Name(str):
    """The name of a header that goes out as bytes that are no UTF-8, and comes back escaped."""

    def encode(self, *_: object) -> bytes:
        return b"x\xff\xfe"


NAME = Name(r"x\xff\xfe")


@kind("row")
def name_of_no_text(draw: Draw) -> Made:
    value = draw.da00()
    return draw.key, value, signed(value, (NAME, b"1"), (NAME, b"2"))


@kind("dead")
def name_of_no_text_without_a_checksum(draw: Draw) -> Made:
    return draw.key, draw.da00(), [(NAME, b"\xff")]


@kind("row")
def no_key(draw: Draw) -> Made:
    return None, *plain(draw, draw.da00(source=draw.one_of(SOURCE, "")))[1:]


@kind("row")
def many_variables(draw: Draw) -> Made:
    more = {f"v{k}": Variable(f"v{k}", draw.rng.integers(0, 9, 10)) for k in range(int(draw.rng.integers(1, 30)))}
    return plain(draw, draw.da00(**more, note=Variable("note", "a text")))


@kind("control")
def start_or_stop(draw: Draw) -> Made:
    value = draw.one_of(
        serialise_pl72("", "", run_name=str(draw.run), start_time=0, stop_time=0),
        serialise_6s4t("", run_name=str(draw.run), stop_time=TIME_NS // 10**6),
    )
    return plain(draw, value)


def good(draw: Draw) -> Made:
    return plain(draw, draw.da00())


def corpus(seed: int, size: int, good_every: int) -> Iterator[Sent]:
    """`size` messages; each good_every-th is good, and now and then a good one comes again."""
    names = sorted(KINDS)
    for index in range(size):
        draw = Draw(np.random.default_rng((seed, index)), index)
        if index % good_every == 0:
            yield Sent("good", *good(draw), "row")
        elif index > good_every and draw.rng.random() < 0.02:
            earlier = Draw(draw.rng, good_every * int(draw.rng.integers(index // good_every)))
            yield Sent("good_again", *good(earlier), "duplicate")
        else:
            name = names[int(draw.rng.integers(len(names)))]
            make, fate = KINDS[name]
            yield Sent(name, *make(draw), fate)
