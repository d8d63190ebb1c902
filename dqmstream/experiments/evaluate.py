"""A strategy over the runs of an archive, evaluated run by run in memory: no state is written."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.history import results
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.learnable import why_left_out
from dqmstream.learners.maps import RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.stream.experience import learn_and_evaluate
from dqmstream.learners.stream.learner_state import LearnerState
from dqmstream.learners.stream.ledger import describe, read_experience
from dqmstream.lumisection import MOST_SHARE, Geometry, are_shares
from dqmstream.storage.archive import Archive
from dqmstream.storage.scale import counts_of_shares

BESIDE = ("gain_map", "naive_bayes", "ring_means")
"""Baselines that are evaluated beside a strategy where nothing else is asked for; ring_means sees luminosity alone."""

_COLUMNS = ("accuracy", "AUC", "forgetting", "last 8")


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `evaluate` found. All figures are of test lumisections, which no strategy has seen.

    Attributes
    ----------
    strategy : str
        Name of the strategy.
    runs : list of int
        Runs in the order in which they were learnt.
    lines : list of HistoryLine
        The history, a line a run, as `history.jsonl` holds it (docs/learner.md).
    left_out : dict of int to str
        Runs that were not learnt, and why.
    """

    strategy: str
    runs: list[int]
    lines: list[HistoryLine]
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def results(self) -> dict[str, Any]:
        """All figures, by name, as `dqmstream replay --json` prints them."""
        return results(self.lines)

    @property
    def accuracy_matrix(self) -> np.ndarray:
        """R[t, i]: accuracy on run i after run t was learnt. float64, shape (runs, runs), nan where i > t and at t = 0."""
        return self._matrix("accuracy_matrix")

    @property
    def auc_matrix(self) -> np.ndarray:
        """AUC of run i against all other runs learnt by t. float64, shape (runs, runs), nan where i > t and at t = 0."""
        return self._matrix("auc_matrix")

    @property
    def accuracy(self) -> float:
        """Mean accuracy over all runs after the last one; guessing gives 1 / runs."""
        return float(self.results["average_accuracy"])

    @property
    def auc(self) -> float:
        """Mean AUC over all runs after the last one; guessing gives 0.5."""
        return float(self.results["average_auc"])

    @property
    def forgetting(self) -> float:
        """Mean over the runs of the highest accuracy so far minus the last one (`learners.evaluation.metrics.forgetting`)."""
        return float(self.results["forgetting"])

    @property
    def by_last(self) -> dict[int, dict[str, Any]]:
        """Figures where the last n lumisections name the run by their summed log-probabilities, by n: 1, 4, 8 and 30.

        Each has average_accuracy, average_auc, forgetting, calibration, correlation (of neighbours), summed (how many
        lumisections were summed in the mean), accuracy_matrix and auc_matrix (`learners.evaluation.by_last`).
        """
        return {int(n): found for n, found in self.results["by_last"].items()}

    def table(self) -> list[tuple[str, float | None, float | None, float | None]]:
        """Rows (name, accuracy, AUC, forgetting): the strategy, its baselines, and guessing."""
        found = self.results
        rows = [(self.strategy, found["average_accuracy"], found["average_auc"], found["forgetting"])]
        for name in found["baselines"]:
            rows.append((name, *(found[kind][name] for kind in ("baselines", "baselines_auc", "baselines_forgetting"))))
        return [*rows, ("guessing", 1 / len(self.runs), 0.5, None)]

    def _shown(self) -> list[tuple[str, list[float | None]]]:
        """The rows of `table` with the accuracy by the last 8 lumisections."""
        found = self.results
        beside = [one["by_last"]["8"]["average_accuracy"] for one in found["baseline_figures"].values()]
        last_8 = [found["by_last"]["8"]["average_accuracy"], *beside, 1 / len(self.runs)]
        return [(name, [*figures, last]) for (name, *figures), last in zip(self.table(), last_8, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Figures, runs and the runs left out, of plain types only."""
        return {"strategy": self.strategy, **self.results, "left_out": {str(run): why for run, why in self.left_out.items()}}

    def __repr__(self) -> str:
        rows = [("", *_COLUMNS), *((name, *map(_number, figures)) for name, figures in self._shown())]
        width = max(len(str(row[0])) for row in rows)
        lines = [f"{row[0]:<{width}}  " + "  ".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
        return "\n".join([f"<Evaluation of {self.strategy} on {len(self.runs)} runs>", *lines, *self._left_out_lines()])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{_number(figure)}</td>' for figure in figures)}</tr>"
            for name, figures in self._shown()
        )
        head = "".join(f"<th>{column}</th>" for column in ("", *_COLUMNS))
        left_out = "".join(f"<p>{html.escape(line)}</p>" for line in self._left_out_lines())
        return f"<table><caption>{len(self.runs)} runs</caption><tr>{head}</tr>{rows}</table>{left_out}"

    def _left_out_lines(self) -> list[str]:
        return [f"run {run} left out: {why}" for run, why in self.left_out.items()]

    def _matrix(self, name: str) -> np.ndarray:
        size = len(self.runs)
        found = np.full((size, size), np.nan)
        for t, row in enumerate(self.results[name]):
            if row is not None:
                values = [np.nan if value is None else value for value in row[:size]]
                found[t, : len(values)] = values
        return found


def evaluate(
    runs: Archive | str | Path | Iterable[RunData],
    strategy: Strategy | str,
    *,
    beside: Sequence[Strategy | str] = BESIDE,
    seed: int = 0,
    evaluation_samples: int = 6000,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Learn runs one after another with a strategy, and evaluate it after each.

    Before a run is learnt, the new-run score is tested on it; then the strategy learns its train lumisections and is evaluated
    on test lumisections of all runs so far. Nothing is written to disk.

    Parameters
    ----------
    runs : Archive, path of an archive, or iterable of RunData
        An archive's runs are learnt in ascending order, others in the order given. Maps divided by events are multiplied back
        by `n_events`; a run where that is impossible is left out.
    strategy : Strategy or str
        An object that meets `dqmstream.Strategy` and has learnt nothing yet, or the name of a registered strategy.
    beside : sequence of Strategy or str
        Baselines that learn the same runs; empty for none.
    seed : int
        Seed of strategies that are given by name, and of the new-run score.
    evaluation_samples : int
        Lumisections scored at each evaluation, over all runs.
    progress : callable
        Called with the number of runs learnt and the number of runs.

    Returns
    -------
    Evaluation

    Raises
    ------
    InputError
        For an unknown name, a strategy that has learnt already, two strategies of one name, or fewer than two runs that can
        be learnt.

    Examples
    --------
    >>> import dqmstream as dq
    >>> found = dq.evaluate(dq.simulate_runs("moderate", seed=1, runs=3, lumisections=200), "gain_map", beside=["ring_means"])
    >>> found.runs
    [355400, 355411, 355482]
    >>> found.accuracy > 0.9
    True
    """
    geometry, chosen, left_out = _runs_of(runs)
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} run(s) can be learnt, two are needed" + "".join(f"; {w}" for w in left_out.values()))
    own = _strategy(strategy, geometry, seed)
    baselines = [_strategy(one, geometry, seed) for one in beside if one != own.name]
    names = [own.name, *(one.name for one in baselines)]
    if len(set(names)) < len(names):
        raise InputError(f"two of the strategies have one name: {', '.join(names)}")
    by_name = {one.name: one for one in baselines}
    state = LearnerState(own, by_name, Novelty(geometry, seed), Evaluator(evaluation_samples))
    lines: list[HistoryLine] = []
    for number, run in enumerate(chosen):
        line, _ = learn_and_evaluate(state, number, run, chosen.__getitem__)
        lines.append(line)
        progress(number + 1, len(chosen))
    return Evaluation(own.name, [run.run for run in chosen], lines, left_out)


def _runs_of(runs: Archive | str | Path | Iterable[RunData]) -> tuple[Geometry, list[RunData], dict[int, str]]:
    """Geometry, the runs that can be learnt, and the others with the reason."""
    chosen: list[RunData] = []
    left_out: dict[int, str] = {}
    if isinstance(runs, str | Path):
        runs = Archive.open(runs)
    if isinstance(runs, Archive):
        archive, found = runs, []
        for summary in sorted(archive.runs(), key=lambda summary: summary.run):
            line = describe(archive, summary.run, 0)
            if line.left_out:
                left_out[line.run] = line.left_out
            else:
                found.append(read_experience(archive, line))
    else:
        found = []
        for run in runs:
            try:
                found.append(_in_counts(run))
            except ValueError as error:
                left_out[run.run] = str(error)
    for run in found:
        why = why_left_out(run, as_reference=not chosen)
        if why:
            left_out[run.run] = why
        else:
            chosen.append(run)
    depths = {run.maps.counts.shape[1] for run in found} or {1}
    if len(depths) > 1:
        raise InputError(f"the runs have maps of {' and '.join(map(str, sorted(depths)))} depths: evaluate them apart")
    return Geometry(depths.pop()), chosen, left_out


def _in_counts(run: RunData) -> RunData:
    """The run with maps of shares of events multiplied back into counts, as `import` does it for files.

    Raises ValueError, with lumisection and reason, where events are unknown or contradict them.
    """
    maps = run.maps
    flat = maps.counts.reshape(len(maps), -1)
    largest = flat.max(axis=1, initial=0)
    if not are_shares(flat, largest).any() or largest.max() > MOST_SHARE:
        return run
    counts = np.empty_like(maps.counts, dtype=np.float32)
    for k, (number, shares, events) in enumerate(zip(maps.lumisection, maps.counts, maps.n_events, strict=True)):
        try:
            counts[k] = counts_of_shares(shares, float(events))
        except ValueError as error:
            raise ValueError(f"lumisection {number}: {error}") from error
    return replace(run, maps=replace(maps, counts=counts))


def _strategy(given: Strategy | str, geometry: Geometry, seed: int) -> Strategy:
    strategy = make_strategy(given, geometry=geometry, seed=seed) if isinstance(given, str) else given
    if strategy.classes:
        raise InputError(f"{strategy.name} has learnt {strategy.classes} runs already: give a new object")
    return strategy


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
