"""Networks of offline trainings by name: those of the studies, and the backbones of `learners.networks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dqmstream.errors import InputError
from dqmstream.experiments.studies.training.convnet import ConvNet
from dqmstream.experiments.studies.training.plan import TrainingPlan
from dqmstream.learners.networks.backbones import build_classifier
from dqmstream.learners.networks.backbones.backbone import Backbone
from dqmstream.learners.networks.build import build as build_network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.lumisection import N_IETA, N_IPHI

Shape = tuple[int, int, int]
"""(C, H, W)."""


class WholeMap(nn.Module):
    """A network of `learners.networks` that treats every cell of a map as a channel: (B, depth, 64, 72) to logits (B, K)."""

    def __init__(self, shape: Shape, outputs: int, recipe: Recipe) -> None:
        super().__init__()
        self.network = build_network(np.ones(shape, dtype=bool), recipe)
        self.network.grow(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.network(x_BCHW.flatten(1))
        return logits_BK

    def auxiliary_loss(self) -> Tensor | float:
        """The loss of its routers in training."""
        return self.network.auxiliary_loss()

    def after_step(self) -> None:
        """To be called after each training step."""
        self.network.after_step()


def build(plan: TrainingPlan, shape: Shape, classes: int, weights: Path | None = None) -> nn.Module:
    """A new network from images (B, C, H, W) to logits (B, 1) for a sigmoid loss, else (B, classes).

    weights: safetensors file of initial weights. Raises InputError for a network that does not exist or does not suit the shape
    or the loss, and for weights of another network.
    """
    outputs = 1 if plan.loss == "sigmoid" else classes
    if plan.loss == "sigmoid" and classes != 2:
        raise InputError(f"a sigmoid loss needs two classes, not {classes}: use --set loss=softmax")
    if plan.loss == "sigmoid" and plan.model.startswith("ensemble:"):
        raise InputError("an ensemble averages the probabilities of all classes: use --set loss=softmax")
    return _OWN.get(plan.model, _backbone)(plan, shape, outputs, weights)


def _backbone(plan: TrainingPlan, shape: Shape, outputs: int, weights: Path | None) -> nn.Module:
    channels, height, width = shape
    return build_classifier(
        plan.model,
        channels=channels,
        height=height,
        width=width,
        classes=outputs,
        size=plan.size,
        dropout=plan.dropout,
        weights=weights,
    )


def _convnet(plan: TrainingPlan, shape: Shape, outputs: int, weights: Path | None) -> nn.Module:
    network = ConvNet(
        shape,
        outputs,
        convolutions=plan.convolutions,
        pooling=plan.pooling,
        hidden=plan.hidden,
        dropout=plan.dropout,
        glorot=plan.initial == "glorot",
    )
    return _with_weights(network, weights)


def _moe_vit(plan: TrainingPlan, shape: Shape, outputs: int, weights: Path | None) -> nn.Module:
    if shape[1:] != (N_IETA, N_IPHI):
        raise InputError(f"moe_vit takes maps of {N_IETA} x {N_IPHI} cells, not of {shape[1]} x {shape[2]}: choose vit")
    recipe = Recipe.from_json({"model": "moe_vit", "linear_skip": False, "readout": "class", **plan.moe})
    return _with_weights(WholeMap(shape, outputs, recipe), weights)


_OWN: dict[str, Callable[[TrainingPlan, Shape, int, Path | None], nn.Module]] = {"convnet": _convnet, "moe_vit": _moe_vit}


def _with_weights(network: nn.Module, path: Path | None) -> nn.Module:
    """The network with all weights from a file, if one is given, matched by name and shape."""
    if path is None:
        return network
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as weights: {error}; give a safetensors file") from error
    except RuntimeError as error:
        raise InputError(f"{path} holds weights of another network: {' '.join(str(error).split())}") from error
    return network


def taken_by(network: nn.Module, path: Path | None) -> str:
    """What was loaded from a file of weights, in one line; "" without a file."""
    if path is None:
        return ""
    reports = [str(module.loaded) for module in network.modules() if isinstance(module, Backbone) and module.loaded is not None]
    return "; ".join(reports) or f"all of {path.name}"
