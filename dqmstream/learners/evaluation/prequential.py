"""Prequential accuracy: accuracy on lumisections as they arrive, before they are learnt.

A learner with windows predicts the run of each lumisection of a window on arrival. The labels come some windows later; only
then is the window counted, and learnt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.json_lines import Entries, read_lines


@dataclass(frozen=True)
class WindowAccuracy:
    """A window whose labels have come.

    number: 0, 1, 2, ... in the order of arrival. right: correct predictions, of `total`. cumulative: accuracy over all windows
    so far. sliding: over the last few of them.
    """

    number: int
    right: int
    total: int
    cumulative: float
    sliding: float


class Prequential:
    """Holds predictions of windows until their labels come, and counts them.

    With hit(k) = 1 where the prediction for lumisection k was right, and n lumisections counted so far:

        cumulative = 1/n sum over k <= n of hit(k)
        sliding    = the same over the lumisections of the last `sliding_windows` windows

    1 minus these are the prequential error and its sliding-window form (Gama, Sebastiao and Rodrigues, Machine Learning 90
    (2013) 317, section 3) for the 0-1 loss. The cumulative accuracy keeps the early errors for ever; the sliding one follows
    the present and scatters more. A lumisection of a run that was not known on arrival counts as wrong.
    """

    def __init__(self, delay_windows: int = 1, sliding_windows: int = 10) -> None:
        """delay_windows: windows that arrive before the labels of a window come; 0 is at once.

        counted: number of windows whose labels have come. Raises InputError for a negative delay or no sliding window.
        """
        if delay_windows < 0 or sliding_windows < 1:
            raise InputError(
                f"a label delay of {delay_windows} and a sliding part of {sliding_windows} windows: give at least 0 and 1"
            )
        self.delay_windows = delay_windows
        self.counted = 0
        self._waiting: deque[np.ndarray] = deque()
        self._last: deque[tuple[int, int]] = deque(maxlen=sliding_windows)
        self._right = self._total = 0

    @property
    def waiting(self) -> int:
        """Windows that have arrived and whose labels have not come."""
        return len(self._waiting)

    def arrive(self, named: np.ndarray) -> bool:
        """Take the predictions of a window, (n,) with n > 0. True where labels are due: call `label` before the next window."""
        if self.waiting > self.delay_windows:
            raise InputError(f"labels are due for window {self.counted}: give them before the next window")
        if len(named) == 0:
            raise InputError("a window without a lumisection has no accuracy: leave it out")
        self._waiting.append(np.array(named))
        return self.waiting > self.delay_windows

    def label(self, truth: np.ndarray) -> WindowAccuracy:
        """Count the oldest waiting window by its labels, (n,); at the end of a stream use `drain`.

        Raises InputError where no label is due or their number is not that of the window's lumisections.
        """
        if self.waiting <= self.delay_windows:
            raise InputError(f"no label is due: {self.waiting} windows wait, and labels come {self.delay_windows} later")
        return self._count(truth)

    def drain(self, truth: np.ndarray) -> WindowAccuracy:
        """The same for the windows that still wait when no more windows come."""
        if not self._waiting:
            raise InputError("no window waits for a label")
        return self._count(truth)

    def _count(self, truth: np.ndarray) -> WindowAccuracy:
        named = self._waiting[0]
        if named.shape != np.shape(truth):
            raise InputError(f"window {self.counted} has {len(named)} lumisections, but {np.size(truth)} labels came")
        self._waiting.popleft()
        return self.count(int(np.sum(named == truth)), len(named))

    def count(self, right: int, total: int) -> WindowAccuracy:
        """Count a window with `right` correct predictions of total > 0, as when counting is resumed."""
        self._right, self._total = self._right + right, self._total + total
        self._last.append((right, total))
        sliding = sum(hits for hits, _ in self._last) / sum(count for _, count in self._last)
        self.counted += 1
        return WindowAccuracy(self.counted - 1, right, total, self._right / self._total, sliding)


@dataclass(frozen=True)
class WindowLine(Entries):
    """A window whose labels have come, as a line of windows.jsonl; the entries stand in this order.

    window: its number in the stream. of_run: its number in the run. first, last: numbers of its first and last lumisection.
    lumisections: those that are not blank. right: correct predictions for these. cumulative, sliding: as in `WindowAccuracy`.
    known: whether the learner had begun to learn the run when the window arrived. classes: runs known by then. no_change:
    how many predictions had been right if all were the run whose label came last. named: each predicted run, and how often.
    snapshot: of the archive.
    """

    window: int
    run: int
    of_run: int
    first: int
    last: int
    lumisections: int
    right: int
    cumulative: float
    sliding: float
    known: bool
    classes: int
    no_change: int
    named: list[list[int]]
    snapshot: str

    def to_json(self) -> dict[str, Any]:
        """The line as a JSON object."""
        return asdict(self)


def read_windows(path: Path) -> list[WindowLine]:
    """The lines of a windows.jsonl; none where it does not exist. Raises StateError for any other file."""
    try:
        return [WindowLine.from_json(line) for line in read_lines(path)] if path.exists() else []
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StateError(f"{path} holds no windows: {error}") from error


def prequential_results(path: Path) -> dict[str, Any] | None:
    """The prequential accuracy over a windows.jsonl; None where no window was counted.

    accuracy: over all lumisections. accuracy_sliding: over those of the last windows. known: share of the lumisections whose
    run the learner had begun to learn when they arrived. accuracy_known: over these. no_change: accuracy of always naming the
    run whose label came last, which needs no map. guessing: accuracy of drawing one of the known runs. by_window: the lines.
    """
    lines = read_windows(path)
    if not lines:
        return None
    size, right, no_change, classes = (
        np.array([getattr(line, name) for line in lines]) for name in ("lumisections", "right", "no_change", "classes")
    )
    known = np.array([line.known for line in lines])
    return {
        "windows": len(lines),
        "lumisections": int(size.sum()),
        "accuracy": lines[-1].cumulative,
        "accuracy_sliding": lines[-1].sliding,
        "known": float(size[known].sum() / size.sum()),
        "accuracy_known": float(right[known].sum() / size[known].sum()) if known.any() else None,
        "no_change": float(no_change.sum() / size.sum()),
        "guessing": float((size * known / classes).sum() / size.sum()),
        "by_window": [line.to_json() for line in lines],
    }
