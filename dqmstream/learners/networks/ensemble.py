"""Ensembles of networks of any kind."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dqmstream.learners.networks.backbones.ensemble import Ensemble
from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.moe.routers import Router


class EnsembleNetwork(Network):
    """Networks whose logits are averaged; each is trained as if it were alone (`learners.networks.backbones.ensemble`)."""

    def __init__(self, live: np.ndarray, members: list[Network]) -> None:
        super().__init__(live)
        self.ensemble = Ensemble(members)

    @property
    def members(self) -> list[Network]:
        return [member for member in self.ensemble.members if isinstance(member, Network)]

    def forward(self, residuals_BL: Tensor) -> Tensor:
        logits_BC: Tensor = self.ensemble(residuals_BL)
        return logits_BC

    def auxiliary_loss(self) -> Tensor | float:
        """The ensemble's own term, and the mean of the members' auxiliary losses."""
        losses = [member.auxiliary_loss() for member in self.members]
        return self.ensemble.auxiliary_loss() + sum(losses) / len(losses)

    def after_step(self) -> None:
        for member in self.members:
            member.after_step()

    def heads(self) -> list[GrowingLinear]:
        return [head for member in self.members for head in member.heads()]

    def routers(self) -> list[Router]:
        return [router for member in self.members for router in member.routers()]
