"""Routing figures: the load on each expert, and how far routing has drifted since each past run.

After each training the network is given the same 16 random lumisections: independent standard normal residuals, which is how
residuals of the reference run are distributed. They come from the seed, so no data is kept for them, and only the network
changes from run to run. The first expert of each token is kept for every past run, one byte a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dqmstream.errors import StateError
from dqmstream.learners.networks.base import Network

ROWS = 16
"""Random lumisections. With 32 tokens each, the error of a share is .02 at most."""

RUNS = 64
"""Past runs whose routing is kept; when there are more, every second one is dropped."""

DEAD = 0.01
"""An expert is dead when its load is below this part of an even share."""


@dataclass(frozen=True, slots=True)
class MixtureRouting:
    """Routing in one mixture. share_BNE: weight of each expert in each token's output, (ROWS, N, E)."""

    share_BNE: Tensor

    @property
    def load_E(self) -> Tensor:
        """Mean weight of each expert over all tokens: float64, (E,)."""
        return self.share_BNE.double().flatten(0, 1).mean(dim=0)

    def first_experts(self) -> np.ndarray:
        """Expert of the largest weight of each token: uint8, (ROWS N,)."""
        return np.asarray(self.share_BNE.argmax(dim=-1).flatten().cpu().numpy().astype(np.uint8))


@torch.no_grad()
def probe_routers(model: Network, seed: int) -> list[MixtureRouting]:
    """Routing of each mixture, first to last, on the random lumisections of this seed. The model is left unchanged."""
    seen: list[MixtureRouting] = []
    hooks = [
        router.register_forward_hook(lambda router, given, made: seen.append(MixtureRouting(router.shares(given[0]))))
        for router in model.routers()
    ]
    was_training = model.training
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(ROWS, model.channels, generator=generator).to(model.device)
    model.eval()(rows)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return seen


class RoutingFigures:
    """Routing figures of one network over all its runs. A network without routers has none."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._first: dict[int, np.ndarray] = {}  # by experience: uint8, (mixtures, tokens of all lumisections)

    def measure(self, model: Network, experience: int) -> dict[str, float | list[float]]:
        """Figures at the end of an experience; those of mixture m have a name that ends in `.m`.

        expert_load: mean weight of each expert. load_entropy: its entropy in nats, log E where the load is even.
        dead_experts: how many have less than a hundredth of an even share. routing_drift: for each run in
        routing_drift_since (experiences), the share of tokens whose first expert is not the one of that run's end.
        """
        if not model.routers():
            return {}
        seen = probe_routers(model, self._seed)
        first_MT = np.stack([mixture.first_experts() for mixture in seen])
        figures: dict[str, float | list[float]] = {"routing_drift_since": [float(run) for run in self._first]}
        for m, mixture in enumerate(seen):
            load_E = mixture.load_E
            figures[f"expert_load.{m}"] = load_E.tolist()
            figures[f"load_entropy.{m}"] = float(-torch.special.xlogy(load_E, load_E).sum())
            figures[f"dead_experts.{m}"] = float((load_E < DEAD / len(load_E)).sum())
            figures[f"routing_drift.{m}"] = [float((past_MT[m] != first_MT[m]).mean()) for past_MT in self._first.values()]
        self._remember(experience, first_MT)
        return figures

    def _remember(self, experience: int, first_MT: np.ndarray) -> None:
        self._first[experience] = first_MT
        if len(self._first) > RUNS:
            self._first = dict(list(self._first.items())[::2])

    def state(self) -> dict[str, np.ndarray]:
        """What is kept of past runs, as named arrays; empty before the first training."""
        runs = np.array(list(self._first), dtype=np.int64)
        return {"runs": runs, "first": np.stack(list(self._first.values()))} if self._first else {}

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        """Take back what `state` gave. model: the network of that state. Raises StateError for a damaged state."""
        self._first = {}
        if model.classes < 2 or not model.routers():
            return
        if "runs" not in state or "first" not in state:
            raise StateError("the state does not say how past runs were routed; it is damaged or of another version")
        runs, first = state["runs"], state["first"]
        if first.ndim != 3 or first.shape[:2] != (len(runs), len(model.routers())):
            raise StateError(f"the state's routing of shape {first.shape} is not that of {len(runs)} runs in this model")
        experts = min(router.experts for router in model.routers())
        if first.max(initial=0) >= experts:
            raise StateError(f"the state has tokens routed to expert {first.max()} of {experts}; it is damaged")
        self._first = {int(run): first_MT.copy() for run, first_MT in zip(runs, first, strict=True)}

    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(first_MT.nbytes for first_MT in self._first.values())
