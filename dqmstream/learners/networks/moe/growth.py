"""One expert more in each mixture: the busiest is split in two, which compute the same and share its tokens.

The new expert is a clone, and its router's row is the other's and a small part of its own: tokens on one side of a plane go on
to the first, those on the other side to the second. From there on they see other tokens and learn other things. A token never
takes two experts of one family (`learners.networks.moe.routers`), so that it is given what it was given before but for that
small part.

Busiest is whose load is largest on the lumisections that routing looks at (`learners.networks.moe.routing_figures`): they say
it of the network as
it is, need nothing to be counted in training or kept for a resume, and are the same after it. Growing by cloning what is there
is Net2WiderNet's way (Chen et al. 2016, arXiv:1511.05641); experts cloned when new data come, Lifelong-MoE's (Chen et al. 2023,
arXiv:2305.12281), which freezes the old ones: here all go on learning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.moe.layer import MoE
from dqmstream.learners.networks.moe.routing_figures import Routed, look_at_routers

SHARE = 0.1
"""Length of what a clone's row has of its own, over the length of the row it was copied from. Five trainings of 40 steps with a
split between any two, on a short stream of the tests, seed 0, both routers: with .01, .05 and .2 a split moved the logits by
.0004, .0015 and .003 of their spread at most, and the least load that a clone had after a training was .003, .008 and .054."""


@torch.no_grad()
def split_busiest(model: Network, seed: int, generator: torch.Generator, share: float = SHARE) -> dict[str, float]:
    """Split the busiest expert of each mixture; its number is noted as `expert_split.m` of mixture m.

    seed: of the lumisections that are looked at. generator: of the planes, on the CPU. share: as `SHARE`.
    """
    mixtures = [module for module in model.modules() if isinstance(module, MoE)]
    notes = {}
    for m, (mixture, of) in enumerate(zip(mixtures, look_at_routers(model, seed), strict=True)):
        busiest = int(of.load_E.argmax())
        row_D = mixture.router.weight[busiest]
        mixture.split(busiest, share * row_D.norm() * _across(row_D, of, busiest, generator))
        notes[f"expert_split.{m}"] = float(busiest)
    return notes


def _across(row_D: Tensor, of: Routed, expert: int, generator: torch.Generator) -> Tensor:
    """A random direction, of length one, across the mean of an expert's tokens: the plane goes through their middle. (D,)"""
    mean_D = (of.share_BNE[..., expert, None] * of.x_BND).sum(dim=(0, 1))
    mean_D = torch.nn.functional.normalize(mean_D.float(), dim=0)
    drawn_D = torch.randn(len(row_D), generator=generator).to(row_D.device)
    return torch.nn.functional.normalize(drawn_D - (drawn_D @ mean_D) * mean_D, dim=0)
