"""Runs cut into stretches of consecutive lumisections, and sums over the window that ends at each lumisection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WINDOW = 30
"""Lumisections in a window: the one that is scored and up to 29 of its run before it."""

_BATCH = 256
"""Lumisections handled at once."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Consecutive lumisections of one run.

    run: position of the run in the call. start, stop: lumisections to score. begin: the first of those before them that their
    windows reach.
    """

    run: int
    begin: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.begin


def batches(sizes: list[int]) -> Iterator[list[Stretch]]:
    """Runs of these numbers of lumisections, cut into stretches of at most 256 to score, about 256 lumisections a batch."""
    batch: list[Stretch] = []
    for run, size in enumerate(sizes):
        for start in range(0, size, _BATCH):
            batch.append(Stretch(run, max(0, start - WINDOW + 1), start, min(start + _BATCH, size)))
            if sum(map(len, batch)) >= _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def window_sums(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum over the window of each row: the row and up to 29 before it, not reaching across `ends`, the ends of pieces."""
    out = np.empty_like(values)
    for begin, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        total = np.cumsum(values[begin:end], axis=0, out=out[begin:end])
        total[WINDOW:] -= total[:-WINDOW].copy()
    return out
