"""The networks by name, as a recipe asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dqmstream.learners.networks.backbone import BackboneNetwork, EnsembleNetwork
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.cnn import CNN
from dqmstream.learners.networks.linear import Linear
from dqmstream.learners.networks.recipe import BACKBONES, Recipe, ensemble_members
from dqmstream.learners.networks.study_vit import StudyViT
from dqmstream.learners.networks.vit import moe_vit, plain_vit

NETWORKS: dict[str, Callable[[np.ndarray, Recipe], Network]] = {
    "moe_vit": moe_vit,
    "vit": plain_vit,
    "cnn": CNN,
    "linear": Linear,
    "study_vit": StudyViT,
    **{name: BackboneNetwork for name in BACKBONES},
}


def build(live: np.ndarray, recipe: Recipe) -> Network:
    """A new network with no classes. live: bool, shape (depth, 64, 72)."""
    members = ensemble_members(recipe.model)
    if members:
        return EnsembleNetwork(live, [build(live, replace(recipe, model=member)) for member in members])
    return NETWORKS[recipe.model](live, recipe)
