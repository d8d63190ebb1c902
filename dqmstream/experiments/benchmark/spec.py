"""What a benchmark computes: tables of strategies and models on simulated streams."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from dqmstream.errors import InputError
from dqmstream.experiments.benchmark.bounds import BOUNDS, IDEAL_PROFILED
from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.simulator import LIVE
from dqmstream.experiments.simulator.streams import named_stream, seed_use
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import (
    CLOSED_FORMS,
    GRADIENT,
    MEMORY_BYTES,
    TABLE_BASELINES,
    recipe_changes,
    recipe_of,
    resolve,
    strategy_info,
)
from dqmstream.learners.splits import Split

FOLDS = Split().folds
_T = TypeVar("_T")

YARDSTICK = "gain_map"
"""The strategy that others are compared with by default: it is hard to beat and does not forget."""


@dataclass(frozen=True)
class Variant:
    """A row of a table: a strategy with a model and a memory budget.

    model: label of the model, "" for the strategy's own. recipe: changes to the strategy's recipe, as in `BenchmarkCell`.
    label: name of the row.
    """

    strategy: str
    model: str
    memory_bytes: int
    recipe: str
    label: str

    @property
    def bound(self) -> bool:
        return self.strategy in BOUNDS


@dataclass(frozen=True)
class TableSpec:
    """A table: every strategy, with every model if it takes one, on every stream, seed and order.

    orders: number of orders of each stream, the first as drawn. runs, lumisections: number of runs, and of lumisections in
    each. memory_bytes: budgets for all past runs, a row each. evaluation_samples: number of test lumisections in an evaluation.
    split: of `learners.splits`; with "folds" there is a cell per fold. recipe: changes to the recipes of the strategies that
    have one. models: further changes, by label.

    compute: what is equal for all strategies that train a network. "steps": lumisections per training (steps x batch); "flops":
    operations of the forward and backward passes, those of the default model with the changes of `recipe`; "own": nothing, the
    steps of each recipe apply. A strategy that trains more often or on more lumisections at once (joint) still does.
    against: label of the row that others are compared with, run by run. focus: stream of which the table gives forgetting and
    comparison; by default "small" if there, else the first.
    """

    name: str = "benchmark"
    title: str = ""
    streams: tuple[str, ...] = ("null", "moderate", "small", "structured")
    strategies: tuple[str, ...] = (*BOUNDS, *TABLE_BASELINES)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (100, 101)
    orders: int = 1
    runs: int = 20
    lumisections: int = 400
    memory_bytes: tuple[int, ...] = (MEMORY_BYTES,)
    evaluation_samples: int = 6000
    split: str = "blocks"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    compute: Literal["steps", "flops", "own"] = "steps"
    against: str = YARDSTICK
    focus: str = ""

    def checked(self) -> TableSpec:
        """The same with names resolved. Raises InputError, which names the key, for what does not exist or makes no sense."""
        with in_key("name"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
                raise InputError(f"{self.name!r} cannot be part of a file name: use letters, digits, dots and dashes")
        with in_key("streams"):
            for stream in _some(self.streams):
                named_stream(stream)
        with in_key("seeds"):
            seed_use(self.seeds)
        with in_key("split"):
            Split(self.split)
        for key, least, most in (
            ("orders", 1, 10_000),
            ("runs", 2, 100_000),
            ("lumisections", 180, 10_000_000),
            ("evaluation_samples", 1, 2**31 - 1),
        ):
            if not least <= getattr(self, key) <= most:
                raise InputError(f"{key}: a benchmark takes {least} to {most} {key}, not {getattr(self, key)}")
        if min(_some(self.memory_bytes)) < 0:
            raise InputError(f"memory_bytes: {min(self.memory_bytes)} is negative")
        with in_key("recipe"):
            reference = Recipe().changed(self.recipe)
        with in_key("strategies"):
            strategies = tuple(name if name in BOUNDS else resolve(name) for name in _some(self.strategies))
        for label, changes in self.models.items():
            with in_key(f"models.{label}"):
                reference.changed(changes)
                if "steps" in changes and self.compute != "own":
                    raise InputError(
                        f'compute = "{self.compute}" sets the steps of all models: leave them out, or set compute = "own"'
                    )
        if self.models and not any(_takes_models(name) for name in strategies):
            raise InputError(f"models: none of {', '.join(strategies)} takes a network from a recipe; add one that does")
        focus = self.focus or ("small" if "small" in self.streams else self.streams[0])
        if focus not in self.streams:
            raise InputError(f"focus: {focus!r} is not a stream of the table, {', '.join(self.streams)}")
        checked = replace(self, strategies=tuple(dict.fromkeys(strategies)), focus=focus)
        labels = [row.label for row in checked.rows()]
        if self.against not in (*labels, YARDSTICK):
            raise InputError(f"against: {self.against!r} is not a row of the table, {'; '.join(labels)}")
        return checked

    def rows(self) -> list[Variant]:
        """The rows of the table, in the order of strategies, models and budgets."""
        rows = []
        for strategy in self.strategies:
            for model, changes in (self.models if self.models and _takes_models(strategy) else {"": {}}).items():
                budgets = self.memory_bytes if _is_budgeted(strategy) else (MEMORY_BYTES,)
                for budget in budgets:
                    words = [strategy, model, _kilobytes(budget) if len(budgets) > 1 else ""]
                    label = ", ".join(word for word in words if word)
                    rows.append(Variant(strategy, model, budget, self._recipe_changes(strategy, changes), label))
        return rows

    def cells_of(self, row: Variant, stream: str) -> list[BenchmarkCell]:
        """The cells of a row on a stream."""
        return [
            BenchmarkCell(
                stream, seed, order, row.strategy,
                self.runs, self.lumisections, row.memory_bytes, self.evaluation_samples, self.split, fold, row.recipe,
            )
            for seed in self.seeds
            for order in range(self.orders)
            for fold in range(FOLDS if self.split == "folds" else 1)
        ]  # fmt: skip

    def cells(self) -> list[BenchmarkCell]:
        """All cells of the table."""
        return [cell for row in self.rows() for stream in self.streams for cell in self.cells_of(row, stream)]

    def _recipe_changes(self, strategy: str, of_model: Mapping[str, Any]) -> str:
        if strategy in BOUNDS or strategy_info(strategy).recipe is None:
            return ""
        changes = {**self.recipe, **of_model}
        if self.compute != "own":
            changes["steps"] = self._steps(strategy, changes)
        changes = recipe_changes(strategy, changes)
        return json.dumps(changes, sort_keys=True) if changes else ""

    def _steps(self, strategy: str, changes: Mapping[str, Any]) -> int:
        """Steps per training that give a model as much compute as the reference model."""
        reference, recipe = Recipe().changed(self.recipe), recipe_of(strategy, changes)
        if recipe is None:
            raise InputError(f"strategies: {strategy} has no recipe, so its steps cannot be set")
        share = reference.batch / recipe.batch
        if self.compute == "flops":
            from dqmstream.learners.gradient.flops import recipe_flops

            model = strategy_info(strategy).network or recipe.model
            own = replace(recipe, model=model)
            share = recipe_flops(reference, LIVE[None], self.runs // 2) / recipe_flops(own, LIVE[None], self.runs // 2)
        return max(1, round(reference.steps * share))


@dataclass(frozen=True)
class Benchmark:
    """Several tables; a cell in more than one of them is computed once."""

    tables: tuple[TableSpec, ...]

    def checked(self) -> Benchmark:
        """The same with names resolved. Raises InputError like `TableSpec.checked`, with the name of the table."""
        tables = []
        for spec in self.tables:
            with in_key(f"table {spec.name}" if len(self.tables) > 1 else ""):
                tables.append(spec.checked())
        names = [spec.name for spec in tables]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"two tables are called {twice[0]}: give each its own name, which is part of its file names")
        return Benchmark(tuple(tables))

    def cells(self) -> list[BenchmarkCell]:
        """All cells, the slowest strategies first."""
        found = dict.fromkeys(cell for spec in self.tables for cell in spec.cells())
        return sorted(found, key=lambda cell: (-cell.runs * cell.lumisections, _slowest_first(cell.strategy)))

    def only(self, names: Sequence[str]) -> Benchmark:
        """The tables of these names. Raises InputError for an unknown name."""
        known = [spec.name for spec in self.tables]
        for name in names:
            if name not in known:
                raise InputError(f"there is no table {name!r}; choose from {', '.join(known)}")
        return Benchmark(tuple(spec for spec in self.tables if spec.name in names))


@contextmanager
def in_key(key: str) -> Iterator[None]:
    """Prefix the message of an InputError inside the block with the key of the table that it concerns."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}" if key else str(error)) from error


def _some(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if not values:
        raise InputError("the list is empty: give at least one")
    return values


def _takes_models(strategy: str) -> bool:
    if strategy in BOUNDS:
        return False
    info = strategy_info(strategy)
    return info.recipe is not None and info.network is None


def _is_budgeted(strategy: str) -> bool:
    return strategy not in BOUNDS and strategy_info(strategy).budgeted


def _kilobytes(count: int) -> str:
    return f"{count / 1000:g} kB"


def _slowest_first(strategy: str) -> int:
    closed_forms = sorted(CLOSED_FORMS, key=_is_budgeted, reverse=True)
    ranks = ["joint", *GRADIENT, IDEAL_PROFILED, *closed_forms]
    return ranks.index(strategy) if strategy in ranks else len(ranks)
