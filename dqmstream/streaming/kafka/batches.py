"""The batches in a fetched buffer, each checked to lie where it claims to.

A batch's checksum does not cover its base offset, length and magic. So a batch must also lie behind the one before it, ahead
of the one after it, and below the partition's end. How far a damaged batch reaches is told by the sound batch behind it, and
by its own header only where no such batch was fetched.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

from dqmstream.streaming.kafka.old_formats import OldBatch
from dqmstream.streaming.kafka.workarounds.untrusted_records import Batch

PREFIX = struct.Struct(">qi4xb")
"""Base offset, length of what follows, and the format (magic): at the same place in all formats."""

DELTA = struct.Struct(">i")
DELTA_AT = 23
"""In format 2: place of the last offset minus the base offset."""

PREFIX_BYTES = 12
"""Base offset and length; the length does not count them."""

HEADER_BYTES = DefaultRecordBatch.HEADER_STRUCT.size
MAGIC_AT = 16
MAGIC = 2
LEAST_BYTES = {0: 14, 1: 22, MAGIC: HEADER_BYTES - PREFIX_BYTES}
"""Smallest length, by format."""


class _Span(NamedTuple):
    """Where a batch lies by its own header: bytes [at, until) of the buffer, offsets first to last.

    The header of formats 0 and 1 has the last offset only; first is the same.
    """

    at: int
    until: int
    first: int
    last: int
    magic: int


class Batches:
    """The batches in a fetched buffer.

    start: the offset that was asked for. end: the partition's end as the broker told it, None if it did not.
    """

    def __init__(self, buffer: bytes, start: int, end: int | None) -> None:
        self._buffer = bytes(buffer)
        self._view = memoryview(self._buffer)
        self._expected = start
        self._end = 2**63 if end is None else end
        self._at = 0
        self._next = 0
        self._in_place = False

    def next_batch(self) -> Batch | OldBatch | None:
        """The next batch, None behind the last whole one. Raises CorruptRecordError where it lies in a wrong place."""
        self._at, self._in_place = self._next, False
        left = len(self._buffer) - self._at
        leads = self._at == 0  # the broker may cut any batch but the first, which may begin before the offset asked for
        if left == 0:
            return None
        span = self._span_at(self._at)
        if span is None:
            if left < HEADER_BYTES and not leads:
                return None
            raise CorruptRecordError(f"no batch begins where offset {self._expected} should be")
        if span.until > len(self._buffer):
            if not leads:
                return None
            raise CorruptRecordError(f"the batch of offset {self._expected} has {left} of {span.until - span.at} bytes")
        if (
            (span.last if leads else span.first) < self._expected
            or not span.first <= span.last < self._end
            or (span.first > self._expected and self._runs_into_next(span))
        ):
            raise CorruptRecordError(f"a batch claims offsets {span.first} to {span.last} where {self._expected} should be")
        self._next, self._expected, self._in_place = span.until, span.last + 1, True
        return self._batch(span)

    def skip(self, start: int) -> int:
        """Go on behind the batch that could not be read. start: its first offset; returns the first offset behind it."""
        span = self._span_at(self._at)
        if span is not None and self._in_place and self._is_sound(span):
            return span.last + 1
        for behind in self._candidates():
            if start < behind.first <= behind.last < self._end and (first := self._first(behind)) > start:
                self._next, self._expected = behind.at, first
                return first
        self._next = len(self._buffer)
        return span.last + 1 if span is not None and start <= span.last < self._end else start + 1

    def _first(self, span: _Span) -> int:
        """The batch's first offset; a batch of an old format must be unpacked for it, -1 where that fails."""
        batch = self._batch(span)
        if isinstance(batch, Batch):
            return span.first
        try:
            return batch.first_offset()
        except CorruptRecordError:
            return -1

    def _runs_into_next(self, span: _Span) -> bool:
        behind = self._span_at(span.until)
        return behind is not None and behind.first <= span.last and self._is_sound(behind)

    def _candidates(self) -> Iterator[_Span]:
        """Where the next batch may begin: where the damaged one ends by its own length, else wherever a sound one is found.

        Batches of old formats are found in the first way only: no byte of them is rare enough to search for.
        """
        length = int.from_bytes(self._buffer[self._at + 8 : self._at + PREFIX_BYTES], "big")
        framed = self._span_at(self._at + PREFIX_BYTES + length)
        if framed is not None:
            was_cut = framed.until > len(self._buffer) and self._span_at(self._at) is not None
            if was_cut or self._is_sound(framed):
                yield framed
        found = self._buffer.find(MAGIC, self._at + 1 + MAGIC_AT)
        while found >= 0:
            span = self._span_at(found - MAGIC_AT)
            if span is not None and span.until <= len(self._buffer) and self._is_sound(span):
                yield span
            found = self._buffer.find(MAGIC, found + 1)

    def _span_at(self, at: int) -> _Span | None:
        """The batch that begins there by its header, None if there is no header."""
        if at + PREFIX_BYTES + LEAST_BYTES[0] > len(self._buffer):
            return None
        first, length, magic = PREFIX.unpack_from(self._buffer, at)
        if length < LEAST_BYTES.get(magic, 2**31):
            return None
        if magic < MAGIC:
            return _Span(at, at + PREFIX_BYTES + length, first, first, magic)
        if at + DELTA_AT + 4 > len(self._buffer):
            return None
        (delta,) = DELTA.unpack_from(self._buffer, at + DELTA_AT)
        return _Span(at, at + PREFIX_BYTES + length, first, first + delta, magic)

    def _is_sound(self, span: _Span) -> bool:
        """Whether the batch lies in the buffer and its checksum is right."""
        return span.until <= len(self._buffer) and self._batch(span).validate_crc()

    def _batch(self, span: _Span) -> Batch | OldBatch:
        made = Batch if span.magic == MAGIC else OldBatch
        return made(self._view[span.at : span.until])
