"""A line of the history: what one experience did to the matrices, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from dqmstream.learners.evaluation.json_lines import Entries


@dataclass(frozen=True)
class Calibration(Entries):
    """Calibration on the test lumisections, as the learner gives probabilities and after a temperature was fitted.

    nll: negative log-likelihood in nats. ece: expected calibration error. temperature and the figures at it are None where
    there was no validation lumisection to fit it on.
    """

    nll: float
    ece: float
    temperature: float | None
    nll_calibrated: float | None
    ece_calibrated: float | None


@dataclass(frozen=True)
class BeforeLearning(Entries):
    """What the learner said of a run before it learnt it.

    new_run_auc: AUC of the new-run score, the new run's test lumisections against those of known runs. probability_auc: the
    same for 1 - the learner's largest probability, against all known runs. nearest_run: the known run with the largest mean
    probability over the new run's test lumisections. nearest_probability: that mean.
    """

    new_run_auc: float
    probability_auc: float
    nearest_run: int
    nearest_probability: float


@dataclass(frozen=True)
class Watched:
    """Accuracy in the course of one training.

    lowest: class -> lowest accuracy of each watched run, during the training or at its end. moments: how often accuracy was
    measured. calls: how often it could have been. lumisections: scored in all.
    """

    lowest: Mapping[int, float]
    moments: int
    calls: int
    lumisections: int


@dataclass(frozen=True)
class BaselineEntry(Entries):
    """The figures of a baseline that runs beside the learner; those of `HistoryLine` by the same names."""

    accuracy: list[float] | None = None
    auc: list[float] | None = None
    auc_fixed: list[float] | None = None
    calibration: Calibration | None = None
    memory_bytes: int | None = None
    state_bytes: int | None = None

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` gave; what an older version did not write is None."""
        return super().from_json({**entries, "calibration": _calibration(entries)})


@dataclass(frozen=True)
class HistoryLine(Entries):
    """One experience. `to_json` gives the entries in this order; None stands for what was not measured.

    accuracy, auc, auc_fixed: row t of each matrix (`evaluator.evaluate_row`), t + 1 values; None at the first run.
    lumisections: of the run, by part. blank: how many of them are blank. reference: what the reference has been taught, and
    `beyond`: how many lumisections lay beyond that. calibration: over all runs so far. baselines: by name, None at the first
    run. before: None where fewer than two runs were known, or the run was learnt before. watched: None where the training was
    not watched. loss: one value a training step. samples: lumisections that training looked at, counted each time.
    flops, baseline_flops: floating-point operations of learning. memory_bytes: kept of past data. state_bytes: what else grows
    with the runs. seconds: by kind of work. snapshot: of the archive; None where the runs came from no archive.

    The line of a bound, which learns nothing, has only the first three entries and the rows.
    """

    experience: int
    run: int
    strategy: str
    lumisections: dict[str, int] | None = None
    reference: dict[str, Any] | None = None
    blank: int | None = None
    accuracy: list[float] | None = None
    auc: list[float] | None = None
    auc_fixed: list[float] | None = None
    calibration: Calibration | None = None
    baselines: dict[str, BaselineEntry | None] = field(default_factory=dict)
    before: BeforeLearning | None = None
    watched: Watched | None = None
    loss: list[float] = field(default_factory=list)
    samples: int | None = None
    notes: dict[str, float | list[float]] = field(default_factory=dict)
    flops: float | None = None
    baseline_flops: dict[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    state_bytes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    snapshot: str | None = None
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The line as a JSON object."""
        entries = asdict(self)
        if self.samples is None:
            return {name: entries[name] for name in _OF_BOUND}
        if self.watched is not None:
            entries["watched"]["lowest"] = [list(pair) for pair in self.watched.lowest.items()]
        return {name: value for name, value in entries.items() if value is not None or name not in _OF_ARCHIVE}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; what an older version did not write is None or empty.

        Raises KeyError, TypeError or ValueError for entries that are not those of a line.
        """
        before, watched = entries.get("before"), entries.get("watched")
        baselines = {name: one and BaselineEntry.from_json(one) for name, one in entries.get("baselines", {}).items()}
        return super().from_json(
            {
                "strategy": "",
                **entries,
                "calibration": _calibration(entries),
                "baselines": baselines,
                "before": before and BeforeLearning.from_json(before),
                "watched": watched and Watched(**{**watched, "lowest": dict(watched["lowest"])}),
            }
        )


_OF_BOUND = ("experience", "run", "strategy", "accuracy", "auc", "auc_fixed")
_OF_ARCHIVE = ("snapshot", "seed")


def _calibration(entries: Mapping[str, Any]) -> Calibration | None:
    found = entries.get("calibration")
    return None if found is None else Calibration.from_json(found)
