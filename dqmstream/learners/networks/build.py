"""A network from a recipe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.ensemble import EnsembleNetwork
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import ensemble_members, network_factory


def build(live: np.ndarray, recipe: Recipe) -> Network:
    """A new network with no classes.

    Parameters
    ----------
    live
        Cells that are channels: bool, shape (depth, 64, 72).
    recipe
        Its `model` names the network, or an ensemble, of which each member is built in turn.
    """
    members = ensemble_members(recipe.model)
    if members:
        return EnsembleNetwork(live, [build(live, replace(recipe, model=member)) for member in members])
    network = network_factory(recipe.model)(live, recipe)
    if not isinstance(network, Network):
        raise InputError(f"network {recipe.model!r} is a {type(network).__name__}: derive it from {Network.__module__}.Network")
    return network
