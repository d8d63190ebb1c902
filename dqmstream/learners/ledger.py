"""The ledger of experiences: which run, at which snapshot, in which order; each line frozen when it is made.

A run that is complete becomes one line. Late or revised lumisections are filed in the archive and never change a past
experience, so replaying a ledger gives the bits that the live stream gave.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from dqmstream.errors import InputError, StateError
from dqmstream.learners.splits import INTERPOLATED_SCALE, Part, assign
from dqmstream.learners.strategy import Maps, RunData
from dqmstream.storage.archive import Archive
from dqmstream.storage.layout import Quality


@dataclass(frozen=True)
class Experience:
    """A line of the ledger.

    id: 0, 1, 2, ...; None for a run that was left out, with the reason in `left_out`. rows: lumisections in the run's view
    at the snapshot. revisions: how often they had been revised by then. digest: of their numbers and contents. scale: of the
    split, 1 or 25 (`learners.splits`).
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


def describe(archive: Archive, run: int, number: int) -> Experience:
    """The ledger line of a run as the archive holds it now; number is its id if it can be learnt."""
    view = archive.run(run, maps=False)
    scale = scale_of(view)
    parts = assign(view["lumisection"].values, scale)
    counts = {part: int(np.sum(parts == part)) for part in (Part.TRAIN, Part.VALIDATION, Part.TEST)}
    empty = [part.name.lower() for part, n in counts.items() if n == 0]
    return Experience(
        id=None if empty else number,
        run=run,
        rows=view.sizes["lumisection"],
        revisions=int(view["revision"].sum()),
        snapshot=archive.snapshot,
        digest=_digest(view),
        scale=scale,
        train=counts[Part.TRAIN],
        validation=counts[Part.VALIDATION],
        test=counts[Part.TEST],
        left_out=f"too short: no lumisection for {', '.join(empty)}" if empty else "",
    )


def read_experience(archive: Archive, experience: Experience) -> RunData:
    """The experience's lumisections from the archive, at its snapshot.

    Raises StateError where they are not what the ledger froze.
    """
    view = archive.at(experience.snapshot).run(experience.run)
    if _digest(view) != experience.digest:
        raise StateError(
            f"run {experience.run} at snapshot {experience.snapshot} is not what the ledger froze: "
            f"run `dqmstream status` and compare the archive's id"
        )
    lumisections = view["lumisection"].values
    maps = Maps(
        counts=view["occupancy"].values.astype(np.float32, copy=False),
        n_events=view["n_events"].values,
        pileup=view["pileup"].values,
        lumisection=lumisections,
    )
    return RunData(experience.run, maps, assign(lumisections, experience.scale))


class Ledger:
    """The lines of a ledger file (JSON lines). A line is on the disk before it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Experience] = read_ledger(path) if path.exists() else []

    @property
    def experiences(self) -> list[Experience]:
        """The lines that are learnt, by id."""
        return [line for line in self.lines if line.id is not None]

    @property
    def runs(self) -> set[int]:
        """Every run that has a line, learnt or left out."""
        return {line.run for line in self.lines}

    def append(self, line: Experience) -> None:
        """Freeze a line. What a crash had cut off behind the last whole line is dropped first."""
        whole = "".join(json.dumps(asdict(known)) + "\n" for known in self.lines).encode()
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.truncate(len(whole))
            file.seek(len(whole))
            file.write(json.dumps(asdict(line)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)


def read_ledger(path: Path) -> list[Experience]:
    """Lines of a ledger file; a last line that a crash cut off is passed over. Raises InputError for anything else."""
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


def _digest(view: xr.Dataset) -> str:
    digest = hashlib.sha256(view["lumisection"].values.astype("<i8").tobytes())
    digest.update(view["content"].values.astype("<u8").tobytes())
    return digest.hexdigest()[:32]
