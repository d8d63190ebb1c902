"""Backbones and classifiers by the names that a user gives."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dqmstream.errors import InputError
from dqmstream.learners.networks.backbones.backbone import Backbone
from dqmstream.learners.networks.backbones.ensemble import Ensemble
from dqmstream.learners.networks.backbones.families import FAMILIES, Maps
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
    """A backbone for maps (B, channels, height, width), with weights from torch's random state or from a file.

    name: one of `NAMES`; size: one of `SIZES` (`families`); dropout: of the features, in training; weights: a safetensors file
    of this very trunk (`weights`); readout: one of `READOUTS` (`backbone`). Raises InputError for what there is not.
    """
    for what, value, known in (("backbone", name, NAMES), ("size", size, SIZES), ("readout", readout, READOUTS)):
        if value not in known:
            hint = "; an ensemble has classes alone: build_classifier" if what == "backbone" and ":" in name else ""
            raise InputError(f"there is no {what} {value!r}; choose one of {', '.join(known)}{hint}")
    if min(channels, height, width) < 1 or not 0 <= dropout < 1:
        raise InputError(
            f"a backbone for {channels} x {height} x {width} with dropout {dropout}: sizes are at least 1, dropout below 1"
        )
    trunk = FAMILIES[name][size](Maps(channels, height, width, readout))
    backbone = Backbone(trunk, channels=channels, height=height, width=width, readout=readout, dropout=dropout)
    if weights is not None:
        backbone.taken = load_weights(backbone.trunk, weights)
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
    """Maps (B, channels, height, width) to logits (B, classes): a backbone and a linear head, or an ensemble of such.

    `ensemble:vit+cnn+resnet` has a member for each name, of other first weights where a name comes twice, and the mean of their
    logits (`ensemble`). The rest is as in `build_backbone`.
    """
    if classes < 1:
        raise InputError(f"a classifier of {classes} classes has nothing to say; give at least 1")
    members = ensemble_members(name)
    if members and weights is not None:
        raise InputError(
            f"weights {weights} are of one backbone, and {name} has {len(members)}: load them into the one you mean"
        )
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
