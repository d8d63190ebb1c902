"""What `compare` reads: two runs, each a file in the original layout or a run of an archive, as samples of one geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.compare.conditions import Channels, Sample
from dqmstream.learners.splits import INTERPOLATED_SCALE
from dqmstream.learners.stream.ledger import scale_of
from dqmstream.lumisection import utf8
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.checking import read_run_file

_ROWS = 512

LEAST = 5
"""Lumisections of a run that a comparison needs (times 25 where rows were interpolated)."""

WITH_EVENTS = 0.9
"""Share of a run's lumisections whose number of events must be known, or the numbers are not used."""

ROUNDING = 1e-6
"""Counts are kept as float32 and events as float64: a channel that fires in every event may seem to count this share more."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs ready to be compared. runs: their numbers. names: the files, or run and archive.

    lumisections: in each run as read; samples leave out the `dark` ones, where nothing counted. counts_events: the numbers of
    events are known and used. notes: what a reader must know of the inputs.
    """

    runs: tuple[int, int]
    names: tuple[str, str]
    lumisections: tuple[int, int]
    dark: tuple[int, int]
    channels: Channels
    samples: tuple[Sample, Sample]
    counts_events: bool
    notes: list[str]


@dataclass(frozen=True, eq=False)
class RunCounts:
    """A run as it was read.

    counts: (n, 64, 72) or (n, depth, 64, 72), may be a memory map. events: (n,), nan where unknown. lumisection: numbers, (n,),
    ascending. scale: 25 where rows were interpolated, else 1.
    """

    run: int
    name: str
    counts: np.ndarray
    events: np.ndarray
    lumisection: np.ndarray
    scale: int

    @property
    def depths(self) -> int:
        return 1 if self.counts.ndim == 3 else int(self.counts.shape[1])

    def live(self) -> np.ndarray:
        """Cells that count at least once: bool, (depth, 64, 72)."""
        live = np.zeros(self.counts.shape[1:], dtype=bool)
        for start in range(0, len(self.counts), _ROWS):
            live |= (self.counts[start : start + _ROWS] > 0).any(axis=0)
        return live.reshape(self.depths, *live.shape[-2:])

    def of(self, live: np.ndarray) -> np.ndarray:
        """Counts of the live channels, float32, (n, live): a fifth of the file or less, which then is not needed again."""
        out = np.empty((len(self.counts), int(live.sum())), dtype=np.float32)
        for start in range(0, len(self.counts), _ROWS):
            part = np.asarray(self.counts[start : start + _ROWS])
            out[start : start + _ROWS] = part.reshape(len(part), *live.shape)[:, live]
        return out


def read_pair(a: str, b: str, archive: Path | None, interpolated: bool) -> Pair:
    """Read two runs, each named by a file or, with an archive, by its number.

    interpolated: rows of files were interpolated; an archive knows it of its own. Raises InputError for files that cannot be
    used or compared, ArchiveError for a run that the archive does not hold.
    """
    reader = None if archive is None or (_is_file(a) and _is_file(b)) else Archive.open(archive)
    return pair_of(_read(a, reader, interpolated), _read(b, reader, interpolated))


def pair_of(first: RunCounts, second: RunCounts) -> Pair:
    """Two runs as samples of the channels that count in either. Raises InputError if they cannot be compared."""
    both = (first, second)
    if first.depths != second.depths:
        raise InputError(
            f"{first.name} holds {first.depths} depth(s) and {second.name} {second.depths}: give runs of one shape"
        )
    alive = [one.live() for one in both]
    for one, live in zip(both, alive, strict=True):
        if not live.any():
            raise InputError(f"{one.name} holds no count at all: there is nothing to compare")
    channels = Channels(alive[0] | alive[1])
    counts = [one.of(channels.live) for one in both]
    if counts[0].shape == counts[1].shape and np.array_equal(counts[0], counts[1]):
        raise InputError(f"{first.name} and {second.name} hold the same counts: give two runs")
    notes = []
    if first.run == second.run:
        notes.append(f"Both are run {first.run}: what they share is no chance, and every p-value assumes two runs.")
    if any(one.scale == 1 and _fractional(part) for one, part in zip(both, counts, strict=True)):
        notes.append(
            "Counts are not whole. If rows were interpolated, as in the published files, give --interpolated: "
            "else neighbours of what is tested teach, and the AUC is flattered."
        )
    counts_events = _events_known(both, counts, notes)
    samples, dark = [], []
    for one, part in zip(both, counts, strict=True):
        lit = part.any(axis=1)
        kept = lit & (np.nan_to_num(one.events) > 0) if counts_events else lit
        dark.append(len(part) - int(kept.sum()))
        samples.append(Sample(part[kept], one.events[kept], one.lumisection[kept], one.scale))
        if kept.sum() < (least := LEAST * one.scale):
            hint = " where rows are interpolated" if one.scale > 1 else ""
            raise InputError(
                f"{one.name} is too short: {int(kept.sum())} of its {len(part)} lumisections can be used, and a comparison "
                f"needs {least}{hint}"
            )
    return Pair(
        (first.run, second.run), (first.name, second.name), (len(counts[0]), len(counts[1])), (dark[0], dark[1]),
        channels, (samples[0], samples[1]), counts_events, notes,
    )  # fmt: skip


def _is_file(name: str) -> bool:
    return not name.isdecimal() or Path(name).exists()


def _read(name: str, archive: Archive | None, interpolated: bool) -> RunCounts:
    if _is_file(name):
        path = Path(name)
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the .npy file of one run")
        data = read_run_file(path, interpolated=interpolated).data
        scale = INTERPOLATED_SCALE if interpolated else 1
        return RunCounts(data.run, utf8(path.name), data.all_maps(), data.events, data.lumisection, scale)
    if archive is None:
        raise InputError(f"there is no file {name}; to compare run {name} of an archive give --archive")
    view = archive.run(int(name))
    counts, events = view["occupancy"].values, view["n_events"].values
    return RunCounts(
        int(name), f"run {name} of {utf8(archive.path.name)}", counts, events, view["lumisection"].values, scale_of(view)
    )


def _fractional(counts: np.ndarray) -> bool:
    part = counts[:_ROWS]
    return not np.array_equal(part, np.round(part))


def _events_known(both: Sequence[RunCounts], counts: Sequence[np.ndarray], notes: list[str]) -> bool:
    """Whether the numbers of events are known of both runs and bound the counts; if of one only, a note says so.

    Lumisections in which nothing counted are left out anyway, and tell nothing.
    """
    known = [np.nan_to_num(one.events) > 0 for one in both]
    enough = [has[part.any(axis=1)].mean() >= WITH_EVENTS for has, part in zip(known, counts, strict=True)]
    if not all(enough):
        if any(enough):
            without = both[enough.index(False)]
            notes.append(f"The numbers of events of {without.name} are not known, so those of the other run are not used.")
        return False
    for one, part, has in zip(both, counts, known, strict=True):
        if (part[has].max(axis=1) > (1 + ROUNDING) * one.events[has]).any():
            notes.append(f"Channels of {one.name} count more than its numbers of events, which are therefore not used.")
            return False
    return True
