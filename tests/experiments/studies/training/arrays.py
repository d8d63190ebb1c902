"""Images that lie in memory, for tests of what reads them."""

from __future__ import annotations

import hashlib

import numpy as np


class ArrayImages:
    """An `Images`; reads: rows of each call of `read`."""

    def __init__(self, x: np.ndarray, labels: np.ndarray, group: np.ndarray | None = None) -> None:
        self.x, self.labels = x, labels.astype(np.int64)
        self.shape: tuple[int, int, int, int] = x.shape
        self.classes = tuple(f"class {k}" for k in range(int(labels.max()) + 1))
        self.group = np.arange(len(x)) if group is None else group
        self.digest = hashlib.sha256(x.tobytes()).hexdigest()
        self.reads: list[np.ndarray] = []

    def read(self, rows: np.ndarray) -> np.ndarray:
        self.reads.append(rows)
        return self.x[rows].astype(np.float32)


def bars(n: int, seed: int = 0) -> ArrayImages:
    """Images 1 x 6 x 6 with a bright row (0) or column (1) in a place of its own, in noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, 0.3, (n, 1, 6, 6))
    labels = np.arange(n) % 2
    for image, label, place in zip(x, labels, rng.integers(6, size=n), strict=True):
        image[0, place, :] += 1.0 - label
        image[0, :, place] += 1.0 * label
    return ArrayImages(x.astype(np.float32), labels)
