"""The pooled network: what it looks for is the same in every channel, and one channel that shows it suffices.

    h_ik = max over places j of (w_ik r_ij + b_ik + u_ik · c),    logits = W relu(V [relu(h), c] + v)

r_1: residuals of the channels; r_2, r_3: their sums over a readout module and a readout box, over the root of its size; c:
conditions, zero where none are given. A fault is local, and no place has weights of its own, so a few periods teach all
channels. The max over places is taken in closed form, from the largest and the smallest r_ij. Source: max pooling over a set,
as in Qi et al. 2017 (arXiv:1612.00593).

B lumisections, L live channels, P places, K features of each kind of place.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import register_network
from dqmstream.lumisection import IETA, IPHI, readout_box, readout_module

FEATURES = 16
"""Features of each kind of place; half of them begin by looking for large values, half for small ones."""

CONDITIONS = 2
"""Numbers that conditions are."""

KINDS = 3
"""Channels, modules and boxes."""


@register_network("pooled")
class Pooled(Network):
    """Shared features, the largest over all places, and a small hidden layer of `dim` / 4 units."""

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        _, row, column = np.nonzero(live)
        self.module_LP: Tensor
        self.box_LP: Tensor
        for name, number in (("module_LP", readout_module), ("box_LP", readout_box)):
            of_channel = number(IETA[row], IPHI[column])
            member = (np.unique(of_channel) == of_channel[:, None]).astype(np.float32)
            self.register_buffer(name, torch.from_numpy(member / np.sqrt(member.sum(axis=0))), persistent=False)
        sign_K = torch.ones(FEATURES)
        sign_K[1::2] = -1
        self.weight_IK = nn.Parameter(sign_K * (0.25 + 0.5 * torch.rand(KINDS, FEATURES)))
        self.of_conditions = nn.Linear(CONDITIONS, KINDS * FEATURES)
        self.hidden = nn.Linear(KINDS * FEATURES + CONDITIONS, max(recipe.dim // 4, 1))
        self.head = GrowingLinear(self.hidden.out_features, bias=True)

    def forward(self, residuals_BL: Tensor) -> Tensor:
        return self.forward_with(residuals_BL, residuals_BL.new_zeros(len(residuals_BL), CONDITIONS))

    def forward_with(self, residuals_BL: Tensor, conditions_BC: Tensor) -> Tensor:
        shift_BIK = self.of_conditions(conditions_BC).view(-1, KINDS, FEATURES)
        of_kinds = [residuals_BL, residuals_BL @ self.module_LP, residuals_BL @ self.box_LP]
        largest_BI1 = torch.stack([r_BP.amax(dim=1) for r_BP in of_kinds], dim=1)[:, :, None]
        smallest_BI1 = torch.stack([r_BP.amin(dim=1) for r_BP in of_kinds], dim=1)[:, :, None]
        found_BIK = self.weight_IK.clamp_min(0) * largest_BI1 + self.weight_IK.clamp_max(0) * smallest_BI1 + shift_BIK
        features_BF = torch.cat([found_BIK.flatten(1).relu(), conditions_BC], dim=1)
        logits_BC: Tensor = self.head(self.hidden(features_BF).relu())
        return logits_BC

    def heads(self) -> list[GrowingLinear]:
        return [self.head]
