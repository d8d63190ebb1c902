"""Replay: the learner over archived runs. The same ledger lines give the same bits as they gave live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dqmstream.errors import InputError
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings, strategy_name
from dqmstream.learners.stream.ledger import Experience, describe, describe_windows, frozen_view, read_ledger
from dqmstream.learners.task import RUNS
from dqmstream.storage.archive import Archive


def replay(
    archive: Archive,
    state: Path,
    settings: LearnerSettings,
    *,
    strategy: Strategy | None = None,
    ledger: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Learn archived runs one after another and return the results (`Learner.results`).

    state: folder in which the state folder replay-<strategy>-<seed> is written. It is written anew unless `resume` is True; a
    resumed replay keeps its order. ledger: gives the order of runs, their snapshots and their windows. Without one, runs are
    learnt in ascending order at the archive's snapshot, with windows as if each run had been filed in order. strategy: an
    object in place of the strategy that the settings name. progress: called with the experiences learnt and their number.

    Raises InputError where fewer than two runs can be learnt, a resumed replay had another order, or the ledger has windows of
    another size.
    """
    own = strategy_name(settings.task, settings.strategy) if strategy is None else strategy.name
    name = f"replay-{'' if settings.task == RUNS.name else settings.task + '-'}{own}-{settings.seed}"
    wanted = _of_ledger(ledger, settings.window) if ledger else _ascending(archive, settings.window)
    _need_two(archive, wanted)
    for line in wanted if ledger else ():
        if line.id is not None:
            frozen_view(archive, line, maps=False)  # refuse a ledger of another archive before an older replay is removed
    with Learner(archive, state / name, settings, strategy=strategy, anew=not resume) as learner:
        frozen = learner.ledger.lines
        if ledger and [_place(line) for line in frozen] != [_place(line) for line in wanted[: len(frozen)]]:
            raise InputError(f"{ledger} has another order than the replay in {state / name}: leave out --resume to begin again")
        learner.freeze(wanted[len(frozen) :] if ledger else [line for line in wanted if not learner.ledger.holds(line)])
        progress(learner.learnt, len(learner.ledger.experiences))
        while learner.waiting:
            learner.step()
            progress(learner.learnt, len(learner.ledger.experiences))
        _need_two(archive, learner.ledger.experiences)
        return learner.results()


def _need_two(archive: Archive, lines: list[Experience]) -> None:
    learnable = sum(line.id is not None for line in lines)
    if learnable < 2:
        raise InputError(f"{archive.path} has {learnable} run(s) that can be learnt; a replay needs two")


def _place(line: Experience) -> tuple[int, int | None, str]:
    """What identifies a line, whether or not it is left out: run, window and contents."""
    return line.run, line.window, line.digest


def _of_ledger(path: Path, window: int) -> list[Experience]:
    """Lines of a ledger file; with its windows where the learner has windows."""
    lines = read_ledger(path)
    if not window:
        return [line for line in lines if line.window is None]
    size = max((line.rows for line in lines if line.window == 0), default=0)
    if not size:
        raise InputError(f"{path} has no windows: leave out --window, or leave out --ledger to make windows of {window}")
    if size > window or (size < window and any(line.window for line in lines)):
        raise InputError(f"{path} has windows of {size} lumisections, not {window}: give --window {size}")
    return lines


def _ascending(archive: Archive, window: int) -> list[Experience]:
    """Ledger lines of all runs of the archive, by run number."""
    lines: list[Experience] = []
    learnable = 0
    for run in sorted(summary.run for summary in archive.runs()):
        if window and learnable:  # a first run has no windows: there is nothing to tell it from
            lines += describe_windows(archive, run, window, None, complete=True)
        lines.append(describe(archive, run, learnable))
        learnable += lines[-1].id is not None
    return lines
