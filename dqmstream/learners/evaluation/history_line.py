"""A line of the history: what one experience did to the matrices, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from dqmstream.learners.evaluation.json_lines import Entries

LENGTHS = (4, 8, 30)
"""Each n of the figures by the last n lumisections. n = 1 are the figures of single lumisections."""

EVERY_LENGTH = (1, *LENGTHS)


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
class PeriodEntry(Entries):
    """What a run gave to the task of labels (`learners.labels`).

    number: of the period that ended with this run, None where it goes on. runs: of the period so far. good, faulty: labelled
    lumisections of the run that are not blank. unlabelled: those without a label, which are used for nothing.
    accuracy_before, auc_before: on the period's test lumisections before it was learnt; None at the first.
    """

    number: int | None
    runs: list[int]
    good: int
    faulty: int
    unlabelled: int
    accuracy_before: float | None = None
    auc_before: float | None = None


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
class ByLast(Entries):
    """Figures where the last n lumisections name the run (`learners.evaluation.by_last`).

    lumisections: n. summed: how many were summed in the mean; fewer than n at the beginning of a run or block. experiences:
    those that the figures are of; None for all. accuracy, auc: of each of these. correlation: of neighbours, from validation.
    calibration: of the sums as they are, and with temperature and correlation; the temperature is that of single lumisections.
    """

    lumisections: int
    summed: float
    experiences: list[int] | None
    accuracy: list[float]
    auc: list[float | None]
    correlation: float | None
    calibration: Calibration

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` gave."""
        return super().from_json({**entries, "calibration": Calibration.from_json(entries["calibration"])})

    def row(self, name: Literal["accuracy", "auc"], count: int) -> list[float | None]:
        """The accuracy or AUC of each of `count` experiences; None for those without a figure."""
        places = range(count) if self.experiences is None else self.experiences
        known = dict(zip(places, getattr(self, name), strict=True))
        return [known.get(i) for i in range(count)]


@dataclass(frozen=True)
class BaselineEntry(Entries):
    """The figures of a baseline that runs beside the learner; those of `HistoryLine` by the same names."""

    accuracy: list[float] | None = None
    auc: list[float] | None = None
    auc_fixed: list[float] | None = None
    calibration: Calibration | None = None
    memory_bytes: int | None = None
    state_bytes: int | None = None
    by_last: list[ByLast] = field(default_factory=list)

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` gave; what an older version did not write is None, or empty."""
        return super().from_json({**entries, "calibration": _calibration(entries), "by_last": _by_last(entries)})


@dataclass(frozen=True)
class HistoryLine(Entries):
    """One experience. `to_json` gives the entries in this order; None stands for what was not measured.

    accuracy, auc, auc_fixed: row t of each matrix (`evaluator.evaluate_row`), t + 1 values; None at the first run.
    lumisections: of the run, by part. blank: how many of them are blank. reference: what the reference has been taught, and
    `beyond`: how many lumisections lay beyond that. calibration: over all runs so far. by_last: figures by the last n
    lumisections, for several n; empty at the first run. baselines: by name, None at the first run. before: None where fewer
    than two runs were known, or the run was learnt before. watched: None where the training was not watched. loss: one value a
    training step. samples: lumisections that training looked at, counted each time.
    flops, baseline_flops: floating-point operations of learning. memory_bytes: kept of past data. state_bytes: what else grows
    with the runs. seconds: by kind of work. snapshot: of the archive; None where the runs came from no archive.

    In the task of labels a row belongs to a run that ends a period, and its entries to periods; `period` says more.

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
    by_last: list[ByLast] = field(default_factory=list)
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
    period: PeriodEntry | None = None

    def to_json(self) -> dict[str, Any]:
        """The line as a JSON object."""
        entries = asdict(self)
        for one in (entries, *(baseline for baseline in entries["baselines"].values() if baseline)):
            if not one["by_last"]:
                del one["by_last"]
        if self.samples is None:
            return {name: entries[name] for name in _OF_BOUND if name in entries}
        if self.watched is not None:
            entries["watched"]["lowest"] = [list(pair) for pair in self.watched.lowest.items()]
        return {name: value for name, value in entries.items() if value is not None or name not in _OF_ARCHIVE}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; what an older version did not write is None or empty.

        Raises KeyError, TypeError or ValueError for entries that are not those of a line.
        """
        before, watched, period = (entries.get(name) for name in ("before", "watched", "period"))
        baselines = {name: one and BaselineEntry.from_json(one) for name, one in entries.get("baselines", {}).items()}
        return super().from_json(
            {
                "strategy": "",
                **entries,
                "calibration": _calibration(entries),
                "by_last": _by_last(entries),
                "baselines": baselines,
                "period": period and PeriodEntry.from_json(period),
                "before": before and BeforeLearning.from_json(before),
                "watched": watched and Watched(**{**watched, "lowest": dict(watched["lowest"])}),
            }
        )


_OF_BOUND = ("experience", "run", "strategy", "accuracy", "auc", "auc_fixed", "by_last")
_OF_ARCHIVE = ("snapshot", "seed", "period")


def _calibration(entries: Mapping[str, Any]) -> Calibration | None:
    found = entries.get("calibration")
    return None if found is None else Calibration.from_json(found)


def _by_last(entries: Mapping[str, Any]) -> list[ByLast]:
    return [ByLast.from_json(one) for one in entries.get("by_last", ())]
