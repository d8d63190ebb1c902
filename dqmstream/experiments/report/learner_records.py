"""Learners as they stand in a state folder: histories, ledgers and last scores, read without running any model.

A history line whose scores are not written yet is ignored: its learner is still at work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.evaluation.history import baseline_lines, read_history
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.prequential import prequential_results
from dqmstream.learners.evaluation.repeated_runs import newest_of_run
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.ledger import Experience, newest_lines, read_ledger
from dqmstream.learners.stream.state_folder import LIVE, read_json, read_status
from dqmstream.learners.task import LABELS, RUNS
from dqmstream.storage.archive import Archive


@dataclass(frozen=True, eq=False)
class LastScores:
    """Scores of the last evaluation: log-probabilities of the n test lumisections, (n, T), and the class of each, (n,)."""

    log_probability: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class LearnerRecord:
    """What a learner left in its state folder.

    reference: version of the reference that it was given, "" if it takes the first run. recipe: what differs from its
    strategy's own. lines: of its history, at least one. experiences: of its ledger, learnt or not. left_out: run to the reason.
    late: run to the number of lumisections that were filed after the run was learnt. alarms, law: how alarms are calibrated
    (`AlarmRates.summary`), and where the law of the response is off (`LawWatch.summary`); None from an older version. scores:
    None after one run. prequential: accuracy over its windows (`learners.evaluation.prequential`), None if it takes no windows.
    """

    name: str
    strategy: str
    reference: str
    recipe: dict[str, Any]
    lines: list[HistoryLine]
    experiences: list[Experience]
    left_out: dict[int, str]
    late: dict[str, int]
    alarms: dict[str, Any] | None
    law: dict[str, Any] | None
    scores: LastScores | None
    prequential: dict[str, Any] | None

    @property
    def runs(self) -> list[int]:
        return [line.run for line in self.lines]

    @property
    def learnt(self) -> list[Experience]:
        return self.experiences[: len(self.lines)]

    @property
    def tested(self) -> np.ndarray:
        """Number of test lumisections of each run in the last evaluation: int, (T,), T different runs."""
        labels = np.zeros(0, dtype=np.int64) if self.scores is None else self.scores.labels
        # The lumisections of a run that was learnt twice count for its later experience.
        return np.bincount(labels, minlength=len(self.lines))[np.unique(newest_of_run(self.runs))]


@dataclass(frozen=True, eq=False)
class LabelRecord:
    """What a learner of labels left in its state folder. lines: of its history, at least one."""

    name: str
    strategy: str
    lines: list[HistoryLine]


def read_label_records(archive: Archive, state: Path) -> list[LabelRecord]:
    """Read every learner of labels in a state folder that has learnt a run, by name. Raises StateError as `read_records`."""
    records = []
    for folder in _folders(state, LABELS.name):
        identity = _identity(archive, folder)
        path = folder / "history.jsonl"
        lines = read_history(path)[: checkpoint.learnt(folder / "checkpoints")] if path.exists() else []
        if lines:
            records.append(LabelRecord(folder.name, str(identity.get("strategy", "")), lines))
    return records


def read_records(archive: Archive, state: Path) -> list[LearnerRecord]:
    """Read every learner of a state folder that has learnt a run: the live one first, the others by runs learnt, then by name.

    Learners of labels are left out (`read_label_records`). Raises StateError if there is none, if a file cannot be read, or if
    a learner belongs to another archive.
    """
    records = [record for folder in _folders(state, RUNS.name) if (record := _read_record(archive, folder)) is not None]
    if not records:
        of_labels = " of runs; there are learners of labels only" if _folders(state, LABELS.name) else ""
        raise StateError(
            f"{state} holds no learner that has learnt a run{of_labels}: run `dqmstream learn` or `dqmstream replay` first"
        )
    return sorted(records, key=lambda record: (record.name != LIVE, -len(record.lines), record.name))


def _folders(state: Path, task: str) -> list[Path]:
    """Folders of the learners of a task, by name."""
    folders = sorted(path.parent for path in state.glob("*/state.json")) if state.is_dir() else []
    return [folder for folder in folders if read_json(folder / "state.json").get("task", RUNS.name) == task]


def _identity(archive: Archive, folder: Path) -> dict[str, Any]:
    identity = read_json(folder / "state.json")
    owner = identity.get("archive_id")
    if owner != archive.archive_id:
        raise StateError(f"{folder} belongs to archive {owner}, not {archive.archive_id}: give the --state of this archive")
    return identity


def _read_record(archive: Archive, folder: Path) -> LearnerRecord | None:
    identity = _identity(archive, folder)
    if not (folder / "history.jsonl").exists():
        return None
    lines = read_history(folder / "history.jsonl")
    if not lines:
        return None
    status = read_status(folder) or {}
    number, scores = _read_scores(folder / "scores", len(lines))
    lines = lines[: number + 1]
    ledger = read_ledger(folder / "ledger.jsonl")
    experiences = [line for line in ledger if line.id is not None]
    if [experience.run for experience in experiences[: len(lines)]] != [line.run for line in lines]:
        raise StateError(f"{folder}: ledger and history name different runs; learn again with `dqmstream replay`")
    return LearnerRecord(
        name=folder.name,
        strategy=str(identity.get("strategy", "")),
        reference=str(identity.get("reference", "")),
        recipe=identity.get("recipe", {}),
        lines=lines,
        experiences=experiences,
        left_out={run: line.left_out for run, line in newest_lines(ledger).items() if line.left_out},
        late=status.get("late_lumisections", {}),
        alarms=status.get("alarms"),
        law=status.get("law"),
        scores=scores,
        prequential=prequential_results(folder / "windows.jsonl"),
    )


def _read_scores(folder: Path, known: int) -> tuple[int, LastScores | None]:
    """Read the newest scores among the first `known` experiences, with the number of theirs; 0 and None after one run."""
    # Scores beyond the history belong to an experience that a crash undid.
    files = sorted(path for path in folder.glob("*.npz") if int(path.stem) < known)
    if not files:
        return 0, None
    try:
        with files[-1].open("rb") as file, np.load(file, allow_pickle=False) as found:
            return int(files[-1].stem), LastScores(found["log_probability"].astype(np.float64), found["labels"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise StateError(f"{files[-1]} cannot be read ({error}): try again when its learner has written it") from error


def baselines(records: Sequence[LearnerRecord]) -> Iterator[tuple[str, LearnerRecord, list[HistoryLine]]]:
    """Yield each baseline once: its name, the learner that it ran beside, its lines.

    Beside two learners of the same runs a baseline does the same, and beside one that has learnt fewer runs the beginning of
    it: such repetitions are left out.
    """
    seen: dict[str, list[list[Any]]] = {}
    for record in records:
        for name in sorted(record.lines[-1].baselines):
            lines = baseline_lines(record.lines, name)
            said = [(line.run, line.accuracy) for line in lines]
            known = seen.setdefault(name, [])
            if all(other[: len(said)] != said for other in known):
                known.append(said)
                yield name, record, lines
