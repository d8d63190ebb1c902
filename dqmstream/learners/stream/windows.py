"""Windows: a run is learnt while it goes on, a fixed number of lumisections at a time.

    a window is filed -> ledger line written -> its runs predicted -> (windows pass) -> its label comes -> accuracy counted
    -> the run is learnt up to that window -> checkpoint between runs

A run is one class, and a strategy learns a class in one piece. So the state of the strategy before the run is kept. At each
window it is restored, and the run is learnt anew up to that window, which costs a training a window. When the run is complete,
the state is restored once more and the whole run is learnt: between runs, a learner with windows has the same bits as one
without.

Of runs that overlap, only the one whose label came last is learnt before it is complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from scipy.special import log_softmax

from dqmstream.errors import StateError
from dqmstream.learners.blank import informative
from dqmstream.learners.evaluation.json_lines import append_line, keep_lines
from dqmstream.learners.evaluation.prequential import Prequential, WindowAccuracy, WindowLine, read_windows
from dqmstream.learners.evaluation.repeated_runs import merge_repeated
from dqmstream.learners.learnable import has_counts
from dqmstream.learners.maps import RunData
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import FEWEST_TRAIN, Part
from dqmstream.learners.strategy import Past, Strategy
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.experience import Clock
from dqmstream.learners.stream.ledger import Experience, LostExperienceError
from dqmstream.learners.stream.state_folder import StateFolder

log = structlog.get_logger("dqmstream.learner")


@dataclass(frozen=True)
class _Waiting:
    """A window whose label has not come, and what the learner knew when it arrived.

    number: of its line in the ledger. named: the predicted runs, (n,). classes: runs known then. is_known: whether its run was
    one of them. newest: the run whose label had come last.
    """

    number: int
    line: Experience
    named: np.ndarray
    classes: int
    is_known: bool
    newest: int


class Windows:
    """The work of a learner between two runs. The first run has no windows: there is nothing to tell it from.

    counted: number of windows whose label has come; each is a `WindowLine` of windows.jsonl. accuracy: over these; None before
    the first.
    """

    def __init__(
        self,
        folder: StateFolder,
        strategy: Callable[[], Strategy],
        runs: Callable[[], Sequence[int]],
        delay: int,
        read: Callable[[Experience], RunData],
        past: Past,
        meta: Callable[[int, str], checkpoint.CheckpointMeta],
    ) -> None:
        """strategy, runs: give what tells runs apart, and the run of each experience. delay: windows until a label comes.

        read, past: read the lumisections of a ledger line, and of an experience. meta: makes the metadata of a checkpoint from
        its number and snapshot.
        """
        self._folder, self._told_apart_by, self._known_runs = folder, strategy, runs
        self._read, self._past, self._meta = read, past, meta
        self._delay = delay
        self._begin()

    @property
    def _strategy(self) -> Strategy:
        return self._told_apart_by()

    def _begin(self) -> None:
        self._prequential = Prequential(self._delay)
        self._waiting: deque[_Waiting] = deque()
        self._before: dict[str, np.ndarray] | None = None  # state of the strategy without the current run
        self._learnt: tuple[int, int] | None = None  # that run, and how many train lumisections were learnt
        self._newest: int | None = None
        self.accuracy: float | None = None

    @property
    def counted(self) -> int:
        return self._prequential.counted

    @property
    def _names(self) -> np.ndarray:
        """The run of each class that the strategy has now."""
        return np.array([*self._known_runs(), *([] if self._learnt is None else [self._learnt[0]])])

    def arrive(self, number: int, line: Experience) -> None:
        """Predict the runs of a window; count and learn the window whose label comes with it. number: of its ledger line."""
        clock = Clock()
        try:
            run = self._read(line)
        except LostExperienceError as error:
            log.error("window left out", run=line.run, window=line.window, why=str(error))
            return
        own = run.maps.take(np.flatnonzero(run.maps.lumisection >= line.first))
        own = own.take(informative(own.counts))
        names = self._names
        named = names[merge_repeated(log_softmax(self._strategy.scores(own), axis=1), names.tolist()).argmax(axis=1)]
        newest = self._known_runs()[-1] if self._newest is None else self._newest
        self._waiting.append(_Waiting(number, line, named, len(names), line.run in names, newest))
        clock.lap("name")
        if self._prequential.arrive(named):
            due = self._waiting[0].line
            self._count(due, self._prequential.label)
            self._learn(due)
        clock.lap("learn")
        self._save(number, line)

    def end(self) -> None:
        """Finish the windows of a complete run: count those that wait, and restore the strategy as it was before the run."""
        while self._waiting:
            self._count(self._waiting[0].line, self._prequential.drain)
        self._newest = None
        self._take_back()

    def _count(self, line: Experience, label: Callable[[np.ndarray], WindowAccuracy]) -> None:
        was = self._waiting.popleft()
        found = label(np.full(len(was.named), line.run))
        runs, counts = np.unique(was.named, return_counts=True)
        self._newest, self.accuracy = line.run, found.cumulative
        append_line(
            self._folder.windows,
            WindowLine(
                window=found.number,
                run=line.run,
                of_run=line.window or 0,
                first=line.first,
                last=line.last,
                lumisections=found.total,
                right=found.right,
                cumulative=found.cumulative,
                sliding=found.sliding,
                known=was.is_known,
                classes=was.classes,
                no_change=found.total if was.newest == line.run else 0,
                named=[[int(run), int(count)] for run, count in zip(runs, counts, strict=True)],
                snapshot=line.snapshot,
            ).to_json(),
        )

    def _learn(self, line: Experience) -> None:
        """Learn the run up to the window, unless it has no train lumisections that were not learnt already."""
        if line.train < FEWEST_TRAIN or self._learnt == (line.run, line.train):
            return
        run = self._read(line)
        if has_counts(run.part(Part.TRAIN)).sum() < FEWEST_TRAIN:
            return
        self._take_back()
        self._before = _copy(self._strategy.state())
        self._strategy.learn(len(self._known_runs()), run, self._past)
        self._learnt = line.run, line.train

    def _take_back(self) -> None:
        if self._before is not None:
            self._strategy.restore(self._before)
        self._before = self._learnt = None

    def _save(self, number: int, line: Experience) -> None:
        waiting = [(was.classes, was.is_known, was.newest) for was in self._waiting]
        arrays = {
            "learnt": np.array(self._learnt or (), dtype=np.int64),
            "newest": np.array([] if self._newest is None else [self._newest], dtype=np.int64),
            "waiting": np.array(waiting, dtype=np.int64).reshape(-1, 3),
            "lines": np.array([was.number for was in self._waiting], dtype=np.int64),
            **{f"named.{i}": was.named for i, was in enumerate(self._waiting)},
        }
        if self._learnt is not None:
            arrays |= prefixed("strategy", self._strategy.state())
        checkpoint.save(self._folder.window_checkpoints, self._meta(number, line.snapshot), arrays)

    def resume(self, lines: list[Experience], position: int, counted: int) -> int:
        """Resume from the newest checkpoint between runs; the strategy is as it was at the end of the last run.

        lines: of the ledger. position: how many of them had been processed at the end of the last run. counted: windows counted
        by then. Returns the position now. Raises StateError where the ledger or windows.jsonl is behind a checkpoint.
        """
        self._begin()
        found = checkpoint.load_newest(self._folder.window_checkpoints)
        if found is not None and found[0].experience >= position:
            meta, arrays = found
            position, counted = meta.experience + 1, meta.windows
            self._restore(lines[:position], position, arrays)
        path = self._folder.windows
        known = read_windows(path)
        if len(known) < counted:
            raise StateError(f"{path} has {len(known)} windows, but a checkpoint has counted {counted}: it is damaged")
        keep_lines(path, counted)
        accuracies = [self._prequential.count(line.right, line.lumisections).cumulative for line in known[:counted]]
        self.accuracy = accuracies[-1] if accuracies else None
        return position

    def _restore(self, lines: list[Experience], position: int, arrays: dict[str, np.ndarray]) -> None:
        if len(lines) < position or not {"learnt", "newest", "waiting"} <= arrays.keys():
            raise StateError(
                f"{self._folder.window_checkpoints} holds a checkpoint of lines that the ledger does not have: it is damaged"
            )
        waiting = arrays["waiting"].tolist()
        # An older checkpoint does not hold which lines wait; they are the last ones.
        numbers = arrays.get("lines", np.arange(position - len(waiting), position)).tolist()
        for i, (number, (classes, is_known, newest)) in enumerate(zip(numbers, waiting, strict=True)):
            self._waiting.append(_Waiting(number, lines[number], arrays[f"named.{i}"], classes, bool(is_known), newest))
            self._prequential.arrive(arrays[f"named.{i}"])
        self._newest = int(arrays["newest"][0]) if arrays["newest"].size else None
        if arrays["learnt"].size:
            run, train = arrays["learnt"].tolist()
            self._before, self._learnt = _copy(self._strategy.state()), (run, train)
            self._strategy.restore(within(arrays, "strategy"))


def _copy(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in state.items()}
