"""The networks by name, as a recipe asks for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dqmstream.learners.cnn import CNN
from dqmstream.learners.model import MoEViT
from dqmstream.learners.network import Network
from dqmstream.learners.recipe import Recipe

NETWORKS: dict[str, Callable[[np.ndarray, Recipe], Network]] = {"moe_vit": MoEViT, "cnn": CNN}


def build(live: np.ndarray, recipe: Recipe) -> Network:
    """A new network with no classes. live: bool, shape (depth, 64, 72)."""
    return NETWORKS[recipe.model](live, recipe)
