"""What the routers do with a few fixed lumisections: how they load the experts, and how far they have moved since past runs.

The lumisections are drawn from the seed, as the reference run's own residuals are spread: independent normal deviations. So
nothing of the data is kept for them, they are the same at the end of every run, and what moves is the model. Of each run the
first expert of each token at its end is kept, a byte a token; of more than 64 runs every second one is dropped.
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
"""Lumisections that are looked at. With 32 tokens each, a share has an error of .02 at most."""

RUNS = 64
"""Past runs whose choices are kept."""

DEAD = 0.01
"""An expert whose load is below this part of an even share counts as dead."""


@dataclass(frozen=True, slots=True)
class Routed:
    """What one mixture does with the lumisections that are looked at: its tokens (ROWS, N, D), the experts' shares of each."""

    x_BND: Tensor
    share_BNE: Tensor

    @property
    def load_E(self) -> Tensor:
        """Share of the tokens' weight that each expert has: float64, (E,)."""
        return self.share_BNE.double().flatten(0, 1).mean(dim=0)


@torch.no_grad()
def look_at_routers(model: Network, seed: int) -> list[Routed]:
    """Of each mixture, first to last; the model is left as it was. seed: of the lumisections."""
    seen: list[Routed] = []
    hooks = [
        router.register_forward_hook(lambda router, given, made: seen.append(Routed(given[0], router.shares(given[0]))))
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


class Routing:
    """Looks at a network after each training, and remembers. Networks without routers have nothing to note."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._first: dict[int, np.ndarray] = {}  # by experience: uint8, one a mixture and token of all lumisections

    def look(self, model: Network, experience: int) -> dict[str, float | list[float]]:
        """Notes at the end of an experience, those of mixture m under a name that ends with .m:

        expert_load, share of the tokens' weight that each expert has; load_entropy, in nats (log E where it is even);
        dead_experts, how many have less than a hundredth of an even share; routing_drift, of each run in `routing_drift_since`
        (experiences) the share of tokens whose first expert is another than at its end; experts of one family
        count as one.
        """
        if not model.routers():
            return {}
        seen = look_at_routers(model, self._seed)
        first_MT = np.stack([of.share_BNE.argmax(dim=-1).flatten().cpu().numpy().astype(np.uint8) for of in seen])
        notes: dict[str, float | list[float]] = {"routing_drift_since": [float(run) for run in self._first]}
        for m, (of, router) in enumerate(zip(seen, model.routers(), strict=True)):
            load_E, family_E = of.load_E, router.family_E.cpu().numpy()
            now_T = family_E[first_MT[m]]
            notes[f"expert_load.{m}"] = load_E.tolist()
            notes[f"load_entropy.{m}"] = float(-torch.special.xlogy(load_E, load_E).sum())
            notes[f"dead_experts.{m}"] = float((load_E < DEAD / len(load_E)).sum())
            notes[f"routing_drift.{m}"] = [float((family_E[past_MT[m]] != now_T).mean()) for past_MT in self._first.values()]
        self._remember(experience, first_MT)
        return notes

    def _remember(self, experience: int, first_MT: np.ndarray) -> None:
        self._first[experience] = first_MT
        if len(self._first) > RUNS:
            self._first = dict(list(self._first.items())[::2])

    def state(self) -> dict[str, np.ndarray]:
        """What is kept, as named arrays; empty before there is something."""
        runs = np.array(list(self._first), dtype=np.int64)
        return {"runs": runs, "first": np.stack(list(self._first.values()))} if self._first else {}

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        """Take back what `state` gave; model: as it was then. Raises StateError for what it cannot have given."""
        self._first = {}
        if model.classes < 2 or not model.routers():
            return
        if "runs" not in state or "first" not in state:
            raise StateError("the state does not say how past runs were routed; it is damaged or of another version")
        runs, first = state["runs"], state["first"]
        if first.ndim != 3 or first.shape[:2] != (len(runs), len(model.routers())):
            raise StateError(f"the state's routing of shape {first.shape} is not that of {len(runs)} runs in this model")
        experts = min(len(router.family_E) for router in model.routers())
        if first.max(initial=0) >= experts:
            raise StateError(f"the state has tokens routed to expert {first.max()} of {experts}; it is damaged")
        self._first = {int(run): first_MT.copy() for run, first_MT in zip(runs, first, strict=True)}

    def nbytes(self) -> int:
        return sum(first_MT.nbytes for first_MT in self._first.values())
