"""Strategies for fixed labels by name: closed forms, and every gradient method of the run task.

Only a gradient method imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.labels.closed_forms import CLOSED_FORMS, ClosedForm
from dqmstream.learners.labels.strategy import LabelStrategy
from dqmstream.learners.networks.recipe import LABEL_RECIPE, Recipe
from dqmstream.learners.registry import MEMORY_BYTES, strategy_info, strategy_names

DEFAULT = "replay"
"""What `default` stands for: no other strategy without all past data was above it (docs/labels.md)."""

NO_METHODS = ("cnn", "statistical_replay", "hybrid")
"""Strategies of the run task with a network, which have no form for labels: `cnn` is replay with a network of its own, and the
others rest on a memory of runs."""


def label_strategy_names() -> tuple[str, ...]:
    """Names of all strategies for labels, also of methods in other packages."""
    methods = [name for name in strategy_names() if strategy_info(name).recipe is not None and name not in NO_METHODS]
    return (*CLOSED_FORMS, *methods)


def resolve_label(name: str) -> str:
    """The strategy's own name. Raises InputError for one that does not exist or does not learn labels."""
    own = DEFAULT if name == "default" else name
    if own not in label_strategy_names():
        raise InputError(f"there is no strategy {name!r} for labels; choose one of {', '.join(label_strategy_names())}")
    return own


def label_recipe(name: str, changes: Mapping[str, Any]) -> Recipe | None:
    """The recipe of labels with these changes; None for a closed form. Raises InputError for what recipes do not have."""
    changed = LABEL_RECIPE.changed(changes)
    return None if resolve_label(name) in CLOSED_FORMS else changed


def label_recipe_changes(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the changes that differ from the recipe of labels. Raises InputError as `label_recipe` does."""
    changed = label_recipe(name, changes)
    return {} if changed is None else changed.changes_from(LABEL_RECIPE)


def make_label_strategy(
    name: str,
    live: np.ndarray,
    *,
    seed: int,
    recipe: Mapping[str, Any] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    device: str = "auto",
) -> LabelStrategy:
    """A new strategy that has learnt nothing.

    live: the channels of a row, bool (depth, 64, 72). recipe: changes to the recipe of labels. All else as in
    `learners.registry.make_strategy`.
    """
    own, chosen = resolve_label(name), label_recipe(name, recipe or {})
    if chosen is None:
        return ClosedForm(own, live)
    from dqmstream.learners.labels.network import LabelledNetwork

    return LabelledNetwork(own, live, seed=seed, recipe=chosen, memory_bytes=memory_bytes, device=device)
