"""The scale of a run's maps, decided over the whole run before anything is checked: shares of events become counts.

A file is written at one scale. Values that are not whole and never above 1 are shares of events; they are multiplied by the
events, or the run is refused. Other values that are not whole are filed as they are, and told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import MOST_SHARE, are_shares
from dqmstream.storage.imports.run_file import RunFile
from dqmstream.storage.scale import Scale, check_known, events_of_shares, whole_rows


def in_counts(data: RunFile, interpolated: bool) -> RunFile:
    """The run with its scale told, and multiplied back where its maps are shares of events.

    interpolated: rows lie between lumisections, so products need not be whole. Raises InputError, with file, lumisection and
    reason, for shares whose events are unknown or contradict them, and for a file of shares and of counts.
    """
    largest, whole, shares = np.zeros(data.size), np.ones(data.size, bool), np.zeros(data.size, bool)
    for start, block in data.pieces():
        flat = block.reshape(len(block), -1)
        here = slice(start, start + len(block))
        largest[here], whole[here] = flat.max(axis=1), whole_rows(flat)
        shares[here] = are_shares(flat, largest[here])
    if not shares.any() or np.isnan(largest).any() or (interpolated and largest.max() > MOST_SHARE):
        return _told(data, interpolated, whole)
    if largest.max() > MOST_SHARE:
        with _refusing(data, np.flatnonzero(shares)):
            raise ValueError(
                f"its largest value is {largest[np.argmax(shares)]:.6g} and not whole, as of shares of events, and other maps "
                f"of the file count up to {largest.max():.6g}: give counts throughout; where rows are interpolated, say so "
                "(--interpolated)"
            )
    return _multiplied(data, interpolated, largest)


def _told(data: RunFile, interpolated: bool, whole: np.ndarray) -> RunFile:
    if interpolated:
        return replace(data, scale=Scale.INTERPOLATED)
    if whole.all():
        return data
    note = (
        f"{int((~whole).sum())} of {data.size} maps hold values that are not whole: they are scaled by an unknown factor, or "
        "interpolated (then give --interpolated). They are filed as they are; errors of such counts are off by the root of the "
        "factor"
    )
    return replace(data, scale=Scale.NOT_WHOLE, notes=(*data.notes, note))


def _multiplied(data: RunFile, interpolated: bool, largest: np.ndarray) -> RunFile:
    """The run whose maps are counts, from shares. largest: the largest share of each map, (n,)."""
    unknown = np.flatnonzero((largest > 0) & ~(data.events > 0))
    if unknown.size:
        with _refusing(data, unknown):
            check_known(largest[unknown[0]], float(data.events[unknown[0]]))
    events, off = np.where(largest > 0, data.events, 0.0), 0.0
    for start, block in () if interpolated else data.pieces():
        for k, shares in enumerate(block, start):
            with _refusing(data, np.array([k])):
                events[k], off_here = events_of_shares(shares, float(data.events[k]))
            off = max(off, off_here)
    moved = events[(events > 0) & (events != data.events)]
    note = "shares of events were multiplied by the events: " + (
        "interpolated, so the counts are not whole" if interpolated else f"the counts are whole within {off:.1g}"
    )
    if moved.size:
        note += f"; for {moved.size} maps, by the whole number next to the events that are given"
    scale = Scale.INTERPOLATED if interpolated else Scale.SHARES
    return replace(data, scale=scale, times=events, off_whole=None if interpolated else off, notes=(*data.notes, note))


@contextmanager
def _refusing(data: RunFile, places: np.ndarray) -> Iterator[None]:
    """Turn a ValueError about the first of these lumisections into an InputError that names it, and how many more there are."""
    try:
        yield
    except ValueError as error:
        others = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        run = f", run {data.run}" if data.run else ""
        where = f"{data.name}{run}, lumisection {data.lumisection[places[0]]}{others}"
        raise InputError(f"{where}: {error}") from error
