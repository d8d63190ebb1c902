"""The incremental learner: archive in, experiences one after another, checkpoint last.

    a run is complete -> ledger line frozen, snapshot tagged -> judged before learning -> learnt -> evaluated
    -> history -> checkpoint (the commit point)

Where it takes windows, those of a run come before it (`learners.stream.windows`). It follows an archive while ingest writes to
it, or
replays a ledger; both are the same code on the same lines.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from dqmstream import __version__
from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.evaluator import Evaluator, Scores
from dqmstream.learners.evaluation.history import History, newest_average, results
from dqmstream.learners.evaluation.prequential import prequential_results
from dqmstream.learners.evaluation.stability_gap import Watcher
from dqmstream.learners.learnable import why_left_out
from dqmstream.learners.maps import RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.registry import LIVE_BASELINES, make_strategy, recipe_changes, recipe_of, resolve
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.experience import Clock
from dqmstream.learners.stream.learned import Taught
from dqmstream.learners.stream.ledger import (
    Experience,
    Ledger,
    LostExperienceError,
    describe,
    describe_windows,
    late,
    newest_lines,
    read_experience,
)
from dqmstream.learners.stream.reference_file import About, load_reference
from dqmstream.learners.stream.snapshot_tags import SnapshotTags
from dqmstream.learners.stream.state_folder import Identity, StateFolder
from dqmstream.learners.stream.windows import Windows
from dqmstream.learners.threads import ThreadPools
from dqmstream.storage.archive import Archive
from dqmstream.storage.locks import write_atomically
from dqmstream.storage.row_index import RunSummary

log = structlog.get_logger("dqmstream.learner")


@dataclass(frozen=True)
class LearnerSettings:
    """How a learner learns.

    strategy: a name of the registry. recipe: changes to its recipe, if it has one. reference: file of
    `learners.stream.reference_file`, else the first run is it. memory_bytes: budget for what is kept of
    past runs, in all. idle_s: a run without a stop is complete when nothing of it came for so long. evaluation_samples: test
    lumisections scored at an evaluation, in all.
    watch_samples: lumisections scored in the course of each training, 0 for none (`learners.evaluation.stability_gap`);
    changes nothing learnt,
    and raises InputError where it does not suffice for one run. window: a run is learnt from while it goes on, so many
    lumisections at a time, 0 for not (`learners.stream.windows`); label_delay: windows until it is known of which run one was.
    threads: of the CPU; one by default, since a second made a step of the small default model 1.4 times as fast on idle
    cores and 20 times as slow where other processes wanted them. device: "auto", "cpu" or "cuda".
    """

    strategy: str = "default"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    reference: Path | None = None
    seed: int = 0
    memory_bytes: int = 1_000_000
    idle_s: float = 300.0
    evaluation_samples: int = 6000
    watch_samples: int = 0
    window: int = 0
    label_delay: int = 1
    threads: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.watch_samples:
            Watcher(self.watch_samples)


class Learner:
    """One learner and its state folder."""

    def __init__(self, archive: Archive, folder: Path, settings: LearnerSettings, *, anew: bool = False) -> None:
        """Open the state folder, take back the newest checkpoint, and be ready for the next experience.

        anew: drop what a learner of any kind had left in the folder, once everything else was found good.
        """
        self.archive = archive
        self.settings = settings
        self.name = resolve(settings.strategy)
        self.strategy = make_strategy(
            self.name,
            geometry=archive.geometry,
            seed=settings.seed,
            recipe=recipe_of(self.name, settings.recipe),
            memory_bytes=settings.memory_bytes,
            device=settings.device,
        )
        self._taught = Taught(
            self.strategy,
            {name: make_strategy(name, geometry=archive.geometry, seed=settings.seed) for name in LIVE_BASELINES},
            Novelty(archive.geometry, settings.seed),
            Evaluator(settings.evaluation_samples),
            Watcher(settings.watch_samples) if settings.watch_samples else None,
        )
        self.evaluator = self._taught.evaluator
        self.reference = self._set_reference(settings.reference)
        self._began_ns = time.time_ns()
        self.folder = StateFolder(folder, identity(archive, settings), anew=anew)
        self._pools = ThreadPools(settings.threads)
        try:
            if self.folder.dropped_id:
                archive.untag(self._tag_prefix(self.folder.dropped_id))
            self.ledger = Ledger(self.folder.ledger)
            self.history = History(self.folder.history)
            self._tags = SnapshotTags(archive, self._tag_prefix(self.folder.id))
            self._tags.hold(archive, self.ledger.lines)
            runs = self.evaluator.runs
            self.windows = Windows(self.folder, self.strategy, runs, settings.label_delay, self._read, self._past, self._meta)
            self._at = 0
            self.learnt = self._resume()
        except BaseException as error:
            self.close(error)
            raise

    def _set_reference(self, path: Path | None) -> About | None:
        """Give all that is taught the reference of that file, if there is one; returns what it tells."""
        if path is None:
            return None
        reference, about = load_reference(path, self.archive.geometry)
        self._taught.set_reference(reference)
        return about

    def _resume(self) -> int:
        """Take back the newest checkpoint; returns how many experiences it has learnt."""
        found = checkpoint.load_newest(self.folder.checkpoints)
        if found is None:
            self.history.cut(0)
            self._at = self.windows.resume(self.ledger.lines, 0, 0)
            return 0
        meta, arrays = found
        learnt = meta.experience + 1
        if len(self.history) < learnt or len(self.ledger.experiences) < learnt:
            raise StateError(f"{self.folder.path}: the checkpoint has learnt {learnt} experiences, ledger or history has fewer")
        self._taught.restore(arrays, learnt, self._past)
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
        """Frozen experiences that are not learnt yet."""
        return self.ledger.experiences[self.learnt :]

    @property
    def waiting(self) -> list[Experience]:
        """Frozen lines that were not gone through yet: runs, windows, and runs that are left out."""
        return self.ledger.lines[self._at :]

    def freeze(self, lines: Iterable[Experience]) -> None:
        """Tag the snapshots of lines so that they outlive expiry, and put the lines in the ledger, numbered on.

        The tag comes first: a crash in between leaves a tag that nobody needs, and never a line whose snapshot may expire.
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
        """Freeze a run that was learnt, or left out, once more, as the archive holds it now: it becomes an experience anew.

        Raises InputError for a run that has no line yet, of which nothing came or changed since, or that is too short.
        """
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
        """Go through the next frozen line, and everything that goes with it."""
        self.folder.beat()
        self._pools.hold()  # what was loaded since
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
        why = why_left_out(run, as_reference=number == 0 and self.reference is None)
        if why:
            self._leave_out(experience, why)
            return
        clock.lap("read")
        judged, scores = self._taught.learn(number, run, self._past)
        seconds = clock.seconds | judged.seconds
        self.history.append(replace(judged, snapshot=experience.snapshot, seed=self.settings.seed, seconds=seconds))
        self._write_scores(number, scores)
        self._checkpoint(experience, number)
        self.learnt = number + 1
        log.info("learnt", experience=number, run=run.run, seconds=round(sum(seconds.values()), 1))

    def _leave_out(self, experience: Experience, why: str) -> None:
        log.error("left out", run=experience.run, why=why)
        self.ledger.leave_out(experience, why)

    def _past(self, number: int) -> RunData:
        return self._read(self.ledger.experiences[number])

    def _read(self, line: Experience) -> RunData:
        return read_experience(self.archive, line)

    def _write_scores(self, number: int, scores: Scores | None) -> None:
        """Keep what the last two evaluations said of each test lumisection, for ROC curves and for checking."""
        if scores is None:
            return
        self.folder.scores.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            log_probability=scores.log_probability.astype(np.float32),
            labels=scores.labels.astype(np.int32),
            lumisection=scores.lumisection,
            runs=np.array(self.evaluator.runs),
        )
        write_atomically(self.folder.scores / f"{number:06d}.npz", buffer.getvalue())
        for old in sorted(self.folder.scores.glob("*.npz"))[:-2]:
            old.unlink()

    def _checkpoint(self, experience: Experience, number: int) -> None:
        checkpoint.save(self.folder.checkpoints, self._meta(number, experience.snapshot), self._taught.state())

    def _meta(self, number: int, snapshot: str) -> checkpoint.CheckpointMeta:
        return checkpoint.CheckpointMeta(
            experience=number,
            runs=self.evaluator.runs,
            strategy=self.name,
            seed=self.settings.seed,
            memory_bytes=self.settings.memory_bytes,
            archive_id=self.archive.archive_id,
            snapshot=snapshot,
            threads=self.settings.threads,
            pools=self._pools.used(),
            dqmstream=__version__,
            windows=self.windows.judged,
        )

    def follow(self, stop: Callable[[], bool], *, wait: Callable[[float], object] = time.sleep, once: bool = False) -> None:
        """Learn runs as they become complete, until `stop` says so; once: until nothing complete is left to learn.

        stop is asked between experiences: one that is under way when the process ends is learnt again after a restart.
        """
        seen = ""
        summaries: list[RunSummary] = []
        while not stop():
            self.folder.beat()
            self.archive = self.archive.refresh()
            is_new = self.archive.snapshot != seen
            if is_new:
                seen, summaries = self.archive.snapshot, self.archive.runs()
            fresh = [summary for summary in summaries if summary.run not in self.ledger.runs]
            now_ns = time.time_ns()
            # What was not filed because nothing ran, ingest and learner alike, must not look like silence of the detector.
            since_ns = 0 if once else self._began_ns
            silent_ns = {s.run: now_ns - max(s.last_committed_ns, since_ns) for s in fresh}
            complete = [s.run for s in fresh if s.complete or silent_ns[s.run] > self.settings.idle_s * 1e9]
            for run in complete:
                self.freeze(self._windows_of(run, complete=True))
                self.freeze([describe(self.archive, run, len(self.ledger.experiences))])
            for run in (s.run for s in fresh if is_new and s.run not in self.ledger.runs):
                self.freeze(self._windows_of(run, complete=False))
            self._report(summaries, len(fresh) - len(complete))
            if self.waiting:
                self.step()
                self._report(summaries, len(fresh) - len(complete))
            elif once:
                return
            elif not complete:
                wait(0.2)

    def _windows_of(self, run: int, *, complete: bool) -> Iterator[Experience]:
        """Lines of its windows that have come and are not frozen; none while no run is known that it could be told from."""
        if self.settings.window and self.ledger.experiences:
            last = self.ledger.windows.get(run)
            yield from describe_windows(self.archive, run, self.settings.window, last, complete=complete)

    def _report(self, summaries: list[RunSummary], open_runs: int) -> None:
        """Say in status.json what was seen of the archive and what is still to be learnt."""
        frozen = newest_lines(self.ledger.lines)
        known = [(s, frozen[s.run]) for s in summaries if s.run in frozen]
        revised = {str(s.run): s.revisions - line.revisions for s, line in known if s.revisions > line.revisions}
        learnt = self.ledger.experiences[: self.learnt]
        self.folder.write_status(
            {
                "strategy": self.name,
                "reference": "first run" if self.reference is None else self.reference.version,
                "reference_taught": self._taught.novelty.reference_summary(),
                "reference_runs": None if self.reference is None else self.reference.runs,
                "pid": os.getpid(),
                "snapshot": self.archive.snapshot,
                "experiences_learnt": self.learnt,
                "experiences_behind": len(self.behind),
                "windows_behind": sum(line.window is not None for line in self.waiting),
                "prequential_accuracy": self.windows.accuracy,
                "open_runs": open_runs,
                "last_run": learnt[-1].run if learnt else None,
                "left_out": {str(line.run): line.left_out for line in frozen.values() if line.left_out},
                "late_lumisections": {str(s.run): late(line, s) for s, line in known if late(line, s)},
                "revised_lumisections": revised,
                "average_accuracy": newest_average(self.history.newest),
            }
        )

    def results(self) -> dict[str, Any]:
        """What `replay --json` and `learn --json` print."""
        found = results(self.history.lines)
        return {
            "strategy": self.name,
            "seed": self.settings.seed,
            "snapshot": self.archive.snapshot,
            "runs": found.pop("runs"),
            "classes": self.evaluator.runs,
            "left_out": {str(run): line.left_out for run, line in newest_lines(self.ledger.lines).items() if line.left_out},
            **found,
            "prequential": prequential_results(self.folder.windows),
        }

    def close(self, error: BaseException | None = None) -> None:
        """Let go of the state folder. error: what ended the learner, told in `status`."""
        self._pools.release()
        self.folder.close(error)

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error if isinstance(error, Exception) else None)  # Control-C is no failure


def identity(archive: Archive, settings: LearnerSettings) -> Identity:
    """What makes a learner another one."""
    return Identity(
        strategy=resolve(settings.strategy),
        seed=settings.seed,
        memory_bytes=settings.memory_bytes,
        evaluation_samples=settings.evaluation_samples,
        watch_samples=settings.watch_samples,
        window=settings.window,
        label_delay=settings.label_delay if settings.window else 1,
        archive_id=archive.archive_id,
        recipe=recipe_changes(settings.strategy, settings.recipe),
        reference=load_reference(settings.reference, archive.geometry)[1].version if settings.reference else "",
    )
