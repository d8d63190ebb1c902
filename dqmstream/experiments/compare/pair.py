"""Two runs checked against each other, as samples of the same channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.compare.run_counts import RunCounts, is_file, read_run
from dqmstream.experiments.compare.samples import Channels, Sample
from dqmstream.storage.archive import Archive
from dqmstream.storage.scale import Scale

MIN_LUMISECTIONS = 5
"""Usable lumisections that a run needs (times 25 if rows were interpolated)."""

MIN_WITH_EVENTS = 0.9
"""The numbers of events are used only if they are known for this share of a run's lumisections."""

_FEW_ROWS = 512
"""Lumisections that are looked at for fractional counts."""

ROUNDING = 1e-6
"""Relative tolerance: counts are float32 and events float64, so a channel that fires in every event may seem to exceed them."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs ready to be compared.

    runs: their numbers, None if unknown. names: for messages, such as the file, or run and archive. lumisections: as many as
    each run has; `dark`: how many of these are left out of the samples, because nothing counted or events are unknown.
    counts_events: the numbers of events are known and used. notes: warnings about the inputs. values: what those of each run
    are as they came (`storage.scale`).
    """

    runs: tuple[int | None, int | None]
    names: tuple[str, str]
    lumisections: tuple[int, int]
    dark: tuple[int, int]
    channels: Channels
    samples: tuple[Sample, Sample]
    counts_events: bool
    notes: list[str]
    values: tuple[Scale, Scale] = (Scale.COUNTS, Scale.COUNTS)


def read_pair(a: str, b: str, archive: Path | None, interpolated: bool) -> Pair:
    """Read two runs, each given as a file or, with an archive, as a run number.

    interpolated: rows of the files were interpolated (an archive records it itself). Raises InputError for files that cannot be
    used or compared, ArchiveError for a run that the archive does not hold.
    """
    reader = None if archive is None or (is_file(a) and is_file(b)) else Archive.open(archive)
    return pair_of(read_run(a, reader, interpolated), read_run(b, reader, interpolated))


def pair_of(first: RunCounts, second: RunCounts) -> Pair:
    """Make samples of the channels that count in either run. Raises InputError if the runs cannot be compared."""
    both = (first, second)
    if first.depths != second.depths:
        raise InputError(
            f"{first.name} has {first.depths} depth(s) and {second.name} has {second.depths}: give runs of one shape"
        )
    alive = [one.live() for one in both]
    for one, live in zip(both, alive, strict=True):
        if not live.any():
            raise InputError(f"{one.name} holds no count at all: give a run in which channels counted")
    channels = Channels(alive[0] | alive[1])
    counts = [one.of(channels.live) for one in both]
    if counts[0].shape == counts[1].shape and np.array_equal(counts[0], counts[1]):
        raise InputError(f"{first.name} and {second.name} hold the same counts: give two runs")
    notes = []
    if first.run is not None and first.run == second.run:
        notes.append(f"Both are run {first.run}: p-values assume two different runs, so they mean nothing here.")
    if any(one.scale == 1 and _fractional(part) for one, part in zip(both, counts, strict=True)):
        notes.append(
            "Counts are not whole numbers. If rows were interpolated, as in the published files, give --interpolated; else the "
            "AUC is too high, since neighbours of the tested rows are trained on. If they are scaled by an unknown factor, "
            "errors are off by its root."
        )
    counts_events = _events_known(both, counts, notes)
    samples, dark = [], []
    for one, part in zip(both, counts, strict=True):
        lit = part.any(axis=1)
        kept = lit & (np.nan_to_num(one.events) > 0) if counts_events else lit
        dark.append(len(part) - int(kept.sum()))
        samples.append(Sample(part[kept], one.events[kept], one.lumisection[kept], one.scale))
        if kept.sum() < (least := MIN_LUMISECTIONS * one.scale):
            hint = " where rows are interpolated" if one.scale > 1 else ""
            raise InputError(
                f"{one.name} is too short: {int(kept.sum())} of its {len(part)} lumisections can be used, and a comparison "
                f"needs {least}{hint}; give a longer run"
            )
    return Pair(
        (first.run, second.run), (first.name, second.name), (len(counts[0]), len(counts[1])), (dark[0], dark[1]),
        channels, (samples[0], samples[1]), counts_events, notes, (first.values, second.values),
    )  # fmt: skip


def _fractional(counts: np.ndarray) -> bool:
    part = counts[:_FEW_ROWS]
    return not np.array_equal(part, np.round(part))


def _events_known(both: Sequence[RunCounts], counts: Sequence[np.ndarray], notes: list[str]) -> bool:
    """Whether the numbers of events are known for both runs and no channel exceeds them; a note is added if one run fails.

    Lumisections in which nothing counted are ignored here, since samples leave them out.
    """
    known = [np.nan_to_num(one.events) > 0 for one in both]
    enough = [has[part.any(axis=1)].mean() >= MIN_WITH_EVENTS for has, part in zip(known, counts, strict=True)]
    if not all(enough):
        if any(enough):
            without = both[enough.index(False)]
            notes.append(
                f"The numbers of events of {without.name} are not known, so those of the other run are not used either."
            )
        return False
    for one, part, has in zip(both, counts, known, strict=True):
        if (part[has].max(axis=1) > (1 + ROUNDING) * one.events[has]).any():
            notes.append(f"Channels of {one.name} count more than its numbers of events, so these numbers are not used.")
            return False
    return True
