"""Messages as records: the format is found by its magic bytes, the value is checked, then decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dqmstream.lumisection import Lumisection, Record, RunStart, RunStop, number_faults, raise_fault, time_faults
from dqmstream.streaming.message import Message
from dqmstream.streaming.wire.da00 import decode_da00
from dqmstream.streaming.wire.encoding import encode
from dqmstream.streaming.wire.envelope import check_envelope, check_key
from dqmstream.streaming.wire.fields import NS_PER_MS
from dqmstream.streaming.wire.npy import decode_npy
from dqmstream.streaming.wire.run_control import decode_6s4t, decode_pl72
from dqmstream.streaming.wire.undecodable import Undecodable, quote

DAMAGE = (ValueError, struct.error, IndexError, KeyError, TypeError, AttributeError, OverflowError)
"""What decoders raise for a damaged value. No other exception, such as MemoryError, is the message's fault."""


class Format(NamedTuple):
    """A wire format: its magic bytes lie at `place` of the value.

    decode: the record of a value and its headers; raises Undecodable, or one of DAMAGE. Whatever the value claims, it must
    make nothing larger than the value, and must not unpickle or evaluate it.
    """

    name: str
    place: int
    magic: bytes
    decode: Callable[[bytes, dict[str, bytes]], Record]


FORMATS = (
    Format("da00", 4, b"da00", decode_da00),
    Format("pl72", 4, b"pl72", decode_pl72),
    Format("6s4t", 4, b"6s4t", decode_6s4t),
    Format("NUMPY", 0, b"\x93NUMPY", decode_npy),
)
"""Every format that is decoded; another one is another line here."""


def decode(message: Message, *, crc_required: bool = True) -> Record:
    """The record in a message. Maps are read-only views of the value, which is compared with its checksum first.

    Raises Undecodable, with the reason. An error that is not the message's fault is raised as it is.
    """
    value, headers = check_envelope(message, crc_required=crc_required)
    found = _find_format(value)
    try:
        record = found.decode(value, headers)
    except DAMAGE as error:
        raise Undecodable(f"the value is damaged, it cannot be read as {found.name}: {error}") from error
    try:
        raise_fault(number_faults(record.run, record.lumisection if isinstance(record, Lumisection) else 1))
        raise_fault(time_faults(record.time_ns))
    except ValueError as error:
        raise Undecodable(str(error)) from error
    check_key(message.key, record.run)
    return record


def _find_format(value: bytes) -> Format:
    for found in FORMATS:
        if value[found.place : found.place + len(found.magic)] == found.magic:
            return found
    raise Undecodable(f"the value is of no known format, it begins with {quote(value[:8])}")


def check_decoders() -> None:
    """Raise RuntimeError unless records that are encoded here are decoded to the same.

    Call it before the first message is decoded. A library that has changed raises much the same errors as a damaged value,
    and would turn every message into a dead letter.
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
