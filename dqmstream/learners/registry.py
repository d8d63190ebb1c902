"""The strategies by name. Only those that learn by gradients import torch and Avalanche, and only when one is made."""

from __future__ import annotations

from importlib import import_module

from dqmstream.errors import InputError
from dqmstream.learners.baselines import GainMap, NaiveBayes, RingMeans
from dqmstream.learners.recipe import Recipe
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import Geometry

STREAMING = {strategy.name: strategy for strategy in (GainMap, NaiveBayes, RingMeans)}
"""Closed forms, by name."""

GRADIENT = {"naive": "Naive", "replay": "Replay", "ewc": "Ewc", "joint": "Joint"}
"""Gradient methods: name, which is also its module's, and class."""

DEFAULT = "replay"
"""What `default` stands for: the best of those that learn one run at a time by gradients."""

NAMES = (*GRADIENT, *STREAMING)
MEMORY_BYTES = 1_000_000


def resolve(name: str) -> str:
    """The strategy's own name, for an alias too. Raises InputError for a name that does not exist."""
    own = DEFAULT if name == "default" else name
    if own not in NAMES:
        raise InputError(f"there is no strategy {name!r}; choose one of default, {', '.join(NAMES)}")
    return own


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

    recipe, memory_bytes and device concern gradient strategies only: the closed forms keep a few numbers a channel and run.
    device: auto (CUDA where there is one), cpu, cuda or cuda:N. Raises InputError for an unknown name or device.
    """
    own = resolve(name)
    if own in STREAMING:
        return STREAMING[own](geometry, seed)
    import torch

    from dqmstream.learners.strategies.deep import DeepStrategy

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if device not in ("auto", *here):
        raise InputError(f"device {device!r} is not here; choose one of auto, {', '.join(here)}")
    method = getattr(import_module(f"dqmstream.learners.strategies.{own}"), GRADIENT[own])
    return DeepStrategy(
        method,
        geometry=geometry,
        seed=seed,
        recipe=recipe or Recipe(),
        memory_bytes=memory_bytes,
        device=torch.device(("cuda" if gpus else "cpu") if device == "auto" else device),
    )
