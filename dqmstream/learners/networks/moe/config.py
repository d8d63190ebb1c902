"""The configuration of a Mixture-of-Experts layer: plain numbers, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

ROUTER_NAMES = ("top_k", "balanced", "soft")
"""Routers that `learners.networks.moe.routers` makes."""

MAX_EXPERTS = 256
"""Experts of one layer at most: routing figures store an expert's number in a byte."""


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """One Mixture-of-Experts layer.

    Parameters
    ----------
    experts
        Number of experts E, each a two-layer network.
    top_k
        Experts of each token, 1 to E (routers `top_k` and `balanced`).
    shared_expert
        Whether one more expert takes every token (Dai et al. 2024, arXiv:2401.06066).
    router
        One of `ROUTER_NAMES`.
    aux_weight, z_weight
        Weights of the load-balancing loss and of the z-loss (router `top_k`).
    bias_rate
        Step of the balancing bias (router `balanced`).
    places
        Places of each expert (router `soft`).
    """

    experts: int = 8
    top_k: int = 2
    shared_expert: bool = False
    router: str = "top_k"
    aux_weight: float = 0.01
    z_weight: float = 1e-3
    bias_rate: float = 1e-3
    places: int = 8
