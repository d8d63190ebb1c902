"""What learners left in a state folder, read without any of their code: histories, last scores, and the table they make.

A history line whose scores are not on the disk yet is passed over: its learner is at work, and will say more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from scipy.stats import binom

from dqmstream.errors import StateError
from dqmstream.experiments.report.figures import Course, Roc
from dqmstream.learners.closed_form.baselines import RingMeans
from dqmstream.learners.evaluation.evaluator import auc, newest_of_run, roc_curve
from dqmstream.learners.evaluation.history import Line, baseline_lines, prequential_results, read_history, results
from dqmstream.learners.stream.ledger import Experience, newest_lines, read_ledger
from dqmstream.learners.stream.state_folder import LIVE, read_json, read_status
from dqmstream.storage.archive import Archive

CONFIDENCE = 0.95
SURE = 0.001
"""Accuracies that guessing reaches less often than this are a find; the 95 % interval is left by one row in forty."""

CAPTURE = 0.95
"""Share of a run's lumisections that are named at the point where the false-positive rate is quoted."""

LUMINOSITY_SHARES = 4
"""Neighbouring lumisections have the same luminosity: four count as one for a classifier that sees nothing else.

On null streams the accuracy of ring means scattered 1.6 (4 runs of 200) and 1.8 times (8 runs of 400) as widely as the
binomial's; that of naive Bayes and gain maps no more than it.
"""


@dataclass(frozen=True, eq=False)
class Scores:
    """The last evaluation: log-probabilities (n, T) of test lumisections, and the class of each (n,)."""

    log_probability: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Record:
    """One learner.

    lines: of its history, one at least. experiences: of its ledger, learnt or not. left_out: reason by run. late: how many
    lumisections of a learnt run came too late to be learnt. scores: of the last evaluation, None at one run.
    prequential: what its windows came to (`learners.evaluation.history`), None where it takes none.
    reference: version of the one it was given, "" for the first run. recipe: changes to its strategy's own.
    """

    name: str
    strategy: str
    reference: str
    recipe: dict[str, Any]
    lines: list[Line]
    experiences: list[Experience]
    left_out: dict[int, str]
    late: dict[str, int]
    scores: Scores | None
    prequential: dict[str, Any] | None

    @property
    def runs(self) -> list[int]:
        return [int(line["run"]) for line in self.lines]

    @property
    def learnt(self) -> list[Experience]:
        return self.experiences[: len(self.lines)]

    @property
    def tested(self) -> np.ndarray:
        """Test lumisections of each run in the last evaluation: int, shape (T,), T different runs."""
        labels = np.zeros(0, dtype=np.int64) if self.scores is None else self.scores.labels
        # A run that was learnt twice has its lumisections under the later experience.
        return np.bincount(labels, minlength=len(self.lines))[np.unique(newest_of_run(self.runs))]


@dataclass(frozen=True)
class Row:
    """A learner or a baseline in the summary. kind: "learner", "baseline", or "luminosity" for ring means.

    chance: 1/T; chance_low, chance_high: the central 95 % of what guessing gives on as many test lumisections; p_value:
    how often guessing gives as much or more. verdict: "at chance", "above chance", "below chance", or "one run" where there
    was nothing to tell apart. seconds: None for baselines, whose time is in their learner's.
    """

    name: str
    kind: str
    strategy: str
    beside: str
    runs: int
    test_lumisections: int
    average_accuracy: float | None
    average_auc: float | None
    forgetting: float | None
    forgetting_initial: float | None
    chance: float
    chance_low: float | None
    chance_high: float | None
    p_value: float | None
    verdict: str
    memory_bytes: int
    state_bytes: int
    seconds: float | None


def read_records(archive: Archive, state: Path) -> list[Record]:
    """Every learner of the state folder that has learnt a run: the live one first, then the longest, then by name.

    Raises StateError if there is none, if a file cannot be read, or if a learner belongs to another archive.
    """
    folders = sorted(path.parent for path in state.glob("*/state.json")) if state.is_dir() else []
    records = [record for folder in folders if (record := _read_record(archive, folder)) is not None]
    if not records:
        raise StateError(f"{state} holds no learner that has learnt a run: run `dqmstream learn` or `dqmstream replay` first")
    return sorted(records, key=lambda record: (record.name != LIVE, -len(record.lines), record.name))


def _read_record(archive: Archive, folder: Path) -> Record | None:
    identity = read_json(folder / "state.json")
    owner = identity.get("archive_id")
    if owner != archive.archive_id:
        raise StateError(f"{folder} belongs to archive {owner}, not {archive.archive_id}: give the --state of this archive")
    if not (folder / "history.jsonl").exists():
        return None
    lines = read_history(folder / "history.jsonl")
    if not lines:
        return None
    number, scores = _read_scores(folder / "scores", len(lines))
    lines = lines[: number + 1]
    ledger = read_ledger(folder / "ledger.jsonl")
    experiences = [line for line in ledger if line.id is not None]
    if [experience.run for experience in experiences[: len(lines)]] != [line["run"] for line in lines]:
        raise StateError(f"{folder}: ledger and history name different runs; learn again with `dqmstream replay`")
    return Record(
        name=folder.name,
        strategy=str(identity.get("strategy", "")),
        reference=str(identity.get("reference", "")),
        recipe=identity.get("recipe", {}),
        lines=lines,
        experiences=experiences,
        left_out={run: line.left_out for run, line in newest_lines(ledger).items() if line.left_out},
        late=(read_status(folder) or {}).get("late_lumisections", {}),
        scores=scores,
        prequential=prequential_results(folder / "windows.jsonl"),
    )


def _read_scores(folder: Path, known: int) -> tuple[int, Scores | None]:
    """Number of the newest of `known` experiences whose scores are on the disk, and they; 0 and None at one run."""
    # Scores past the history are of an experience that a crash undid.
    files = sorted(path for path in folder.glob("*.npz") if int(path.stem) < known)
    if not files:
        return 0, None
    try:
        with files[-1].open("rb") as file, np.load(file, allow_pickle=False) as found:
            return int(files[-1].stem), Scores(found["log_probability"].astype(np.float64), found["labels"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise StateError(f"{files[-1]} cannot be read ({error}): try again when its learner has written it") from error


def baselines(records: list[Record]) -> Iterator[tuple[str, Record, list[Line]]]:
    """(name, the learner it ran beside, its lines) of each baseline, without those that repeat what is there already.

    Beside learners of the same runs it is the same; beside one that is not as far yet it is the beginning of the same.
    """
    seen: dict[str, list[list[Any]]] = {}
    for record in records:
        for name in sorted(record.lines[-1]["baselines"]):
            lines = baseline_lines(record.lines, name)
            said = [(line["run"], line["accuracy"]) for line in lines]
            known = seen.setdefault(name, [])
            if all(other[: len(said)] != said for other in known):
                known.append(said)
                yield name, record, lines


def summarise(records: list[Record]) -> list[Row]:
    """A row for each learner, then one for each baseline."""
    rows = [_row(record.name, "learner", record.strategy, record, record.lines) for record in records]
    for name, record, lines in baselines(records):
        rows.append(_row(name, "luminosity" if name == RingMeans.name else "baseline", name, record, lines))
    return rows


def _row(name: str, kind: str, strategy: str, record: Record, lines: list[Line]) -> Row:
    found = results(lines)
    accuracy, learner = found["average_accuracy"], kind == "learner"
    classes = len(set(record.runs))
    shares = LUMINOSITY_SHARES if kind == "luminosity" else 1
    low, high = chance_interval(record.tested, shares)
    return Row(
        name=name,
        kind=kind,
        strategy=strategy,
        beside="" if learner else record.name,
        runs=classes,
        test_lumisections=int(record.tested.sum()),
        average_accuracy=accuracy,
        average_auc=found["average_auc"],
        forgetting=found["forgetting"],
        forgetting_initial=found["forgetting_initial"],
        chance=1 / classes,
        chance_low=low,
        chance_high=high,
        p_value=None if accuracy is None else p_value(accuracy, record.tested, shares),
        verdict=_verdict(accuracy, low, high),
        memory_bytes=found["memory_bytes"],
        state_bytes=found["state_bytes"],
        seconds=found["seconds"] if learner else None,
    )


def chance_interval(tested: np.ndarray, shares: int = 1) -> tuple[float | None, float | None]:
    """Central 95 % of the average accuracy of guessing: quantiles of Binomial(n // shares, 1 / T), divided by n // shares.

    tested: test lumisections of each of the T runs. n = T² / sum(1 / tested), their number where all runs have as many; the
    mean over runs scatters like so many lumisections. shares: how many lumisections count as one. None before two runs.
    """
    if len(tested) < 2:
        return None, None
    independent, tail = _independent(tested, shares), (1 - CONFIDENCE) / 2
    low, high = binom.ppf(np.array([tail, 1 - tail]), independent, 1 / len(tested)) / independent
    return float(low), float(high)


def p_value(accuracy: float, tested: np.ndarray, shares: int = 1) -> float:
    """How often guessing gives this average accuracy or more, with the binomial of `chance_interval`."""
    independent = _independent(tested, shares)
    return float(binom.sf(np.ceil(accuracy * independent - 1e-9) - 1, independent, 1 / len(tested)))


def _independent(tested: np.ndarray, shares: int) -> int:
    return max(1, round(len(tested) ** 2 / float(np.sum(1 / tested))) // shares)


def _verdict(accuracy: float | None, low: float | None, high: float | None) -> str:
    if accuracy is None or low is None or high is None:
        return "one run"
    if low <= accuracy <= high:
        return "at chance"
    return "above chance" if accuracy > high else "below chance"


def square(rows: list[list[float | None]]) -> np.ndarray:
    """A matrix of the history's results, float64 (T, T), nan where nothing is defined."""
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows))


def course(name: str, lines: list[Line], *, beside: bool) -> Course:
    """Average accuracy and forgetting after each experience, as `learners.evaluation.evaluator` defines them, in one pass."""
    values = square(results(lines)["accuracy_matrix"])
    size = len(values)
    accuracy, lost = np.full(size, np.nan), np.full(size, np.nan)
    best = np.full(size, np.nan)
    for t, row in enumerate(values):
        if np.isfinite(row).any():
            accuracy[t] = np.nanmean(row)
        drops = (best - row)[:t]
        if np.isfinite(drops).any():
            lost[t] = np.nanmean(drops)
        best = np.fmax(best, row)
    return Course(name, accuracy, lost, beside)


def rocs(record: Record) -> list[Roc]:
    """ROC curve of each run of the last evaluation: its probability, its test lumisections against all others'."""
    if record.scores is None:
        return []
    curves = []
    for i, run in zip(newest_of_run(record.runs), record.runs, strict=True):
        mine = record.scores.labels == i
        positive, negative = record.scores.log_probability[mine, i], record.scores.log_probability[~mine, i]
        curves.append(Roc(run, *roc_curve(positive, negative), auc(positive, negative)))
    return curves


def per_run(record: Record, curves: list[Roc]) -> list[dict[str, Any]]:
    """What a learner says of each run: right after learning it, and now."""
    last = record.lines[-1]
    table = []
    for i, (line, experience) in enumerate(zip(record.lines, record.learnt, strict=True)):
        first_row = record.lines[max(i, 1)]["accuracy"] if len(record.lines) > 1 else None
        before = line["before"] or {}
        table.append(
            {
                "run": line["run"],
                "train": experience.train,
                "test": experience.test,
                "accuracy_first": None if first_row is None else first_row[i],
                "accuracy": None if last["accuracy"] is None else last["accuracy"][i],
                "auc": None if last["auc"] is None else last["auc"][i],
                "false_positive_rate": _at_capture(curves[i]) if curves else None,
                "new_run_auc": before.get("new_run_auc"),
                "nearest_run": before.get("nearest_run"),
                "seconds": round(sum(line["seconds"].values()), 3),
            }
        )
    return table


def _at_capture(curve: Roc) -> float:
    """Smallest false-positive rate at which 95 % of the run's lumisections are named."""
    return float(curve.false_positive[np.argmax(curve.true_positive >= CAPTURE)])
