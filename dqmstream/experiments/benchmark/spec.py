"""What a benchmark computes: tables of strategies and models over named streams, as a TOML file or flags name them.

A file has defaults at its top, models by name, and one section for each table, of which every key may differ:

    seeds = [100]
    recipe = {steps = 32}

    [models.vit]
    model = "vit"

    [[table]]
    name = "models"
    streams = ["small", "structured"]
    strategies = ["replay"]
    models = ["vit"]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

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
"""What other strategies are compared with where a table does not say: hard to beat, and it forgets nothing."""


@dataclass(frozen=True)
class Variant:
    """A row of a table: a strategy on a model of that label ("" for its own), with so many bytes for past runs.

    recipe: changes to the strategy's own, as `BenchmarkCell` has them. label: what the row is called.
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
class Spec:
    """A table: every strategy, on every model where it has one, on every stream, seed and order.

    orders: how many orders of each stream, the first as drawn. runs, lumisections: of each stream. memory_bytes: kept of
    past runs, in all; several make a row each. evaluation_samples: test lumisections scored at an evaluation, in all. split:
    of `learners.splits`; with "folds" every cell comes once a fold. recipe: changes to the recipes of the strategies that have
    one; models: the same by label, each on top of them.

    compute: what is the same for all that train. "steps": lumisections a training, steps x batch of the recipe; "flops":
    operations of its forward and backward passes, those of the default model with the recipe's changes; "own": nothing, each
    recipe's steps stand. A strategy that trains more often or on more at once (joint) still does, and the table says so.
    against: label of the row that others are compared with, run by run. focus: the stream whose forgetting and comparison the
    table gives; "small" where it is there, else the first.
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

    def checked(self) -> Spec:
        """The same, with names resolved. Raises InputError, which names the key, for what does not exist or makes no sense."""
        with _of_key("name"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
                raise InputError(f"{self.name!r} cannot be part of a file's name: letters, digits, dots and dashes can")
        with _of_key("streams"):
            for stream in _some(self.streams):
                named_stream(stream)
        with _of_key("seeds"):
            seed_use(self.seeds)
        with _of_key("split"):
            Split(self.split)
        for key, least, most in (
            ("orders", 1, 10_000),
            ("runs", 2, 100_000),
            ("lumisections", 180, 10_000_000),
            ("evaluation_samples", 1, 2**31 - 1),
        ):
            if not least <= getattr(self, key) <= most:
                bound = f"{least} {key} at least" if getattr(self, key) < least else f"{most} {key} at most"
                raise InputError(f"{key}: a benchmark needs {bound}, not {getattr(self, key)}")
        if min(_some(self.memory_bytes)) < 0:
            raise InputError(f"memory_bytes: {min(self.memory_bytes)} is negative")
        with _of_key("recipe"):
            reference = Recipe().changed(self.recipe)
        with _of_key("strategies"):
            strategies = tuple(name if name in BOUNDS else resolve(name) for name in _some(self.strategies))
        for label, changes in self.models.items():
            with _of_key(f"models.{label}"):
                reference.changed(changes)
                if "steps" in changes and self.compute != "own":
                    raise InputError(
                        f'steps are the same for all where compute = "{self.compute}": leave them out, or let compute be "own"'
                    )
        if self.models and not any(_takes_models(name) for name in strategies):
            raise InputError(f"models: none of {', '.join(strategies)} has a network that a recipe chooses; name one that does")
        focus = self.focus or ("small" if "small" in self.streams else self.streams[0])
        if focus not in self.streams:
            raise InputError(f"focus: {focus!r} is none of the table's streams, {', '.join(self.streams)}")
        checked = replace(self, strategies=tuple(dict.fromkeys(strategies)), focus=focus)
        labels = [row.label for row in checked.rows()]
        if self.against not in (*labels, YARDSTICK):
            raise InputError(f"against: {self.against!r} is none of the table's rows, {'; '.join(labels)}")
        return checked

    def rows(self) -> list[Variant]:
        """One for each row of the table, in the order in which strategies, models and budgets are named."""
        rows = []
        for strategy in self.strategies:
            for model, changes in (self.models if self.models and _takes_models(strategy) else {"": {}}).items():
                budgets = self.memory_bytes if _is_budgeted(strategy) else (MEMORY_BYTES,)
                for budget in budgets:
                    said = [strategy, model, _kilobytes(budget) if len(budgets) > 1 else ""]
                    label = ", ".join(part for part in said if part)
                    rows.append(Variant(strategy, model, budget, self._recipe_changes(strategy, changes), label))
        return rows

    def cells_of(self, row: Variant, stream: str) -> list[BenchmarkCell]:
        """The cells behind a row's figures of a stream."""
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
        """Steps a training by which a model is given as much as the reference is."""
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
    """Several tables; a cell that is in more than one is computed once."""

    tables: tuple[Spec, ...]

    def checked(self) -> Benchmark:
        """The same, with names resolved. Raises InputError as `Spec.checked` does, with the table's name."""
        tables = []
        for spec in self.tables:
            with _of_key(f"table {spec.name}" if len(self.tables) > 1 else ""):
                tables.append(spec.checked())
        names = [spec.name for spec in tables]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"two tables are called {twice[0]}: give each a name of its own, which its files have")
        return Benchmark(tuple(tables))

    def cells(self) -> list[BenchmarkCell]:
        """Every cell, those that take longest first."""
        found = dict.fromkeys(cell for spec in self.tables for cell in spec.cells())
        return sorted(found, key=lambda cell: (-cell.runs * cell.lumisections, _slowest_first(cell.strategy)))

    def only(self, names: Sequence[str]) -> Benchmark:
        """The tables of these names. Raises InputError for a name that there is not."""
        known = [spec.name for spec in self.tables]
        for name in names:
            if name not in known:
                raise InputError(f"there is no table {name!r}; choose among {', '.join(known)}")
        return Benchmark(tuple(spec for spec in self.tables if spec.name in names))


def benchmark_of(values: Mapping[str, Any], where: str) -> Benchmark:
    """A benchmark from the entries of a TOML file, called `where` in errors. Raises InputError, which names the key."""
    defaults = {key: value for key, value in values.items() if key not in ("models", "table")}
    models, sections = values.get("models", {}), values.get("table", [{}])
    if not isinstance(models, dict) or not all(isinstance(changes, dict) for changes in models.values()):
        raise InputError(f'{where}, models: give each model a section, as in [models.vit] with model = "vit"')
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        raise InputError(f"{where}, table: give each table a section [[table]]")
    tables = []
    for number, section in enumerate(sections, 1):
        name = section.get("name", f"table-{number}" if len(sections) > 1 else "benchmark")
        with _of_key(f"{where}, table {name}" if "table" in values else where):
            tables.append(_spec_of({**defaults, **section, "name": name}, models))
    with _of_key(where):
        return Benchmark(tuple(tables)).checked()


def _spec_of(values: dict[str, Any], models: Mapping[str, Mapping[str, Any]]) -> Spec:
    known = [entry.name for entry in fields(Spec)]
    if unknown := sorted(values.keys() - set(known)):
        raise InputError(f"there is no key {', '.join(unknown)}; there are {', '.join(known)}, [models.NAME] and [[table]]")
    if isinstance(values.get("memory_bytes"), int):
        values["memory_bytes"] = [values["memory_bytes"]]
    chosen = values.get("models", [])
    if not isinstance(chosen, list) or (strange := [label for label in chosen if label not in models]):
        said = repr(strange[0]) if isinstance(chosen, list) else repr(chosen)
        raise InputError(f"models: {said} is none of the sections [models.NAME]; there are {', '.join(models) or 'none'}")
    values["models"] = {label: models[label] for label in chosen}
    try:
        return TypeAdapter(Spec).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg']} (got {first['input']!r})") from error


@contextmanager
def _of_key(key: str) -> Iterator[None]:
    """An error inside says of which key it speaks."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}" if key else str(error)) from error


def _some(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if not values:
        raise InputError("none is given: name one at least")
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
