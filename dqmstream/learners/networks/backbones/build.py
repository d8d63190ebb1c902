"""Backbones and classifiers by name."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dqmstream.errors import InputError
from dqmstream.learners.networks.backbones.backbone import Backbone
from dqmstream.learners.networks.backbones.ensemble import Ensemble
from dqmstream.learners.networks.backbones.families import FAMILIES, InputMaps
from dqmstream.learners.networks.backbones.weights import load_weights
from dqmstream.learners.networks.recipe import SIZES
from dqmstream.learners.networks.registry import ensemble_members

NAMES = tuple(FAMILIES)
READOUTS = ("native", "map")


def build_backbone(
    name: str,
    *,
    channels: int,
    height: int,
    width: int,
    size: str = "tiny",
    dropout: float = 0.0,
    weights: Path | None = None,
    readout: str = "native",
) -> Backbone:
    """A backbone for maps (B, channels, height, width). Raises InputError for an unknown name and for unusable values.

    Parameters
    ----------
    name
        One of `NAMES`.
    channels, height, width
        Of the maps.
    size
        One of `SIZES` (`learners.networks.backbones.families`).
    dropout
        Of the features, in training.
    weights
        A safetensors file of this trunk's weights; without one they are drawn from PyTorch's random state.
    readout
        `native` or `map` (`learners.networks.backbones.backbone`).
    """
    for what, value, known in (("backbone", name, NAMES), ("size", size, SIZES), ("readout", readout, READOUTS)):
        if value not in known:
            hint = "; build_classifier builds ensembles" if what == "backbone" and ":" in name else ""
            raise InputError(f"there is no {what} {value!r}; choose one of {', '.join(known)}{hint}")
    if min(channels, height, width) < 1 or not 0 <= dropout < 1:
        raise InputError(
            f"a backbone for {channels} x {height} x {width} with dropout {dropout}: sizes are at least 1, dropout below 1"
        )
    trunk = FAMILIES[name][size](InputMaps(channels, height, width, readout))
    backbone = Backbone(trunk, channels=channels, height=height, width=width, readout=readout, dropout=dropout)
    if weights is not None:
        backbone.loaded = load_weights(backbone.trunk, weights)
    return backbone


def build_classifier(
    name: str,
    *,
    channels: int,
    height: int,
    width: int,
    classes: int,
    size: str = "tiny",
    dropout: float = 0.0,
    weights: Path | None = None,
    readout: str = "native",
) -> nn.Module:
    """A classifier from maps (B, channels, height, width) to logits (B, classes): a backbone and a linear head, or an ensemble.

    `ensemble:vit+cnn+resnet` has a member for each name, and returns the mean of their logits. All else as in `build_backbone`.
    """
    if classes < 1:
        raise InputError(f"a classifier needs at least 1 class, not {classes}")
    members = ensemble_members(name)
    if members and weights is not None:
        raise InputError(f"weights {weights} are of one network, and {name} has {len(members)}: leave them out")
    made = []
    for member in members or (name,):
        backbone = build_backbone(
            member,
            channels=channels,
            height=height,
            width=width,
            size=size,
            dropout=dropout,
            weights=weights,
            readout=readout,
        )
        made.append(nn.Sequential(backbone, nn.Linear(backbone.features, classes)))
    return Ensemble(made) if members else made[0]
