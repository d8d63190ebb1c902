"""Checks of one log: its maps against their hashes, values that no row can have, and offsets that each occur once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from dqmstream.lumisection import MAX_NUMBER, are_shares, check_counts, check_plausible, content_hash
from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.layout import ANY_QUALITY, ROWS_PER_CHUNK, ControlKind, Quality
from dqmstream.storage.maintenance.findings import UNREADABLE, Finding, ReadableTable, line_of, numbered, read_table

CHUNKS_AT_ONCE = 4


@dataclass
class LogCheck:
    """A partition's log as far as it can be read, and what is wrong with it.

    name: feed/partition. findings, implausible: lists to which findings are added.
    """

    name: str
    group: zarr.Group
    findings: list[Finding]
    max_events: float
    implausible: list[Finding]
    rows: ReadableTable = field(default_factory=ReadableTable)
    control: ReadableTable = field(default_factory=ReadableTable)

    def read(self, archive: Archive) -> None:
        """Read all columns except the maps."""
        wanted = {name: value for name, value in layout.ROW_COLUMNS.items() if _expected(name, archive)}
        self.rows = read_table(self.group, wanted, self.name, "row", self.findings, ("occupancy",))
        self.control = read_table(self.group, layout.CONTROL_COLUMNS, self.name, "entry", self.findings, (), "control/")

    def find(self, what: str) -> None:
        """Add a finding about the log as a whole."""
        self.findings.append(Finding(self.name, what))

    def rows_at(self, first: int, last: int) -> str:
        """Name of rows first..last in a finding, with the lumisection of the first."""
        columns, known = self.rows.columns, self.rows.both("run", "lumisection")
        named = f" (run {columns['run'][first]}, lumisection {columns['lumisection'][first]})" if known[first] else ""
        return f"{self.name} {numbered('row', first, last)}{named}"

    def tell(self, wrong: np.ndarray, what: str) -> None:
        """Add a finding for each stretch of consecutive rows that are wrong: bool, (rows,)."""
        self.findings += [Finding(self.rows_at(first, last), what) for first, last in _spans(np.flatnonzero(wrong))]

    def check_maps(self, archive: Archive) -> Iterator[int]:
        """Read every map and compare its hash with `content`. Yields the number of rows read, piece by piece."""
        array = self.group.get("occupancy")
        if not isinstance(array, zarr.Array) or array.shape[1:] != archive.geometry.shape or array.dtype != archive.dtype:
            self.find(f"occupancy is not {archive.dtype} of shape (row, *{archive.geometry.shape})")
            return
        hashed = self.rows.both("n_events", "pileup", "content")
        altered = np.zeros(self.rows.size, bool)
        for start in range(0, self.rows.size, CHUNKS_AT_ONCE * ROWS_PER_CHUNK):
            stop = min(start + CHUNKS_AT_ONCE * ROWS_PER_CHUNK, self.rows.size)
            for first, block in self._blocks(array, start, stop):
                self._check_values(block, first, archive.dtype)
                self._check_plausible(block, first)
                for row in np.flatnonzero(hashed[first : first + len(block)]).tolist():
                    n_events, pileup = (float(self.rows.columns[name][first + row]) for name in ("n_events", "pileup"))
                    altered[first + row] = (
                        content_hash(block[row], n_events, pileup) != self.rows.columns["content"][first + row]
                    )
            yield stop - start
        self.tell(altered, "map, n_events or pileup is not what was filed: `content` differs")

    def _blocks(self, array: zarr.Array[Any], start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Rows start..stop in one piece. If they cannot be read, chunk by chunk, without the chunks that cannot be read."""
        try:
            blocks = [(start, np.asarray(array[start:stop]))]
        except UNREADABLE:
            blocks = []
            for first in range(start, stop, ROWS_PER_CHUNK):
                last = min(first + ROWS_PER_CHUNK, stop)
                try:
                    blocks.append((first, np.asarray(array[first:last])))
                except UNREADABLE as error:
                    self.findings.append(Finding(self.rows_at(first, last - 1), f"occupancy cannot be read: {line_of(error)}"))
        yield from blocks

    def _check_values(self, block: np.ndarray, first: int, dtype: np.dtype) -> None:
        try:
            check_counts(block, dtype)
        except ValueError:
            for row, counts in enumerate(block):
                try:
                    check_counts(counts, dtype)
                except ValueError as error:
                    self.findings.append(Finding(self.rows_at(first + row, first + row), str(error)))

    def _check_plausible(self, block: np.ndarray, first: int) -> None:
        here = slice(first, first + len(block))
        conditions = [np.where(self.rows.known[n][here], self.rows.columns[n][here], np.nan) for n in ("n_events", "pileup")]
        largest = block.reshape(len(block), -1).max(axis=1)
        shares = are_shares(block.reshape(len(block), -1), largest)
        shares &= ~(self.rows.known["quality"][here] & ((self.rows.columns["quality"][here] & Quality.INTERPOLATED) != 0))
        values = zip(largest.tolist(), shares.tolist(), *(c.tolist() for c in conditions), strict=True)
        for row, (high, is_share, n_events, pileup) in enumerate(values):
            try:
                check_plausible(high, n_events, pileup, self.max_events)
                if is_share:
                    raise ValueError(f"occupancy holds shares of events, not counts: the largest value is {high:.6g}")
            except ValueError as error:
                self.implausible.append(Finding(self.rows_at(first + row, first + row), str(error)))

    def check_rows(self) -> None:
        """Find values that no row can have, and offsets that do not increase."""
        columns, known = self.rows.columns, self.rows.known
        for name in ("run", "lumisection"):
            self.tell(known[name] & ((columns[name] < 1) | (columns[name] > MAX_NUMBER)), f"{name} is not in 1..{MAX_NUMBER}")
        for name in ("n_events", "pileup"):
            fine = np.isnan(columns[name]) | ((columns[name] >= 0) & np.isfinite(columns[name]))
            self.tell(known[name] & ~fine, f"{name} is negative or infinite")
        unknown_flags = columns["quality"] & ~np.uint8(ANY_QUALITY)
        self.tell(known["quality"] & (unknown_flags != 0), "quality has a flag that means nothing")
        there = np.flatnonzero(known["offset"])
        falls = np.zeros(self.rows.size, bool)
        falls[there[1:][np.diff(columns["offset"][there]) <= 0]] = True
        self.tell(falls, "offset is not above that of the row before")

    def check_tiling(self) -> None:
        """Find offsets of [first_offset, next_offset) that rows and control entries do not cover, or cover twice."""
        entries, known = self.control.columns, self.control.both("offset", "until", "kind")
        start, until = entries["offset"][known], entries["until"][known]
        for entry in np.flatnonzero(known)[(until <= start) | ~np.isin(entries["kind"][known], list(ControlKind))].tolist():
            self.findings.append(
                Finding(f"{self.name} control entry {entry}", "it covers no offset, or its kind means nothing")
            )
        first, following = self.group.attrs.get("first_offset"), self.group.attrs.get("next_offset")
        if not isinstance(first, int) or not isinstance(following, int):
            self.find("first_offset or next_offset is missing")
            return
        offsets = self.rows.columns["offset"][self.rows.known["offset"]]
        starts, ends = np.concatenate([offsets, start]), np.concatenate([offsets + 1, until])
        order = np.lexsort((ends, starts))
        starts = np.append(starts[order], following)
        reached = np.maximum.accumulate(np.concatenate([[first], ends[order]]))
        excused = self._unread_offsets(first, following)
        for place in np.flatnonzero(starts != reached).tolist():
            begins, at = int(starts[place]), int(reached[place])
            if begins > at:
                if not any(low <= at and begins <= high for low, high in excused):
                    self.find(f"{numbered('offset', at, begins - 1)} in no row and no control entry")
            elif place == len(starts) - 1:
                self.find(f"{numbered('offset', begins, at - 1)} at or past next_offset {following}")
            elif begins < first:
                self.find(f"offset {begins} lies before first_offset {first}")
            else:
                self.find(f"offset {begins} is covered twice")

    def _unread_offsets(self, first: int, following: int) -> list[tuple[int, int]]:
        """Offsets [low, high) that contain those of unreadable rows and entries, so that these are not also found as gaps."""
        if not self.control.both("offset", "until", "kind").all():
            return [(first, following)]
        offsets, known = self.rows.columns["offset"], self.rows.known["offset"]
        return [
            (
                int(offsets[low - 1]) + 1 if low else first,
                int(offsets[high + 1]) if high + 1 < self.rows.size else following,
            )
            for low, high in _spans(np.flatnonzero(~known))
        ]


def _expected(column: str, archive: Archive) -> bool:
    """Whether the archive's layout version has the column."""
    return layout.SINCE_VERSION.get(column, 1) <= archive.layout_version


def _spans(places: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of each stretch of consecutive numbers among ascending ones."""
    for stretch in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
        if len(stretch):
            yield int(stretch[0]), int(stretch[-1])
