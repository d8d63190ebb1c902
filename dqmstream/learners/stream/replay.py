"""Replay: the live learner over archived runs, offline; same ledger lines, same code, same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dqmstream.errors import InputError
from dqmstream.learners.registry import resolve
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.ledger import Experience, describe, describe_windows, frozen_view, read_ledger
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
    """Learn archived runs one after another and return what came of it.

    Order: that of the ledger file, at its snapshots; without one, ascending run number at the archive's snapshot. Writes
    the state folder replay-<strategy>-<seed>, anew unless resume; a replay that is resumed goes on in its own order.
    Windows: those of the ledger, or as they would have come had each run been filed in order. Raises InputError where fewer
    than two runs are long enough, where a resumed replay had another order, or where the ledger has windows of another size.
    """
    name = f"replay-{resolve(settings.strategy) if strategy is None else strategy.name}-{settings.seed}"
    wanted = _of_ledger(ledger, settings.window) if ledger else _ascending(archive, settings.window)
    _need_two(archive, wanted)
    for line in wanted if ledger else ():
        if line.id is not None:
            frozen_view(archive, line, maps=False)  # a ledger of another archive is refused before an older replay is dropped
    with Learner(archive, state / name, settings, strategy=strategy, anew=not resume) as learner:
        frozen = learner.ledger.lines
        if ledger and [_place(line) for line in frozen] != [_place(line) for line in wanted[: len(frozen)]]:
            raise InputError(f"{ledger} has another order than the replay in {state / name}: leave out --resume to begin anew")
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
        raise InputError(f"{archive.path} has {learnable} run(s) long enough to learn, there is nothing to tell apart")


def _place(line: Experience) -> tuple[int, int | None, str]:
    """Run, window and contents of a line: what it is, whether or not it was left out."""
    return line.run, line.window, line.digest


def _of_ledger(path: Path, window: int) -> list[Experience]:
    """Lines of a ledger, with its windows where the learner takes any."""
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
        if window and learnable:  # until there is a run to tell others from, nothing can be named
            lines += describe_windows(archive, run, window, None, complete=True)
        lines.append(describe(archive, run, learnable))
        learnable += lines[-1].id is not None
    return lines
