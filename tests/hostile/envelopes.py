"""Kinds with impossible sizes, with wrong keys and headers, and unusual ones that are valid."""

from __future__ import annotations

import struct
from functools import cache

from streaming_data_types.dataarray_da00 import Variable
from streaming_data_types.run_start_pl72 import serialise_pl72
from streaming_data_types.run_stop_6s4t import serialise_6s4t

from dqmstream.streaming.wire import checksum
from tests.hostile.draw import (
    TIME_NS,
    Draw,
    Headers,
    Made,
    kind,
    plain,
    signed,
)
from tests.maps import SOURCE

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
    """An offset or length in the buffer is made absurd."""
    value = bytearray(draw.da00())
    places = [p for p in range(8, len(value) - 4, 4) if not 800 < p < len(value) - 800]
    place = draw.one_of(*places)
    value[place : place + 4] = struct.pack("<I", draw.one_of(2**32 - 1, 2**31 - 1, 2**31, 10**6, len(value)))
    return plain(draw, bytes(value))


@cache
def bomb(listed: int, length: int) -> bytes:
    """A da00 in which every variable has every axis, and each axis is a long text: it claims `listed`^2 * `length` bytes."""
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
    """A header name that is sent as bytes that are not UTF-8, and comes back escaped."""

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
