"""Scores of an evaluation as a file: for ROC curves, and for checking the figures of the history.

scores/000003.npz    log_probability float32 (n, T); labels int32 (n,); lumisection (n,); runs (T,), the run of each column
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dqmstream.learners.evaluation.matrix_row import Scores
from dqmstream.storage.locks import write_atomically

KEEP = 2


def write_scores(folder: Path, experience: int, scores: Scores, runs: Sequence[int]) -> None:
    """Write the scores after an experience, and remove all but the last two files."""
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        log_probability=scores.log_probability.astype(np.float32),
        labels=scores.labels.astype(np.int32),
        lumisection=scores.lumisection,
        runs=np.array(runs),
    )
    write_atomically(folder / f"{experience:06d}.npz", buffer.getvalue())
    for old in sorted(folder.glob("*.npz"))[:-KEEP]:
        old.unlink()
