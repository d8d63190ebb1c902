"""The learner of an archive: it learns each run once it is complete.

    a run is complete -> its ledger line is written, its snapshot tagged -> evaluated -> learnt -> evaluated again
    -> history -> checkpoint (the commit point)

With windows, those of a run come before it (`learners.stream.windows`). A learner follows an archive that is being filed, or
replays a ledger; both run the same code on the same lines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from dqmstream import __version__
from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.history import History, newest_average, newest_by_last, newest_temper
from dqmstream.learners.evaluation.prequential import prequential_results
from dqmstream.learners.maps import RunData
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.experience import Clock
from dqmstream.learners.stream.learner_settings import LearnerSettings, identity
from dqmstream.learners.stream.ledger import (
    Experience,
    Ledger,
    LostExperienceError,
    describe,
    describe_windows,
    newest_lines,
    read_experience,
)
from dqmstream.learners.stream.reference_file import ReferenceInfo, load_reference
from dqmstream.learners.stream.scores_file import write_scores
from dqmstream.learners.stream.snapshot_tags import SnapshotTags
from dqmstream.learners.stream.state_folder import StateFolder
from dqmstream.learners.stream.status import changes_since_frozen
from dqmstream.learners.stream.tasks import RunState, task_state
from dqmstream.learners.stream.windows import Windows
from dqmstream.learners.threads import ThreadPools
from dqmstream.storage.archive import Archive
from dqmstream.storage.row_index import RunSummary

POLL_S = 0.2
"""Pause between two looks at an archive in which nothing is complete."""

log = structlog.get_logger("dqmstream.learner")


class Learner:
    """One learner and its state folder. Use it in a `with` statement, or call `open` and `close`.

    Parameters
    ----------
    archive : Archive, str or Path
        The archive to learn from.
    folder : str or Path, optional
        Its state folder; by default `<archive>.state/<name of the strategy>`.
    settings : LearnerSettings, optional
        How it learns.
    strategy : Strategy or str, optional
        A strategy object, which no registry needs to know, or a name; in place of the one that the settings name. An object
        must have learnt nothing yet.
    anew : bool
        Remove what a learner left in the folder, once everything else was found to be valid.

    Examples
    --------
    >>> from dqmstream.learners.stream.learner import Learner
    >>> with Learner("archive", strategy="gain_map") as learner:  # doctest: +SKIP
    ...     learner.follow(once=True)
    ...     print(learner.results()["average_accuracy"])
    """

    def __init__(
        self,
        archive: Archive | str | Path,
        folder: str | Path | None = None,
        settings: LearnerSettings | None = None,
        *,
        strategy: Strategy | str | None = None,
        anew: bool = False,
    ) -> None:
        self.archive = archive if isinstance(archive, Archive) else Archive.open(archive)
        settings = settings or LearnerSettings()
        self.settings = replace(settings, strategy=strategy) if isinstance(strategy, str) else settings
        self._own_strategy = None if isinstance(strategy, str) else strategy
        self._state = task_state(self.settings, self.archive.geometry, self._own_strategy)
        path = self.archive.path
        self._path = Path(folder) if folder is not None else path.with_name(f"{path.name}.state") / self._state.name
        self._anew = anew
        self._folder: StateFolder | None = None
        self.reference: ReferenceInfo | None = None
        self._seen, self._summaries = "", list[RunSummary]()

    @property
    def _of_runs(self) -> RunState:
        if not isinstance(self._state, RunState):
            raise InputError(f"a learner of {self.settings.task} tells no runs apart")
        return self._state

    @property
    def strategy(self) -> Strategy:
        """What tells the runs apart. Raises InputError in the task of labels."""
        return self._of_runs.strategy

    @property
    def evaluator(self) -> Evaluator:
        """What it is evaluated on. Raises InputError in the task of labels."""
        return self._of_runs.evaluator

    def open(self) -> Learner:
        """Lock the state folder, restore the newest checkpoint, and be ready for the next experience.

        Raises StateInUseError if another process holds the folder, StateError if it was made for another learner or is damaged,
        InputError for a reference file that cannot be used or a strategy object that has learnt already.
        """
        if self.settings.reference is not None:
            reference, self.reference = load_reference(self.settings.reference, self.archive.geometry)
            self._state.set_reference(reference)
        self._began_ns = time.time_ns()
        self._folder = StateFolder(self._path, identity(self.archive, self.settings, self._own_strategy), anew=self._anew)
        self._pools = ThreadPools(self.settings.threads)
        try:
            if self.folder.dropped_id:
                self.archive.untag(self._tag_prefix(self.folder.dropped_id))
            self.ledger = Ledger(self.folder.ledger)
            self.history = History(self.folder.history)
            self._tags = SnapshotTags(self.archive, self._tag_prefix(self.folder.id))
            self._tags.hold(self.archive, self.ledger.lines)
            self.windows = Windows(
                self.folder,
                lambda: self.strategy,
                lambda: self._state.runs,
                self.settings.label_delay,
                self._read,
                self._past,
                self._meta,
            )
            self._at = 0
            self.learnt = self._resume()
        except BaseException as error:
            self.close(error)
            raise
        return self

    @property
    def folder(self) -> StateFolder:
        """The state folder. Raises InputError where the learner is not open."""
        if self._folder is None:
            raise InputError("the learner is not open: use it in a `with` statement, or call its `open` first")
        return self._folder

    def _resume(self) -> int:
        """Restore the newest checkpoint; returns how many experiences it has learnt."""
        found = checkpoint.load_newest(self.folder.checkpoints)
        if found is None:
            if self._own_strategy is not None and self.strategy.classes:
                raise InputError(f"{self.strategy.name} has learnt {self.strategy.classes} runs already: give a new object")
            self.history.cut(0)
            self._at = self.windows.resume(self.ledger.lines, 0, 0)
            return 0
        meta, arrays = found
        learnt = meta.experience + 1
        if len(self.history) < learnt or len(self.ledger.experiences) < learnt:
            raise StateError(f"{self.folder.path}: the checkpoint has learnt {learnt} experiences, ledger or history has fewer")
        self._state.restore(arrays, learnt, self._past)
        if meta.threads != self.settings.threads:
            log.warning("other number of threads: the bits may differ", before=meta.threads, now=self.settings.threads)
        elif meta.pools and meta.pools != self._pools.used():
            log.warning("other libraries or another processor: the bits may differ", before=meta.pools, now=self._pools.used())
        self.history.cut(learnt)
        position = self.ledger.lines.index(self.ledger.experiences[learnt - 1]) + 1
        self._at = self.windows.resume(self.ledger.lines, position, meta.windows)
        log.info("resumed", learnt=learnt, run=meta.runs[-1])
        return learnt

    @property
    def behind(self) -> list[Experience]:
        """Experiences in the ledger that are not learnt yet."""
        return self.ledger.experiences[self.learnt :]

    @property
    def waiting(self) -> list[Experience]:
        """Ledger lines that have not been processed: runs, windows, and runs that are left out."""
        return self.ledger.lines[self._at :]

    def freeze(self, lines: Iterable[Experience]) -> None:
        """Tag the snapshots of lines so that they do not expire, then append the lines to the ledger, numbered on.

        The tag comes first: a crash in between leaves a tag that nobody needs, never a line whose snapshot may expire.
        """
        lines = list(lines)
        self._tags.hold(self.archive, lines)
        for described in lines:
            number = None if described.id is None else len(self.ledger.experiences)
            line = replace(described, id=number)
            self.ledger.append(line)
            if line.left_out:
                log.warning("left out", run=line.run, why=line.left_out)

    def _tag_prefix(self, state_id: str) -> str:
        return f"{self.folder.path.name}.{state_id}."

    def again(self, run: int) -> None:
        """Make a new experience of a run that was learnt or left out, as the archive holds it now.

        Raises InputError for a run without a ledger line, a run that has not changed since, or one that is too short.
        """
        self.folder.beat()
        self.archive = self.archive.refresh()
        earlier = newest_lines(self.ledger.lines).get(run)
        if earlier is None:
            raise InputError(f"run {run} has not been learnt yet: leave out --again {run}")
        line = describe(self.archive, run, len(self.ledger.experiences))
        if line.digest == earlier.digest and not earlier.left_out:
            raise InputError(f"nothing of run {run} came or changed since it was learnt: leave out --again {run}")
        if line.left_out:
            raise InputError(f"run {run} cannot be learnt, it is {line.left_out}")
        self.freeze([line])

    def step(self) -> None:
        """Process the next line of the ledger."""
        self.folder.beat()
        self._pools.hold()  # libraries that were loaded since
        line = self.ledger.lines[self._at]
        if line.window is not None:
            if self.learnt:  # else every run before was left out, and there is none to tell this one from
                self.windows.arrive(self._at, line)
        else:
            self.windows.end()
            if line.id is not None:
                self._learn(line)
        self._at += 1

    def _learn(self, experience: Experience) -> None:
        number = self.learnt
        clock = Clock()
        try:
            run = self._read(experience)
        except LostExperienceError as error:
            self._leave_out(experience, str(error))
            return
        why = self._state.why_left_out(run, as_reference=number == 0 and self.reference is None)
        if why:
            self._leave_out(experience, why)
            return
        clock.lap("read")
        line, scores = self._state.learn(number, run, self._past)
        seconds = clock.seconds | line.seconds
        self.history.append(replace(line, snapshot=experience.snapshot, seed=self.settings.seed, seconds=seconds))
        if scores is not None:
            write_scores(self.folder.scores, number, scores, self._state.runs)
        checkpoint.save(self.folder.checkpoints, self._meta(number, experience.snapshot), self._state.arrays())
        self.learnt = number + 1
        log.info("learnt", experience=number, run=run.run, seconds=round(sum(seconds.values()), 1))

    def _leave_out(self, experience: Experience, why: str) -> None:
        log.error("left out", run=experience.run, why=why)
        self.ledger.leave_out(experience, why)

    def _past(self, number: int) -> RunData:
        return self._read(self.ledger.experiences[number])

    def _read(self, line: Experience) -> RunData:
        return read_experience(self.archive, line)

    def _meta(self, number: int, snapshot: str) -> checkpoint.CheckpointMeta:
        temper = newest_temper(self.history.newest)
        return checkpoint.CheckpointMeta(
            experience=number,
            runs=list(self._state.runs),
            strategy=self._state.name,
            seed=self.settings.seed,
            memory_bytes=self.settings.memory_bytes,
            archive_id=self.archive.archive_id,
            snapshot=snapshot,
            threads=self.settings.threads,
            pools=self._pools.used(),
            dqmstream=__version__,
            windows=self.windows.counted,
            temperature=None if temper is None else temper.temperature,
            correlation=None if temper is None else temper.correlation,
        )

    def follow(
        self,
        stop: Callable[[], bool] = lambda: False,
        *,
        wait: Callable[[float], object] = time.sleep,
        once: bool = False,
    ) -> None:
        """Learn runs as they become complete, until `stop` returns True. once: return when every complete run is learnt.

        stop is called between experiences. An experience that is under way when the process ends is learnt again after a
        restart.
        """
        while not stop():
            self.folder.beat()
            complete, open_runs = self._freeze_arrived(once)
            self._write_status(open_runs)
            if self.waiting:
                self.step()
                self._write_status(open_runs)
            elif once:
                return
            elif not complete:
                wait(POLL_S)

    def _freeze_arrived(self, once: bool) -> tuple[int, int]:
        """Freeze complete runs, and windows of the others; returns how many runs are complete and how many open."""
        self.archive = self.archive.refresh()
        is_new = self.archive.snapshot != self._seen
        if is_new:
            self._seen, self._summaries = self.archive.snapshot, self.archive.runs()
        fresh = [summary for summary in self._summaries if summary.run not in self.ledger.runs]
        now_ns = time.time_ns()
        # Time before this learner began does not count as silence: perhaps nothing was filed because ingest did not run.
        since_ns = 0 if once else self._began_ns
        silent_ns = {s.run: now_ns - max(s.last_committed_ns, since_ns) for s in fresh}
        complete = [s.run for s in fresh if s.complete or silent_ns[s.run] > self.settings.idle_s * 1e9]
        for run in complete:
            self.freeze(self._new_windows(run, complete=True))
            self.freeze([describe(self.archive, run, len(self.ledger.experiences))])
        for run in (s.run for s in fresh if is_new and s.run not in self.ledger.runs):
            self.freeze(self._new_windows(run, complete=False))
        return len(complete), len(fresh) - len(complete)

    def _new_windows(self, run: int, *, complete: bool) -> Iterator[Experience]:
        """Lines of windows that are filed and not frozen; none while there is no known run to tell the run from."""
        if self.settings.window and self.ledger.experiences:
            last = self.ledger.windows.get(run)
            yield from describe_windows(self.archive, run, self.settings.window, last, complete=complete)

    def _write_status(self, open_runs: int) -> None:
        """Write status.json: what was found in the archive, and what is still to be learnt."""
        learnt = self.ledger.experiences[: self.learnt]
        self.folder.write_status(
            {
                "strategy": self._state.name,
                "reference": "first run" if self.reference is None else self.reference.version,
                **self._state.status(),
                "reference_runs": None if self.reference is None else self.reference.runs,
                "pid": os.getpid(),
                "snapshot": self.archive.snapshot,
                "experiences_learnt": self.learnt,
                "experiences_behind": len(self.behind),
                "windows_behind": sum(line.window is not None for line in self.waiting),
                "prequential_accuracy": self.windows.accuracy,
                "open_runs": open_runs,
                "last_run": learnt[-1].run if learnt else None,
                **changes_since_frozen(self.ledger.lines, self._summaries),
                "average_accuracy": newest_average(self.history.newest),
                "accuracy_by_last": newest_by_last(self.history.newest),
            }
        )

    def results(self) -> dict[str, Any]:
        """What `replay --json` and `learn --json` print."""
        prequential = prequential_results(self.folder.windows)
        found = self._state.results(self.history.lines)
        return {
            "strategy": self._state.name,
            "seed": self.settings.seed,
            "snapshot": self.archive.snapshot,
            "runs": found.pop("runs"),
            "classes": list(self._state.runs),
            "left_out": {str(run): line.left_out for run, line in newest_lines(self.ledger.lines).items() if line.left_out},
            **found,
            "prequential": prequential,
        }

    def close(self, error: BaseException | None = None) -> None:
        """Release the state folder. error: why the learner ended, for `status`. Does nothing where the learner is not open."""
        if self._folder is not None:
            self._pools.release()
            self._folder.close(error)
            self._folder = None

    def __enter__(self) -> Learner:
        return self if self._folder is not None else self.open()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error if isinstance(error, Exception) else None)  # Control-C is no failure
