"""The networks by name, as a recipe asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dqmstream.learners.backbone_network import BackboneNetwork, EnsembleNetwork
from dqmstream.learners.cnn import CNN
from dqmstream.learners.linear import Linear
from dqmstream.learners.model import moe_vit, plain_vit
from dqmstream.learners.network import Network
from dqmstream.learners.recipe import BACKBONES, Recipe, ensemble_members
from dqmstream.learners.study import StudyViT

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
