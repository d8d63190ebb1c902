"""The table of learners and baselines, and whether each is more than guessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from dqmstream.experiments.report.learner_records import LearnerRecord, baselines
from dqmstream.experiments.statistics import chance_interval
from dqmstream.learners.closed_form.ring_means import RingMeans
from dqmstream.learners.evaluation.history import results
from dqmstream.learners.evaluation.history_line import HistoryLine

SURE = 0.001
"""An accuracy is called a find if guessing reaches it less often than this; one row in forty leaves the 95 % interval."""

LUMINOSITY_SHARES = 4
"""For a classifier that sees luminosity alone four lumisections count as one, since neighbours have the same luminosity.

Accuracy of ring means over null streams scatters 1.6 to 1.8 times as widely as the binomial; that of baselines that see
channels does not.
"""


@dataclass(frozen=True)
class SummaryRow:
    """A learner or a baseline in the summary.

    kind: "learner", "baseline", or "luminosity" for ring means. beside: the learner that a baseline ran beside, else "".
    chance: 1/T; chance_low, chance_high: central 95 % of what guessing gives on as many test lumisections. p_value:
    probability that guessing gives this accuracy or more. verdict: "at chance", "above chance", "below chance", or "one run"
    if there was nothing to tell apart. seconds: None for a baseline, whose time is in its learner's. accuracy_last_8: where the
    last 8 lumisections name the run; None where it was not measured.
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
    accuracy_last_8: float | None = None


def summarise(records: Sequence[LearnerRecord]) -> list[SummaryRow]:
    """One row for each learner, then one for each baseline."""
    rows = [_row(record.name, "learner", record.strategy, record, record.lines) for record in records]
    for name, record, lines in baselines(records):
        rows.append(_row(name, "luminosity" if name == RingMeans.name else "baseline", name, record, lines))
    return rows


def _row(name: str, kind: str, strategy: str, record: LearnerRecord, lines: list[HistoryLine]) -> SummaryRow:
    found = results(lines)
    accuracy, learner = found["average_accuracy"], kind == "learner"
    classes = len(set(record.runs))
    shares = LUMINOSITY_SHARES if kind == "luminosity" else 1
    low, high = guessing_interval(record.tested, shares)
    return SummaryRow(
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
        p_value=None if accuracy is None else guessing_p_value(accuracy, record.tested, shares),
        verdict=_verdict(accuracy, low, high),
        memory_bytes=found["memory_bytes"],
        state_bytes=found["state_bytes"],
        seconds=found["seconds"] if learner else None,
        accuracy_last_8=found["by_last"]["8"]["average_accuracy"],
    )


def guessing_interval(tested: np.ndarray, shares: int = 1) -> tuple[float | None, float | None]:
    """Central 95 % of the average accuracy of guessing, low and high: Binomial(n, 1 / T) / n. None before two runs.

    tested: test lumisections of each of the T runs. The mean over runs scatters like n = T² / sum(1 / tested) lumisections,
    which is their number if all runs have as many. shares: how many lumisections count as one.
    """
    if len(tested) < 2:
        return None, None
    interval = chance_interval(len(tested), _independent(tested, shares))
    return interval.low, interval.high


def guessing_p_value(accuracy: float, tested: np.ndarray, shares: int = 1) -> float:
    """Probability that guessing gives this average accuracy or more, by the binomial of `guessing_interval`."""
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
