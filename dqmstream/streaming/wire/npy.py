"""The format npy: a file of NumPy's as the value, its numbers in headers."""

from __future__ import annotations

import re
from math import prod

import numpy as np

from dqmstream.lumisection import Lumisection
from dqmstream.streaming.wire.fields import checked_source, read_real, read_text, read_whole
from dqmstream.streaming.wire.undecodable import Undecodable, quote

NPY_HEADER = re.compile(
    rb"\{'descr': *'(?P<dtype>[<>|](?:[iu][1248]|f[48]))', *'fortran_order': *(?P<fortran>True|False), *"
    rb"'shape': *\((?P<shape>[0-9, ]{1,64})\),? *\} *\n?"
)
"""A header as NumPy writes it, of a real dtype. NumPy's own reader evaluates the header as Python."""


def decode_npy(value: bytes, headers: dict[str, bytes]) -> Lumisection:
    """Headers: `run` and `lumisection` in ASCII digits, `n_events`, `pileup` and `source` where known."""
    if value[6:8] not in (b"\x01\x00", b"\x02\x00"):
        raise Undecodable(f"NumPy format {quote(value[6:8])}")
    start = 10 if value[6] == 1 else 12
    stop = start + int.from_bytes(value[8:start], "little")
    header = NPY_HEADER.fullmatch(value[start:stop])
    if header is None or header["fortran"] == b"True":
        raise Undecodable(f"an array that is no occupancy map: {quote(value[start:stop])}")
    dtype = np.dtype(header["dtype"].decode("ascii"))
    shape = tuple(int(length) for length in header["shape"].split(b",") if length.strip())
    if len(value) - stop != prod(shape) * dtype.itemsize:  # nothing of the size that the header claims is made before this
        raise Undecodable(f"the header says {shape} of {dtype}, {len(value) - stop} bytes follow")
    if missing := {"run", "lumisection"} - headers.keys():
        raise Undecodable(f"no header {', '.join(sorted(missing))}")
    return Lumisection(
        run=read_whole("header run", headers["run"]),
        lumisection=read_whole("header lumisection", headers["lumisection"]),
        occupancy=np.frombuffer(value, dtype, offset=stop).reshape(shape),
        n_events=read_real("header n_events", headers.get("n_events", b"nan")),
        pileup=read_real("header pileup", headers.get("pileup", b"nan")),
        source=checked_source(read_text("header source", headers.get("source", b""))),
    )
