"""The strategies by name. Only those that learn by gradients import torch and Avalanche, and only when one is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from dqmstream.errors import InputError
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.closed_form.logistic import Logistic
from dqmstream.learners.closed_form.naive_bayes import NaiveBayes
from dqmstream.learners.closed_form.ridge import Ridge
from dqmstream.learners.closed_form.ring_means import RingMeans
from dqmstream.learners.closed_form.slda import Slda
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.networks.recipe import CNN, REDRAWN, Recipe
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import Geometry

STREAMING = {strategy.name: strategy for strategy in (GainMap, NaiveBayes, RingMeans)}
"""Closed forms, by name."""

CONVEX: dict[str, type[Logistic]] = {Logistic.name: Logistic}
"""What is fitted to convergence on exemplars, without torch, by name."""

BUDGETED: dict[str, type[Logistic] | type[Statistical] | type[Slda] | type[Ridge]] = {
    **CONVEX,
    Statistical.name: Statistical,
    Slda.name: Slda,
    Ridge.name: Ridge,
}
"""What is fitted without torch and keeps to a budget of bytes, by name."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """A strategy that learns by gradient steps. method: class of the method, and the module it stands in.

    recipe: its own when none is given. model: the network it has whatever the recipe says, None where the recipe decides.
    strategy: the class around it, and the module it stands in.
    """

    method: str
    module: str
    recipe: Recipe = field(default_factory=Recipe)
    model: str | None = None
    strategy: tuple[str, str] = ("DeepStrategy", "strategy")


GRADIENT = {
    "naive": Gradient("Naive", "naive"),
    "replay": Gradient("Replay", "replay"),
    "er_ace": Gradient("ErAce", "er_ace"),
    "der": Gradient("Der", "der"),
    "agem": Gradient("Agem", "agem"),
    "lwf": Gradient("Lwf", "lwf"),
    "ewc": Gradient("Ewc", "ewc"),
    "cumulative": Gradient("Cumulative", "cumulative"),
    "joint": Gradient("Joint", "joint"),
    "cnn": Gradient("Replay", "replay", CNN, CNN.model),
    "statistical_replay": Gradient("Naive", "naive", REDRAWN, strategy=("StatisticalReplay", "statistical_replay")),
    "hybrid": Gradient("Replay", "replay", REDRAWN, strategy=("Hybrid", "hybrid")),
}
"""Gradient strategies, by name."""

BASELINES = (RingMeans.name, Logistic.name, NaiveBayes.name, GainMap.name, "cnn")
"""In every table of a benchmark, those that look least at the map first."""

DEFAULT = "hybrid"
"""What `default` stands for: no other was measured above it by more than chance (README, the table of learners)."""

NAMES = (*GRADIENT, *STREAMING, *BUDGETED)
MEMORY_BYTES = 1_000_000


def resolve(name: str) -> str:
    """The strategy's own name, for an alias too. Raises InputError for a name that does not exist."""
    own = DEFAULT if name == "default" else name
    if own not in NAMES:
        raise InputError(f"there is no strategy {name!r}; choose one of default, {', '.join(NAMES)}")
    return own


def recipe_of(name: str, changes: Mapping[str, Any]) -> Recipe | None:
    """The strategy's own recipe with changes to it; None for a strategy that has no recipe, which no change concerns.

    Raises InputError for an unknown strategy, and for an unknown or useless entry whatever the strategy.
    """
    own = resolve(name)
    recipe = (GRADIENT[own].recipe if own in GRADIENT else Recipe()).changed(changes)
    return recipe if own in GRADIENT else None


def recipe_changes(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the changes that make the strategy another one than its own recipe does. Raises InputError as `recipe_of`."""
    recipe = recipe_of(name, changes)
    return {} if recipe is None else recipe.changes_from(GRADIENT[resolve(name)].recipe)


def make_strategy(
    name: str,
    *,
    geometry: Geometry,
    seed: int,
    recipe: Recipe | None = None,
    memory_bytes: int = MEMORY_BYTES,
    device: str = "auto",
) -> Strategy:
    """A new strategy that has learnt nothing.

    recipe and device concern gradient strategies only, and memory_bytes those that keep exemplars: the closed forms keep a
    few numbers a channel and run.
    device: auto (CUDA where there is one), cpu, cuda or cuda:N. Raises InputError for an unknown name or device.
    """
    own = resolve(name)
    if own in STREAMING:
        return STREAMING[own](geometry, seed)
    if own in BUDGETED:
        return BUDGETED[own](geometry, seed, memory_bytes)
    from dqmstream.learners.gradient.device import chosen_device

    gradient = GRADIENT[own]
    recipe = recipe or gradient.recipe
    strategy: Strategy = _named(*gradient.strategy)(
        own,
        _named(gradient.method, gradient.module),
        geometry=geometry,
        seed=seed,
        recipe=recipe if gradient.model is None else replace(recipe, model=gradient.model),
        memory_bytes=memory_bytes,
        device=chosen_device(device),
    )
    return strategy


def _named(name: str, module: str) -> Any:
    return getattr(import_module(f"dqmstream.learners.gradient.{module}"), name)
