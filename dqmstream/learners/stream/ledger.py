"""The ledger: which lumisections each experience of a learner consists of, in the order of learning.

A line is written once a run is complete, and with windows one for each window of the run before. It is frozen: lumisections
that arrive late or are revised are filed in the archive and do not change it. So a replay of a ledger computes the same bits as
the learner that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

from dqmstream.errors import ArchiveError, InputError, StateError
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import BLOCKS, INTERPOLATED_SCALE, Part, assign_by, kind_of
from dqmstream.storage.archive import Archive
from dqmstream.storage.failures import is_damage
from dqmstream.storage.labels.versions import UNKNOWN
from dqmstream.storage.layout import Quality
from dqmstream.storage.locks import naming, sync_folder, write_atomically
from dqmstream.storage.row_index import RunSummary


class LostExperienceError(StateError):
    """The archive no longer holds the lumisections of a ledger line, or they are damaged."""


@dataclass(frozen=True)
class Experience:
    """A line of the ledger.

    id: 0, 1, 2, ...; None for a window, and for a run that is left out (with the reason in `left_out`). rows: lumisections of
    the run at the snapshot. revisions: how often they had been revised by then. digest: of their numbers and contents. scale:
    of the split, 1 or 25 (`learners.splits`). train, validation, test: lumisections of each part. split: its kind; an older
    ledger does not name it, and has blocks.

    window: None for a run; 0, 1, 2, ... for a window of one. Its lumisections are those from number `first` to `last`; rows,
    digest and parts are of the run up to `last`.
    """

    id: int | None
    run: int
    rows: int
    revisions: int
    snapshot: str
    digest: str
    scale: int
    train: int
    validation: int
    test: int
    left_out: str = ""
    window: int | None = None
    first: int = 0
    last: int = 0
    split: str = BLOCKS


def describe(archive: Archive, run: int, number: int) -> Experience:
    """The ledger line of a run as the archive holds it now. number: its id, if it can be learnt."""
    view = archive.run(run, maps=False)
    line = _line(archive, run, view, kind_of(view["lumisection"].values, scale_of(view)))
    empty = [part for part in ("train", "validation", "test") if getattr(line, part) == 0]
    left_out = f"too short: no lumisection for {', '.join(empty)}" if empty else ""
    return replace(line, id=None if empty else number, left_out=left_out)


def describe_windows(
    archive: Archive, run: int, size: int, after: Experience | None, *, complete: bool
) -> Iterator[Experience]:
    """The ledger lines of the windows of a run that follow window `after` (None: from the first), as the archive holds it now.

    size: lumisections in a window, in the order of their numbers. A lumisection that arrives after its window was frozen is in
    no window. complete: the run has ended, so the remaining lumisections are a shorter window. Windows have the split of a long
    run, since the length of theirs is not known yet.
    """
    view = archive.run(run, maps=False)
    numbers = view["lumisection"].values
    number, start = 0, 0
    if after is not None and after.window is not None:
        number, start = after.window + 1, int(np.searchsorted(numbers, after.last, side="right"))
    for k, begin in enumerate(range(start, len(numbers), size), number):
        end = min(begin + size, len(numbers))
        if end - begin < size and not complete:
            return
        line = _line(archive, run, view.isel(lumisection=slice(0, end)), BLOCKS)
        yield replace(line, window=k, first=int(numbers[begin]), last=int(numbers[end - 1]))


def _line(archive: Archive, run: int, view: xr.Dataset, split: str) -> Experience:
    scale = scale_of(view)
    parts = assign_by(split, view["lumisection"].values, scale)
    train, validation, test = (int(np.sum(parts == part)) for part in (Part.TRAIN, Part.VALIDATION, Part.TEST))
    return Experience(
        id=None,
        run=run,
        rows=view.sizes["lumisection"],
        revisions=int(view["revision"].sum()),
        snapshot=archive.snapshot,
        digest=_digest(view),
        scale=scale,
        train=train,
        validation=validation,
        test=test,
        split=split,
    )


def read_experience(archive: Archive, experience: Experience) -> RunData:
    """The lumisections of an experience as they were frozen; for a window, those of the run up to its end.

    Raises LostExperienceError where the archive does not hold them.
    """
    view = frozen_view(archive, experience)
    maps = maps_of(view)
    return RunData(experience.run, maps, assign_by(experience.split, maps.lumisection, experience.scale), labels_of(view))


def frozen_view(archive: Archive, experience: Experience, *, maps: bool = True) -> xr.Dataset:
    """The run's view as it was frozen, with or without maps.

    It is read at its snapshot; where that has expired, from the archive as it is now, since rows are only added and the first
    ones of a run are the same in all later snapshots. Raises LostExperienceError where they differ from what the ledger froze,
    or are damaged.
    """
    last = None if experience.window is None else experience.last
    wanted = f"run {experience.run} as it was frozen at snapshot {experience.snapshot}"
    try:
        reader, filed = archive.at(experience.snapshot), None
    except ArchiveError:
        reader, filed = archive, experience.rows + experience.revisions
    try:
        if not len(reader.index.newest(experience.run)[1]):
            raise LostExperienceError(f"{archive.path} has no snapshot with {wanted}")
        view = reader.run(experience.run, maps=maps, filed=filed, last=last).load()  # damage shows here
    except ArchiveError as error:
        if is_damage(error):
            raise LostExperienceError(f"run {experience.run} is lost: {error}") from error
        raise
    if _digest(view) != experience.digest:
        raise LostExperienceError(
            f"{archive.path} has no snapshot with {wanted}, what it holds of the run differs: "
            "run `dqmstream status` and compare the archive's id"
        )
    return view


def maps_of(view: xr.Dataset) -> Maps:
    """The lumisections of a run's view, with their maps loaded into memory."""
    counts = view["occupancy"].values.astype(np.float32, copy=False)
    return Maps(counts, view["n_events"].values, view["pileup"].values, view["lumisection"].values)


def labels_of(view: xr.Dataset) -> np.ndarray:
    """Labels of a run's view: 1 good, 0 faulty, -1 without a label, int8, (n,)."""
    if "golden" not in view:
        return np.full(view.sizes["lumisection"], UNKNOWN, dtype=np.int8)
    return np.asarray(view["golden"].values, dtype=np.int8)


class Ledger:
    """The lines of a ledger file (JSON lines). A line is on the disk before it is used."""

    def __init__(self, path: Path) -> None:
        """Read the file, if it exists.

        lines: all lines. experiences: lines of runs to be learnt, by id. runs: every run with a line of its own, also where it
        is left out. windows: the last window of each run that has one.
        """
        self.path = path
        exists = path.exists()
        self._take(read_ledger(path) if exists else [], path.read_bytes().rfind(b"\n") + 1 if exists else 0)

    def _take(self, lines: Iterable[Experience], size: int) -> None:
        """Hold these lines, which take `size` bytes of the file."""
        self.lines: list[Experience] = []
        self.experiences: list[Experience] = []
        self.runs: set[int] = set()
        self.windows: dict[int, Experience] = {}
        self._bytes = size
        for line in lines:
            self._note(line)

    def _note(self, line: Experience) -> None:
        self.lines.append(line)
        if line.window is not None:
            self.windows[line.run] = line
            return
        self.runs.add(line.run)
        if line.id is not None:
            self.experiences.append(line)

    def holds(self, line: Experience) -> bool:
        """Whether this run, or this window of it, has a line already."""
        last = self.windows.get(line.run)
        begun = line.window is not None and last is not None and last.window is not None and line.window <= last.window
        return begun or line.run in self.runs

    def leave_out(self, line: Experience, why: str) -> None:
        """Mark a line that was not learnt as left out, and renumber those after it."""
        lines, number = [], 0
        for one in self.lines:
            if one == line:
                lines.append(replace(one, id=None, left_out=why))
            else:
                lines.append(one if one.id is None else replace(one, id=number))
                number += one.id is not None
        data = b"".join(_encoded(one) for one in lines)
        write_atomically(self.path, data)
        self._take(lines, len(data))

    def append(self, line: Experience) -> None:
        """Write a line, which is on the disk when this returns. Half a line that a crash left is removed first."""
        is_new = not self.path.exists()
        with naming(self.path), self.path.open("w+b" if is_new else "r+b") as file:
            file.truncate(self._bytes)
            file.seek(self._bytes)
            file.write(_encoded(line))
            file.flush()
            os.fsync(file.fileno())
            self._bytes = file.tell()
        if is_new:
            sync_folder(self.path.parent)
        self._note(line)


def newest_lines(lines: Iterable[Experience]) -> dict[int, Experience]:
    """The last line of each run, without windows: a run has several where it was learnt again."""
    return {line.run: line for line in lines if line.window is None}


def late(line: Experience, summary: RunSummary) -> int:
    """How many lumisections of a run were filed after its line was frozen."""
    return max(0, summary.lumisections - line.rows)


def read_ledger(path: Path) -> list[Experience]:
    """The lines of a ledger file, without a last line that a crash cut off. Raises InputError for any other file."""
    try:
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        return [Experience(**json.loads(line)) for line in whole.splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no ledger of experiences: {error}") from error


def scale_of(view: xr.Dataset) -> int:
    """Scale of the split of a run's view: 25 where any of its rows was interpolated, else 1."""
    interpolated = bool(np.any(view["quality"].values & Quality.INTERPOLATED))
    return INTERPOLATED_SCALE if interpolated else 1


def _encoded(line: Experience) -> bytes:
    entries = asdict(line)
    if line.split == BLOCKS:  # older versions can read the line too
        del entries["split"]
    return json.dumps(entries).encode() + b"\n"


def _digest(view: xr.Dataset) -> str:
    digest = hashlib.sha256(view["lumisection"].values.astype("<i8").tobytes())
    digest.update(view["content"].values.astype("<u8").tobytes())
    return digest.hexdigest()[:32]
