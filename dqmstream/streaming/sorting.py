"""What a message becomes in the archive: a row, a run's start or stop, or nothing, with the reason.

Under load hundreds of messages wait, and nearly all are da00 buffers that differ in nothing but their values. `Sorter.rows`
takes those as one table, a row each, and looks at all of them at once, in a third of the time, half of which is the hash. It
is a short cut and decides nothing by itself: what it does not take goes through `Sorter.entry`, which has every rule and
every reason, and what it takes becomes the row that `entry` would make.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from dqmstream.lumisection import MAX_EVENTS, MAX_NUMBER, MAX_PILEUP, Lumisection, RunStart, content_hash, most_counts
from dqmstream.storage.archive import Archive
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.writer import LATEST_NS, Control, Row, make_row
from dqmstream.streaming import wire
from dqmstream.streaming.message import Message
from dqmstream.streaming.wire import Undecodable, da00, da00_buffer
from dqmstream.streaming.wire.decoding import MAX_TIME_NS
from dqmstream.streaming.wire.envelope import check_envelope
from dqmstream.streaming.wire.fields import NS_PER_MS

FEWEST = 8
"""Messages of one length that are worth the short cut."""

TABLE_BYTES = 2**20
"""Of a table, so that it stays in the processor's cache while it is looked at; it has one message at least."""


class Sorter:
    """What messages become in this archive. max_events: the most that a lumisection can have."""

    def __init__(self, archive: Archive, *, crc_required: bool, max_events: float = MAX_EVENTS) -> None:
        wire.check_decoders()
        self._geometry, self._dtype = archive.geometry, archive.dtype
        self._crc_required = crc_required
        self._max_events = max_events

    def entry(self, message: Message) -> Row | Control:
        """The message's entry. Raises Undecodable or ValueError, with the reason, where it is none."""
        record = wire.decode(message, crc_required=self._crc_required)
        if not isinstance(record, Lumisection):
            kind = ControlKind.START if isinstance(record, RunStart) else ControlKind.STOP
            return Control(message.offset, message.offset + 1, kind, record.run)
        produced_ns = message.timestamp_ms * NS_PER_MS
        return make_row(
            record, message.offset, self._geometry, self._dtype, produced_ns=produced_ns, max_events=self._max_events
        )

    def rows(self, messages: Sequence[Message]) -> dict[int, Row]:
        """By offset, the rows of those messages that could be taken together."""
        alike: defaultdict[int, list[Message]] = defaultdict(list)
        for message in messages:
            if message.value:
                alike[len(message.value)].append(message)
        found: dict[int, Row] = {}
        for size, group in alike.items():
            if len(group) < FEWEST:
                continue
            step = max(TABLE_BYTES // size, 1)
            if (pattern := self._pattern(group[0])) is not None:
                for at in range(0, len(group), step):
                    self._take(group[at : at + step], *pattern, found)
        return found

    def _pattern(self, message: Message) -> tuple[da00_buffer.Layout, Row] | None:
        """The layout of a message that became a row, and the row: all that is fixed by a layout is right in others too."""
        try:
            row = self.entry(message)
        except (Undecodable, ValueError):
            return None
        assert message.value is not None
        layout = da00.READER.layout_of(message.value)
        # Magic and root lie in the first 8 bytes, which a layout does not fix where values lie over them.
        return (layout, row) if isinstance(row, Row) and layout is not None and layout.fixes(8) else None

    def _take(self, messages: list[Message], layout: da00_buffer.Layout, pattern: Row, found: dict[int, Row]) -> None:
        """Add the rows of these messages, where they are laid out so and hold what can be stored."""
        table = da00_buffer.Table(layout, [message.value for message in messages if message.value])
        with np.errstate(all="ignore"):  # of what is not sound, which is not used
            self._take_sound(messages, table, pattern, found)

    def _take_sound(self, messages: list[Message], table: da00_buffer.Table, pattern: Row, found: dict[int, Row]) -> None:
        run, lumisection = table.column("run")[:, 0], table.column("lumisection")[:, 0]
        counts, time_ns = table.column("occupancy"), table.timestamps
        sound = table.alike & (time_ns >= 0) & (time_ns <= MAX_TIME_NS)
        for number in (run, lumisection):
            sound &= (number >= 1) & (number <= MAX_NUMBER)
        reals = []
        for name, most in (("n_events", self._max_events), ("pileup", MAX_PILEUP)):
            real = table.column(name)[:, 0] + 0.0 if table.has(name) else np.full(len(messages), np.nan)
            unknown = np.isnan(real)
            sound &= unknown | ((real >= 0) & (real <= most))
            reals.append(np.where(unknown, np.nan, real))
        sound &= _are_storable(counts, self._dtype, most_counts(reals[0], self._max_events))
        stored = np.ascontiguousarray(counts, self._dtype.newbyteorder("<")).reshape(-1, *self._geometry.shape)
        numbers = (column.tolist() for column in (sound, run, lumisection, time_ns, *reals))
        columns = (messages, *numbers, stored)
        for message, is_sound, a_run, a_lumisection, a_time_ns, n_events, pileup, occupancy in zip(*columns, strict=True):
            if not is_sound or message.key not in (None, b"%d" % a_run):
                continue
            with suppress(Undecodable):
                check_envelope(message, crc_required=self._crc_required)
                produced_ns = message.timestamp_ms * NS_PER_MS
                found[message.offset] = Row(
                    offset=message.offset,
                    run=a_run,
                    lumisection=a_lumisection,
                    occupancy=occupancy,
                    content=content_hash(occupancy, n_events, pileup),
                    time_ns=a_time_ns,
                    n_events=n_events,
                    pileup=pileup,
                    source=pattern.source,
                    produced_ns=produced_ns if 0 < produced_ns <= LATEST_NS else 0,
                )


def _are_storable(counts: np.ndarray, dtype: np.dtype, most: np.ndarray) -> np.ndarray:
    """Of each row of counts, whether `lumisection.check_counts` takes it, and none is above `most`: bool, shape (n,).

    counts: shape (n, cells). most: float64, shape (n,), compared to what is stored.
    """
    low, high = counts.min(axis=1), counts.max(axis=1)
    limit = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
    sound = np.isfinite(low) & np.isfinite(high) & (low >= 0) & (high <= limit) & (high.astype(dtype) <= most)
    if dtype.kind == "u" and counts.dtype.kind == "f":
        sound &= (counts == np.floor(counts)).all(axis=1)
    return sound
