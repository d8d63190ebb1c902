"""The wire: how a lumisection, a run start and a run stop look as a message, and back.

Key: the run number in ASCII, so that a run stays in order in one partition. Header `crc32c`: the CRC32C of the value, 8
lower-case hexadecimal digits, since FlatBuffers do not notice damage. Values are looked up by their magic: da00, pl72 and
6s4t (ess-streaming-data-types) by the 4-byte id, NumPy's .npy by its first bytes. Nothing here unpickles.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from math import nan, prod

import numpy as np
from crc32c import crc32c
from streaming_data_types.dataarray_da00 import Variable, serialise_da00
from streaming_data_types.run_start_pl72 import deserialise_pl72, serialise_pl72
from streaming_data_types.run_stop_6s4t import deserialise_6s4t, serialise_6s4t

from dqmstream.lumisection import Lumisection, Record, RunStart, RunStop, check_numbers
from dqmstream.streaming import da00
from dqmstream.streaming.feed import Message

CRC_HEADER = "crc32c"
MAP_AXES = (["ieta", "iphi"], ["depth", "ieta", "iphi"])
NS_PER_MS = 1_000_000


class Undecodable(Exception):
    """A message that is not what it should be; the text is the reason that goes with it to the dead letters."""


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
    """The record in a message. Raises Undecodable with the reason.

    The checksum is compared before a byte of the value is believed. Maps are read-only views of the value.
    """
    if message.error:
        raise Undecodable(message.error)
    value = message.value
    if not value:
        raise Undecodable("the value is empty")
    headers = dict(message.headers)
    given = headers.get(CRC_HEADER)
    if given is None and crc_required:
        raise Undecodable(f"no header {CRC_HEADER}")
    if given is not None and given != checksum(value):
        raise Undecodable(f"header {CRC_HEADER} is {given!r}, the value's is {checksum(value)!r}")
    decoder = _find_decoder(value)
    try:
        record = decoder(value, headers)
        check_numbers(record.run, record.lumisection if isinstance(record, Lumisection) else 1)
    except Undecodable:
        raise
    except Exception as error:
        raise Undecodable(f"the value is damaged: {type(error).__name__}: {error}") from error
    if message.key is not None and message.key != str(record.run).encode("ascii"):
        raise Undecodable(f"the key is {message.key!r}, the value is of run {record.run}")
    return record


Decoder = Callable[[bytes, dict[str, bytes]], Record]


def _find_decoder(value: bytes) -> Decoder:
    for place, magic, decoder in DECODERS:
        if value[place : place + len(magic)] == magic:
            return decoder
    raise Undecodable(f"the value is of no known format, it begins with {value[:8]!r}")


_DA00 = da00.Reader()


def _decode_da00(value: bytes, headers: dict[str, bytes]) -> Lumisection:
    source, time_ns, variables = _DA00.read(value)
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
        source=source,
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
    return float(variable.data.item())


def _decode_npy(value: bytes, headers: dict[str, bytes]) -> Lumisection:
    """A .npy file as a message; headers `run` and `lumisection` in ASCII, `n_events`, `pileup`, `source` where known."""
    stream = io.BytesIO(value)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise Undecodable(f"NumPy format {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "iuf" or fortran:
        raise Undecodable(f"an array of {dtype}{' in Fortran order' if fortran else ''} is no occupancy map")
    data = value[stream.tell() :]
    if len(data) != prod(shape) * dtype.itemsize:  # before anything of the size that the header claims is made
        raise Undecodable(f"the header says {shape} of {dtype}, {len(data)} bytes follow")
    if missing := {"run", "lumisection"} - headers.keys():
        raise Undecodable(f"no header {', '.join(sorted(missing))}")
    return Lumisection(
        run=int(headers["run"]),
        lumisection=int(headers["lumisection"]),
        occupancy=np.frombuffer(data, dtype).reshape(shape),
        n_events=float(headers.get("n_events", b"nan")),
        pileup=float(headers.get("pileup", b"nan")),
        source=headers.get("source", b"").decode(),
    )


def _decode_pl72(value: bytes, headers: dict[str, bytes]) -> RunStart:
    start = deserialise_pl72(value)
    return RunStart(int(start.run_name), start.start_time * NS_PER_MS)


def _decode_6s4t(value: bytes, headers: dict[str, bytes]) -> RunStop:
    stop = deserialise_6s4t(value)
    return RunStop(int(stop.run_name), stop.stop_time * NS_PER_MS)


DECODERS: tuple[tuple[int, bytes, Decoder], ...] = (
    (4, b"da00", _decode_da00),
    (4, b"pl72", _decode_pl72),
    (4, b"6s4t", _decode_6s4t),
    (0, b"\x93NUMPY", _decode_npy),
)
"""(place of the magic, magic, decoder); another format is one more line."""
