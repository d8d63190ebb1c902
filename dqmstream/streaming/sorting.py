"""What a message becomes in the archive: a row, a run start or stop, or a dead letter with its reason.

`Sorter.entry` decides for one message. Under load hundreds of messages wait, and nearly all are da00 buffers that differ in
their values alone: `Sorter.rows` takes those as one table, a row each, in a third of the time. Both apply the same rules
(`lumisection.row_faults`). Messages that `rows` does not return go through `entry`, which knows the reason and multiplies
shares of events back into counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from dqmstream.lumisection import MAX_EVENTS, Lumisection, RunStart, are_shares, row_faults, sound_rows
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control, Row, make_row, row_of
from dqmstream.storage.layout import ControlKind, Quality
from dqmstream.storage.scale import counts_of_shares, whole_rows
from dqmstream.streaming import wire
from dqmstream.streaming.message import Message
from dqmstream.streaming.source_agreement import other_source
from dqmstream.streaming.wire import Undecodable, da00, da00_buffer
from dqmstream.streaming.wire.envelope import check_envelope, check_key
from dqmstream.streaming.wire.fields import NS_PER_MS

FEWEST_IN_TABLE = 8
"""Messages of one length for which a table is faster."""

TABLE_BYTES = 2**20
"""Size of a table, so that it stays in the processor's cache; it has one message at least."""


class Sorter:
    """Sorts messages for one archive. max_events: most events that a lumisection can have."""

    def __init__(self, archive: Archive, *, crc_required: bool, max_events: float = MAX_EVENTS) -> None:
        wire.check_decoders()
        self._geometry, self._dtype = archive.geometry, archive.dtype
        self._crc_required = crc_required
        self._max_events = max_events

    def entry(self, message: Message, source: str = "") -> Row | Control:
        """The message's entry. Raises Undecodable or ValueError, with the reason, where it has none.

        source: of the archive; no row is made of a lumisection that names another one. Empty where it is not known yet.
        """
        record = wire.decode(message, crc_required=self._crc_required)
        if not isinstance(record, Lumisection):
            kind = ControlKind.START if isinstance(record, RunStart) else ControlKind.STOP
            return Control(message.offset, message.offset + 1, kind, record.run)
        if source and record.source and record.source != source:
            raise Undecodable(other_source(record.source, source))
        record, quality = _in_counts(record)
        produced_ns = message.timestamp_ms * NS_PER_MS
        return make_row(
            record, message.offset, self._geometry, self._dtype, quality, produced_ns=produced_ns, max_events=self._max_events
        )

    def rows(self, messages: Sequence[Message], source: str = "") -> dict[int, Row]:
        """By offset, the rows of those messages that can be sorted together. source: as `entry` has it."""
        by_length: defaultdict[int, list[Message]] = defaultdict(list)
        for message in messages:
            if message.value:
                by_length[len(message.value)].append(message)
        found: dict[int, Row] = {}
        for size, group in by_length.items():
            if len(group) < FEWEST_IN_TABLE:
                continue
            step = max(TABLE_BYTES // size, 1)
            if (layout := self._layout_of_a_row(group[0], source)) is not None:
                for at in range(0, len(group), step):
                    self._add_rows(group[at : at + step], layout, found)
        return found

    def _layout_of_a_row(self, message: Message, source: str) -> da00_buffer.Layout | None:
        """The layout of a message that becomes a row: all that a layout fixes is right in other messages of it too."""
        try:
            row = self.entry(message, source)
        except (Undecodable, ValueError):
            return None
        assert message.value is not None
        layout = da00.READER.layout_of(message.value)
        # The first 8 bytes hold the magic. A layout does not fix them where values lie over them.
        return layout if isinstance(row, Row) and layout is not None and layout.fixes(8) else None

    def _add_rows(self, messages: list[Message], layout: da00_buffer.Layout, found: dict[int, Row]) -> None:
        """Add the rows of those messages that have this layout and break no rule."""
        table = da00_buffer.Table(layout, [message.value for message in messages if message.value])
        run, lumisection = table.column("run")[:, 0], table.column("lumisection")[:, 0]
        counts, time_ns = table.column("occupancy"), table.timestamps
        n_events, pileup = _reals(table, "n_events", len(messages)), _reals(table, "pileup", len(messages))
        faults = row_faults(
            run=run,
            lumisection=lumisection,
            time_ns=time_ns,
            counts=counts,
            n_events=n_events,
            pileup=pileup,
            dtype=self._dtype,
            max_events=self._max_events,
        )
        sound = table.alike & sound_rows(faults, len(messages))
        with np.errstate(all="ignore"):  # counts of rows that are not sound, which are not used
            stored = np.ascontiguousarray(counts, self._dtype.newbyteorder("<")).reshape(-1, *self._geometry.shape)
        whole = whole_rows(stored)
        numbers = (column.tolist() for column in (sound, whole, run, lumisection, time_ns, n_events, pileup))
        for message, is_sound, is_whole, a_run, a_lumisection, a_time_ns, events, mean_pileup, occupancy in zip(
            messages, *numbers, stored, strict=True
        ):
            if not is_sound:
                continue
            with suppress(Undecodable):
                check_key(message.key, a_run)
                check_envelope(message, crc_required=self._crc_required)
                found[message.offset] = row_of(
                    message.offset,
                    a_run,
                    a_lumisection,
                    occupancy,
                    a_time_ns,
                    events,
                    mean_pileup,
                    layout.source,
                    message.timestamp_ms * NS_PER_MS,
                    Quality.GOOD if is_whole else Quality.NOT_WHOLE,
                )


def _in_counts(record: Lumisection) -> tuple[Lumisection, Quality]:
    """The lumisection with shares of events multiplied back into counts, and flagged so. Raises ValueError where it cannot be.

    The wire carries counts; a producer that divides them by `n_events` is understood, as `import` understands its files.
    """
    shares = record.occupancy
    if shares.dtype.kind != "f" or not shares.size or not are_shares(shares.reshape(-1), shares.max()):
        return record, Quality.GOOD
    return replace(record, occupancy=counts_of_shares(shares, record.n_events)), Quality.FROM_SHARES


def _reals(table: da00_buffer.Table, name: str, count: int) -> np.ndarray:
    """A variable's numbers, float64, shape (count,), nan where it is left out; `fields.canonical` for many."""
    if not table.has(name):
        return np.full(count, np.nan)
    with np.errstate(all="ignore"):
        values = table.column(name)[:, 0] + 0.0
    return np.where(np.isnan(values), np.nan, values)
