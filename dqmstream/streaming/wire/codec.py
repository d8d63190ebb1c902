"""The wire: how a lumisection, a run start and a run stop look as a message, and back.

Key: the run number in ASCII, so that a run stays in order in one partition. Header `crc32c`: the CRC32C of the value, 8
lower-case hexadecimal digits, since FlatBuffers do not notice damage. Values are looked up by their magic: da00, pl72 and
6s4t (ess-streaming-data-types) by the 4-byte id, NumPy's .npy by its first bytes.

A message may come from anybody. Nothing here unpickles or evaluates, and nothing of a size that a message merely claims is
ever made; numbers and texts that go on into the archive are taken only as they are written down here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isnan, nan, prod

import numpy as np
from crc32c import crc32c
from streaming_data_types.dataarray_da00 import Variable, serialise_da00
from streaming_data_types.run_start_pl72 import deserialise_pl72, serialise_pl72
from streaming_data_types.run_stop_6s4t import deserialise_6s4t, serialise_6s4t

from dqmstream.lumisection import Lumisection, Record, RunStart, RunStop, check_numbers, check_source
from dqmstream.streaming.message import Message
from dqmstream.streaming.wire import da00

CRC_HEADER = "crc32c"
MAP_AXES = (["ieta", "iphi"], ["depth", "ieta", "iphi"])
NS_PER_MS = 1_000_000

MAX_TIME_NS = 2**62
"""The year 2116: a later time is damage, and so is one before 1970."""

LONGEST_REASON = 500
"""Characters."""

READ_HEADERS = frozenset({CRC_HEADER, "run", "lumisection", "n_events", "pileup", "source"})

WHOLE = re.compile(rb"[0-9]{1,10}")
REAL = re.compile(rb"[0-9.eE+-]{1,32}|nan")
NPY_HEADER = re.compile(
    rb"\{'descr': *'(?P<dtype>[<>|](?:[iu][1248]|f[48]))', *'fortran_order': *(?P<fortran>True|False), *"
    rb"'shape': *\((?P<shape>[0-9, ]{1,64})\),? *\} *\n?"
)
"""A header as NumPy writes it, of a dtype that counts come in; NumPy's own reader would evaluate it as Python."""


DAMAGE = (ValueError, struct.error, IndexError, KeyError, TypeError, AttributeError, OverflowError)
"""What the libraries raise for a damaged value. All else, a lack of memory among it, is no message's fault."""


class Undecodable(Exception):
    """A message that is not what it should be; the text is the reason, in one line, that goes with it to the dead letters."""

    def __init__(self, reason: str) -> None:
        line = " ".join(reason.split())
        super().__init__(line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}...")


def encode(record: Record) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of a record."""
    if isinstance(record, RunStart):
        value = serialise_pl72(
            job_id="", filename="", run_name=str(record.run), start_time=record.time_ns // NS_PER_MS, stop_time=0
        )
    elif isinstance(record, RunStop):
        value = serialise_6s4t(job_id="", run_name=str(record.run), stop_time=record.time_ns // NS_PER_MS)
    else:
        value = _encode_lumisection(record)
    return str(record.run).encode("ascii"), value, [(CRC_HEADER, checksum(value))]


def checksum(value: bytes) -> bytes:
    """CRC32C of the value as the header carries it."""
    return b"%08x" % crc32c(value)


def _encode_lumisection(record: Lumisection) -> bytes:
    axes = MAP_AXES[record.occupancy.ndim - 2]
    variables = [
        Variable(name="occupancy", data=np.ascontiguousarray(record.occupancy), axes=axes, unit="count"),
        # 0-d arrays round-trip; Python ints go out with a misleading shape, NumPy scalars are refused
        Variable(name="run", data=np.array(record.run, np.int64)),
        Variable(name="lumisection", data=np.array(record.lumisection, np.int64)),
    ]
    for name, known in (("n_events", record.n_events), ("pileup", record.pileup)):
        if not np.isnan(known):
            variables.append(Variable(name=name, data=np.array(known, np.float64)))
    return serialise_da00(source_name=record.source, timestamp_ns=record.time_ns, data=variables)


def decode(message: Message, *, crc_required: bool = True) -> Record:
    """The record in a message. Raises Undecodable with the reason; what is no message's fault is raised as it is.

    The checksum is compared before a byte of the value is believed. Maps are read-only views of the value.
    """
    value, headers = check_envelope(message, crc_required=crc_required)
    name, decoder = _find_decoder(value)
    try:
        record = decoder(value, headers)
    except DAMAGE as error:
        raise Undecodable(f"the value is damaged, it cannot be read as {name}: {error}") from error
    try:
        check_numbers(record.run, record.lumisection if isinstance(record, Lumisection) else 1)
    except ValueError as error:
        raise Undecodable(str(error)) from error
    _check_time(record.time_ns)
    if message.key is not None and message.key != str(record.run).encode("ascii"):
        raise Undecodable(f"the key is {_quote(message.key)}, the value is of run {record.run}")
    return record


def check_decoders() -> None:
    """Raise RuntimeError unless what is encoded here is read back: where a library is broken, no message is at fault.

    To be called before the first message is decoded. A damaged buffer makes the libraries raise much the same errors as a
    change in one of them would, which then would make a dead letter of every message.
    """
    counts = np.arange(64 * 72, dtype=np.float32).reshape(64, 72)
    for record in (RunStart(1, NS_PER_MS), RunStop(1, NS_PER_MS), Lumisection(1, 2, counts, NS_PER_MS, 3.0, 4.0, "source")):
        try:
            found = decode(Message(0, 0, *encode(record)))
        except Undecodable as error:
            raise RuntimeError(f"{record} cannot be read back: a library of the wire format is broken: {error}") from error
        if isinstance(record, Lumisection) and isinstance(found, Lumisection) and np.array_equal(found.occupancy, counts):
            found = replace(found, occupancy=counts)
        if repr(found) != repr(record):
            raise RuntimeError(f"{record} is read back as {found}: the libraries of the wire format do not work together")


def check_envelope(message: Message, *, crc_required: bool) -> tuple[bytes, dict[str, bytes]]:
    """The value of a message, and the headers that are read here. Raises Undecodable where the value is not what was sent."""
    if message.error:
        raise Undecodable(message.error)
    value = message.value
    if not value:
        raise Undecodable("the value is empty")
    headers = _read_headers(message.headers)
    if CRC_HEADER not in headers:
        if crc_required:
            raise Undecodable(f"no header {CRC_HEADER}")
    elif headers[CRC_HEADER] != (right := checksum(value)):
        raise Undecodable(f"header {CRC_HEADER} is {_quote(headers[CRC_HEADER])}, the value's is {right!r}")
    return value, headers


def _read_headers(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, bytes]:
    """The headers that are read here, one without a value as an empty one."""
    found: dict[str, bytes] = {}
    for name, content in headers:
        if name in READ_HEADERS and found.setdefault(name, content or b"") != (content or b""):
            raise Undecodable(f"header {name} comes twice, with different values")
    return found


def _quote(data: bytes) -> str:
    """The first bytes of what a message holds, for a reason."""
    return repr(data) if len(data) <= 40 else f"{data[:40]!r}... ({len(data)} bytes)"


def _check_time(time_ns: int) -> None:
    if not 0 <= time_ns <= MAX_TIME_NS:
        raise Undecodable(f"the time {time_ns} ns since 1970 is not in 0..{MAX_TIME_NS}")


def _check_source(source: str) -> str:
    try:
        check_source(source)
    except ValueError as error:
        raise Undecodable(str(error)) from error
    return source


Decoder = Callable[[bytes, dict[str, bytes]], Record]


def _find_decoder(value: bytes) -> tuple[str, Decoder]:
    """Name of the format and its decoder."""
    for place, magic, decoder in DECODERS:
        if value[place : place + len(magic)] == magic:
            return magic.strip(b"\x93").decode("ascii"), decoder
    raise Undecodable(f"the value is of no known format, it begins with {_quote(value[:8])}")


DA00 = da00.Reader()


def _decode_da00(value: bytes, headers: dict[str, bytes]) -> Lumisection:
    source, time_ns, variables = DA00.read(value)
    if missing := {"occupancy", "run", "lumisection"} - variables.keys():
        raise Undecodable(f"no variable {', '.join(sorted(missing))}")
    occupancy = variables["occupancy"]
    if occupancy.axes not in MAP_AXES:
        raise Undecodable(f"occupancy has the axes {occupancy.axes}, not (ieta, iphi) or (depth, ieta, iphi)")
    if occupancy.unit != "count":
        raise Undecodable(f"occupancy has the unit {occupancy.unit!r}, not 'count'")
    return Lumisection(
        run=_number(variables["run"]),
        lumisection=_number(variables["lumisection"]),
        occupancy=occupancy.data,
        time_ns=time_ns,
        n_events=_scalar(variables.get("n_events")),
        pileup=_scalar(variables.get("pileup")),
        source=_check_source(source),
    )


def _number(variable: da00.Variable) -> int:
    if variable.data.size != 1 or variable.axes or variable.data.dtype.kind not in "iu":
        raise Undecodable(f"{variable.name} is not one whole number")
    return int(variable.data.item())


def _scalar(variable: da00.Variable | None) -> float:
    if variable is None:
        return nan
    if variable.data.size != 1 or variable.axes or variable.data.dtype != np.float64:
        raise Undecodable(f"{variable.name} is not one float64")
    return _plain(float(variable.data.item()))


def _plain(number: float) -> float:
    """The number with one zero and one NaN, whatever sign or payload it came with: both are part of a row's content."""
    return nan if isnan(number) else number + 0.0


def _decode_npy(value: bytes, headers: dict[str, bytes]) -> Lumisection:
    """A .npy file as a message; headers `run` and `lumisection` in ASCII, `n_events`, `pileup`, `source` where known."""
    if value[6:8] not in (b"\x01\x00", b"\x02\x00"):
        raise Undecodable(f"NumPy format {_quote(value[6:8])}")
    start = 10 if value[6] == 1 else 12
    stop = start + int.from_bytes(value[8:start], "little")
    header = NPY_HEADER.fullmatch(value[start:stop])
    if header is None or header["fortran"] == b"True":
        raise Undecodable(f"an array that is no occupancy map: {_quote(value[start:stop])}")
    dtype = np.dtype(header["dtype"].decode("ascii"))
    shape = tuple(int(length) for length in header["shape"].split(b",") if length.strip())
    if len(value) - stop != prod(shape) * dtype.itemsize:  # before anything of the size that the header claims is made
        raise Undecodable(f"the header says {shape} of {dtype}, {len(value) - stop} bytes follow")
    if missing := {"run", "lumisection"} - headers.keys():
        raise Undecodable(f"no header {', '.join(sorted(missing))}")
    return Lumisection(
        run=_read_whole("header run", headers["run"]),
        lumisection=_read_whole("header lumisection", headers["lumisection"]),
        occupancy=np.frombuffer(value, dtype, offset=stop).reshape(shape),
        n_events=_read_real("header n_events", headers.get("n_events", b"nan")),
        pileup=_read_real("header pileup", headers.get("pileup", b"nan")),
        source=_check_source(_read_text("header source", headers.get("source", b""))),
    )


def _read_text(name: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Undecodable(f"{name} is {_quote(text)}, not UTF-8") from error


def _read_whole(name: str, text: bytes) -> int:
    """Digits and nothing else: Python's own reading takes spaces, signs, underscores and other scripts too."""
    if WHOLE.fullmatch(text) is None:
        raise Undecodable(f"{name} is {_quote(text)}, not a whole number")
    return int(text)


def _read_real(name: str, text: bytes) -> float:
    if REAL.fullmatch(text) is None:
        raise Undecodable(f"{name} is {_quote(text)}, not a real number")
    return _plain(float(text))


def _decode_pl72(value: bytes, headers: dict[str, bytes]) -> RunStart:
    start = deserialise_pl72(value)
    return RunStart(_read_whole("run_name", (start.run_name or "").encode()), start.start_time * NS_PER_MS)


def _decode_6s4t(value: bytes, headers: dict[str, bytes]) -> RunStop:
    stop = deserialise_6s4t(value)
    return RunStop(_read_whole("run_name", (stop.run_name or "").encode()), stop.stop_time * NS_PER_MS)


DECODERS: tuple[tuple[int, bytes, Decoder], ...] = (
    (4, b"da00", _decode_da00),
    (4, b"pl72", _decode_pl72),
    (4, b"6s4t", _decode_6s4t),
    (0, b"\x93NUMPY", _decode_npy),
)
"""(place of the magic, magic, decoder); another format is one more line."""
