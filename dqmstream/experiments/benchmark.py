"""Offline benchmarks: strategies over named streams, seeds and orders, cell by cell; a table with intervals at the end.

Cells are saved as they finish, and a benchmark that was stopped goes on with those that are missing. A cell that fails is
recorded, and does not stop the others.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dqmstream.errors import InputError
from dqmstream.experiments.bounds import BOUNDS, IDEAL_PROFILED
from dqmstream.experiments.cells import Cell, compute_and_save, load_cell
from dqmstream.experiments.streams import named_stream, seed_use
from dqmstream.learners.registry import (
    BASELINES,
    BUDGETED,
    DEFAULT,
    GRADIENT,
    MEMORY_BYTES,
    STREAMING,
    recipe_changes,
    recipe_of,
    resolve,
)
from dqmstream.learners.splits import Split

FOLDS = Split().folds


@dataclass(frozen=True)
class Spec:
    """What a benchmark runs: every strategy on every stream, seed and order.

    orders: how many orders of each stream, the first as drawn. runs, lumisections: of each stream. memory_bytes: kept of
    past runs, in all. evaluation_samples: test lumisections scored at an evaluation, in all. split: of `learners.splits`;
    with "folds" every cell comes once a fold. recipe: changes to the recipes of the strategies that have one.
    """

    streams: tuple[str, ...] = ("null", "moderate", "small", "structured")
    strategies: tuple[str, ...] = (*BOUNDS, *BASELINES)
    seeds: tuple[int, ...] = (100, 101)
    orders: int = 1
    runs: int = 20
    lumisections: int = 400
    memory_bytes: int = MEMORY_BYTES
    evaluation_samples: int = 6000
    split: str = "blocks"
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> Spec:
        """The same, with names resolved. Raises InputError for what does not exist or makes no sense, before anything runs."""
        for stream in self.streams:
            named_stream(stream)
        seed_use(self.seeds)
        Split(self.split)
        for what, value, least in (
            ("orders", self.orders, 1),
            ("runs", self.runs, 2),
            ("lumisections", self.lumisections, 180),
        ):
            if value < least:
                raise InputError(f"a benchmark needs {least} {what} at least, not {value}")
        recipe_of(DEFAULT, self.recipe)
        strategies = tuple(name if name in BOUNDS else resolve(name) for name in self.strategies)
        return replace(self, strategies=tuple(dict.fromkeys(strategies)))

    def cells(self) -> list[Cell]:
        """Every cell, those that take longest first."""
        return [
            Cell(
                stream, seed, order, strategy,
                self.runs, self.lumisections, self.memory_bytes, self.evaluation_samples, self.split, fold,
                self._recipe_changes(strategy),
            )
            for strategy in sorted(self.strategies, key=_slowest_first)
            for stream in self.streams
            for seed in self.seeds
            for order in range(self.orders)
            for fold in range(FOLDS if self.split == "folds" else 1)
        ]  # fmt: skip

    def _recipe_changes(self, strategy: str) -> str:
        changes = {} if strategy in BOUNDS else recipe_changes(strategy, self.recipe)
        return json.dumps(changes, sort_keys=True) if changes else ""


def _slowest_first(strategy: str) -> int:
    ranks = [*GRADIENT, IDEAL_PROFILED, *BUDGETED, *STREAMING]
    return ranks.index(strategy) if strategy in ranks else len(ranks)


def run_benchmark(
    spec: Spec, out: Path, *, workers: int = 2, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[dict[str, Any]]:
    """Compute what is missing of a benchmark's cells, in so many processes of one thread each; returns all cells, in order.

    Cells lie in `out/cells`; those that are there, of the same numbers and versions, are taken as they are. A cell that failed
    has "error" in place of its lines, and is tried again by the next call. progress: called with (finished, all). Raises
    InputError if the specification makes no sense or the folder cannot be written.
    """
    spec = spec.checked()
    folder = out / "cells"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another folder") from error
    cells = spec.cells()
    found = {cell: load_cell(folder, cell) for cell in cells}
    finished = {cell: done for cell, done in found.items() if done is not None}
    missing = [cell for cell in cells if cell not in finished]
    progress(len(finished), len(cells))
    if missing:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=min(workers, len(missing)), mp_context=spawn) as pool:
            running = {pool.submit(compute_and_save, folder, cell): cell for cell in missing}
            for future in as_completed(running):
                finished[running[future]] = future.result()
                progress(len(finished), len(cells))
    return [finished[cell] for cell in cells]
