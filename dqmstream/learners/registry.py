"""Strategies by name: those of this package, and those that other packages register.

A strategy meets `learners.strategy.Strategy`, and is made by a callable that is registered under its name:

    @register_strategy("mine")
    class Mine:
        def __init__(self, geometry, seed): ...

Of this package only names and recipes are kept here; a strategy's module is imported when one is made, so that only gradient
strategies import PyTorch. Another package names its module in the entry-point group `dqmstream.strategies`
(`dqmstream.plugins`), or is imported before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dqmstream.errors import InputError
from dqmstream.learners.networks.recipe import CNN_RECIPE, QUADRATIC_RECIPE, REDRAWN_RECIPE, Recipe
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import Geometry
from dqmstream.plugins import STRATEGIES, Registry


@dataclass(frozen=True, slots=True)
class StrategyInfo:
    """What is known of a strategy before it is made.

    budgeted: whether it keeps past data, within `memory_bytes`. recipe: its own recipe, None for a strategy without one.
    network: the network that it uses whatever the recipe says, None where the recipe decides.
    """

    budgeted: bool = False
    recipe: Recipe | None = None
    network: str | None = None


_GRADIENT, _REDRAWN = StrategyInfo(True, Recipe()), StrategyInfo(True, REDRAWN_RECIPE)

_BUILT_IN: dict[str, tuple[str, StrategyInfo]] = {
    "naive": ("gradient.naive", _GRADIENT),
    "replay": ("gradient.replay", _GRADIENT),
    "er_ace": ("gradient.er_ace", _GRADIENT),
    "der": ("gradient.der", _GRADIENT),
    "agem": ("gradient.agem", _GRADIENT),
    "lwf": ("gradient.lwf", _GRADIENT),
    "ewc": ("gradient.ewc", _GRADIENT),
    "ensemble": ("gradient.ensemble", _GRADIENT),
    "si": ("gradient.si", _GRADIENT),
    "mas": ("gradient.mas", _GRADIENT),
    "gdumb": ("gradient.gdumb", _GRADIENT),
    "rar": ("gradient.rar", _GRADIENT),
    "cumulative": ("gradient.cumulative", _GRADIENT),
    "joint": ("gradient.joint", _GRADIENT),
    "cnn": ("gradient.replay", StrategyInfo(True, CNN_RECIPE, CNN_RECIPE.model)),
    "statistical_replay": ("gradient.statistical_replay", _REDRAWN),
    "hybrid": ("gradient.hybrid", StrategyInfo(True, QUADRATIC_RECIPE)),
    "gain_map": ("closed_form.gain_map", StrategyInfo()),
    "ncm": ("closed_form.ncm", StrategyInfo()),
    "naive_bayes": ("closed_form.naive_bayes", StrategyInfo()),
    "ring_means": ("closed_form.ring_means", StrategyInfo()),
    "logistic": ("closed_form.logistic", StrategyInfo(budgeted=True)),
    "statistical": ("closed_form.statistical", StrategyInfo(budgeted=True)),
    "slda": ("closed_form.slda", StrategyInfo(budgeted=True)),
    "ridge": ("closed_form.ridge", StrategyInfo(budgeted=True)),
    "outages": ("closed_form.outages", StrategyInfo()),
    "modes": ("closed_form.modes", StrategyInfo(budgeted=True)),
    "stacked": ("closed_form.stacked", StrategyInfo(budgeted=True)),
}
"""Strategies of this package: the module of `learners` that registers each, and what is known of it."""

NAMES = tuple(_BUILT_IN)
"""Strategies of this package."""

GRADIENT = tuple(name for name in NAMES if _BUILT_IN[name][1].recipe is not None)
"""Strategies of this package that train a network."""

CLOSED_FORMS = tuple(name for name in NAMES if name not in GRADIENT)
"""Strategies of this package that need no PyTorch."""

LIVE_BASELINES = ("gain_map", "naive_bayes", "ring_means")
"""Strategies that run beside every learner."""

TABLE_BASELINES = ("ring_means", "logistic", "naive_bayes", "gain_map", "cnn")
"""Strategies in every table of a benchmark, those that look least at the map first."""

DEFAULT = "hybrid"
"""What `default` stands for: no other was measured above it by more than chance (README, the table of learners)."""

MEMORY_BYTES = 1_000_000

_F = TypeVar("_F", bound=Callable[..., Strategy])
_registry = Registry[Callable[..., Strategy]](
    "strategy", STRATEGIES, {name: f"{__package__}.{module}" for name, (module, _) in _BUILT_IN.items()}
)
_registered: dict[str, StrategyInfo] = {}


def register_strategy(
    name: str, *, budgeted: bool = False, recipe: Recipe | None = None, network: str | None = None
) -> Callable[[_F], _F]:
    """Decorator: the callable makes the strategy of this name.

    It is called with the keyword arguments `geometry` and `seed`; where budgeted, with `memory_bytes` too; where there is a
    recipe, with `recipe`, a `Recipe`, and `device`, a string, too. Raises ValueError for a name that another strategy has.

    Parameters
    ----------
    name
        As `--strategy` and tables name it.
    budgeted, recipe, network
        See `StrategyInfo`. Those of this package's own strategies stand in this module.
    """

    def register(factory: _F) -> _F:
        if name == "default":
            raise ValueError("'default' stands for another strategy: choose another name")
        _registry.register(name, factory)
        if name not in _BUILT_IN:
            _registered[name] = StrategyInfo(budgeted, recipe, network)
        return factory

    return register


def strategy_names() -> tuple[str, ...]:
    """Names of all strategies, also of installed packages."""
    return _registry.names()


def resolve(name: str) -> str:
    """The strategy's own name, also of an alias. Raises InputError for a name that does not exist."""
    own = DEFAULT if name == "default" else name
    if own not in _registry:
        raise InputError(f"there is no strategy {name!r}; choose one of default, {', '.join(strategy_names())}")
    return own


def load_strategy(name: str) -> None:
    """Import the module that registers a strategy. Raises InputError for a name that does not exist."""
    _registry[resolve(name)]


def strategy_info(name: str) -> StrategyInfo:
    """What is known of a strategy. Raises InputError for a name that does not exist."""
    own = resolve(name)
    return _BUILT_IN[own][1] if own in _BUILT_IN else _registered[own]


def recipe_of(name: str, changes: Mapping[str, Any]) -> Recipe | None:
    """The strategy's own recipe with these changes; None for a strategy without a recipe.

    Raises InputError for an unknown strategy, and whatever the strategy for an entry or a value that recipes do not have.
    """
    own = strategy_info(name).recipe
    changed = (own or Recipe()).changed(changes)
    return None if own is None else changed


def recipe_changes(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the changes that differ from the strategy's own recipe. Raises InputError as `recipe_of` does."""
    own, changed = strategy_info(name).recipe, recipe_of(name, changes)
    return {} if own is None or changed is None else changed.changes_from(own)


def make_strategy(
    name: str,
    *,
    geometry: Geometry,
    seed: int,
    recipe: Recipe | None = None,
    memory_bytes: int = MEMORY_BYTES,
    device: str = "auto",
) -> Strategy:
    """A new strategy that has learnt nothing. Raises InputError for an unknown name or device.

    Parameters
    ----------
    name
        Of `strategy_names`, or `default`.
    geometry, seed
        Of the maps; of all random numbers.
    recipe
        Network and training of a gradient strategy, its own where none is given. Other strategies ignore it.
    memory_bytes
        Budget for what is kept of past runs, in all. Strategies that keep a few numbers a channel and run ignore it.
    device
        auto (CUDA where there is one), cpu, cuda or cuda:N. Strategies without a network ignore it.
    """
    own = resolve(name)
    info = strategy_info(own)
    arguments: dict[str, Any] = {"geometry": geometry, "seed": seed}
    if info.budgeted:
        arguments["memory_bytes"] = memory_bytes
    if info.recipe is not None:
        chosen = recipe or info.recipe
        arguments["recipe"] = chosen if info.network is None else replace(chosen, model=info.network)
        arguments["device"] = device
    return _registry[own](**arguments)
