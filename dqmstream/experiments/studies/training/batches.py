"""Mini-batches from files of any size: blocks of rows in random order, shuffled within a buffer, read one buffer ahead.

The rows of a file are often sorted by class, and reading single rows in random order is slow. A buffer holds many blocks of
`BLOCK` rows from the whole file. A process holds two buffers at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

BLOCK = 64
"""Number of neighbouring rows that are read together."""

BUFFER_BYTES = 128_000_000

HOLE = 8
"""Gaps of fewer rows are read along with their neighbours: each separate read of a compressed file decodes a whole chunk."""

Batch = tuple[np.ndarray, np.ndarray]
"""Images (n, C, H, W) float32 and their labels (n,) int64."""


class Images(Protocol):
    """Images in files, as `storage.images.source` opens them."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, H, W)."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each label."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64."""
        ...

    @property
    def group(self) -> np.ndarray:
        """(n,): the lumisection number if rows are lumisections, else the row number."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of all contents, hexadecimal."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32 (len(rows), C, H, W), in the order of rows."""
        ...


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Ascending rows of the three parts, int64 (n,) each."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def shuffled(images: Images, rows: np.ndarray, batch: int, rng: np.random.Generator) -> Iterator[Batch]:
    """All rows once, in random order, `batch` at a time. The last batch has the rest; a rest of a single row is left out.

    rows: ascending.
    """
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    order = rng.permutation(len(blocks))
    per_buffer = max(1, buffer_rows(images) // BLOCK)
    plans = [
        np.sort(np.concatenate([blocks[k] for k in order[start : start + per_buffer]]))
        for start in range(0, len(order), per_buffer)
    ]
    left: Batch | None = None
    for x, y in _read_ahead(images, plans):
        mixed = rng.permutation(len(x))
        x, y = x[mixed], y[mixed]
        if left is not None:
            x, y = np.concatenate([left[0], x]), np.concatenate([left[1], y])
        whole = len(x) // batch * batch
        for start in range(0, whole, batch):
            yield x[start : start + batch], y[start : start + batch]
        left = x[whole:].copy(), y[whole:].copy()
    if left is not None and len(left[0]) > 1:
        yield left


def in_order(images: Images, rows: np.ndarray, batch: int) -> Iterator[Batch]:
    """All rows, ascending, at most `batch` at a time."""
    size = min(batch, buffer_rows(images))
    yield from _read_ahead(images, [rows[start : start + size] for start in range(0, len(rows), size)])


def buffer_rows(images: Images) -> int:
    """Number of rows in a buffer."""
    return max(1, BUFFER_BYTES // (4 * int(np.prod(images.shape[1:]))))


def _read_ahead(images: Images, plans: Sequence[np.ndarray]) -> Iterator[Batch]:
    """Batches of the rows in each plan; the next one is read while this one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="images") as reader:
        ahead = [reader.submit(_read, images, rows) for rows in plans[:1]]
        for number, rows in enumerate(plans):
            x = ahead.pop().result()
            if number + 1 < len(plans):
                ahead.append(reader.submit(_read, images, plans[number + 1]))
            yield x, images.labels[rows]


def _read(images: Images, rows: np.ndarray) -> np.ndarray:
    """Images of ascending rows; gaps up to `HOLE` are read as well and dropped."""
    gap = np.diff(rows)
    holes = [rows[:-1][(gap > k) & (gap <= HOLE)] + k for k in range(1, HOLE)]
    wide = np.sort(np.concatenate([rows, *holes]))
    x = images.read(wide)
    return x if len(wide) == len(rows) else x[np.searchsorted(wide, rows)]
