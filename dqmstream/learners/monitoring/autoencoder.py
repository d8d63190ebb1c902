"""An autoencoder of residual maps: a comparison for the fault score. What it cannot rebuild of a lumisection is unusual.

Two strided convolutions, a bottleneck, and the same in reverse, with a bias for each channel, trained run by run on the squared
error (as for the calorimeters: Abadjiev et al., arXiv:2309.10157, there on past good lumisections). With replay, half of each
batch are lumisections of past runs.

Shape suffixes: B lumisections, L live channels, F features, R x S a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dqmstream.learners.maps import Maps
from dqmstream.learners.response.reference import Reference

WIDTHS, BOTTLENECK = (8, 16), 32
"""Features of the two convolutions and of the bottleneck."""

BATCH, FIRST_STEPS, STEPS, RATE = 64, 150, 40, 2e-3
"""Lumisections a batch, gradient steps of the first and of every later run, learning rate."""

KEPT = 400
"""Lumisections of past runs that replay keeps, a uniform choice of all (reservoir sampling)."""


class Autoencoder:
    """Learns good lumisections, and gives what it cannot rebuild of others."""

    def __init__(self, reference: Reference, seed: int, replay: bool) -> None:
        self._reference, self._replay = reference, replay
        self._rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = _Network(reference.live)
        self._adam = torch.optim.Adam(self._network.parameters(), lr=RATE)
        self._memory = np.zeros((0, reference.channels), dtype=np.float32)
        self._met = 0

    @property
    def network(self) -> nn.Module:
        return self._network

    @property
    def kept_bytes(self) -> int:
        """Bytes of the weights, the optimizer's state and the lumisections kept."""
        return training_bytes([self._network], self._adam) + self._memory.nbytes

    def learn(self, maps: Maps) -> None:
        """Train on the lumisections of the next run."""
        new = self._reference.residuals(maps.counts)
        self._network.train()
        for _ in range(STEPS if self._met else FIRST_STEPS):
            batch = new[self._rng.integers(len(new), size=BATCH)]
            if len(self._memory):
                batch[: BATCH // 2] = self._memory[self._rng.integers(len(self._memory), size=BATCH // 2)]
            x_BL = torch.from_numpy(batch)
            loss = functional.mse_loss(self._network(x_BL), x_BL)
            self._adam.zero_grad()
            loss.backward()
            self._adam.step()
        if self._replay:
            self._keep(new)
        self._met += len(new)

    def left_over(self, maps: Maps) -> np.ndarray:
        """Residuals minus their reconstruction, in standard deviations: float32, (n, live)."""
        residuals = self._reference.residuals(maps.counts)
        self._network.eval()
        with torch.no_grad():
            rebuilt = [
                self._network(torch.from_numpy(part)).numpy() for part in np.array_split(residuals, -(-len(maps) // 256))
            ]
        return np.asarray(residuals - np.concatenate(rebuilt))

    def _keep(self, new: np.ndarray) -> None:
        """Reservoir sampling (Vitter, ACM Trans. Math. Softw. 11 (1985) 37)."""
        for met, row in enumerate(new, self._met):
            if len(self._memory) < KEPT:
                self._memory = np.concatenate([self._memory, row[None]])
            elif (place := int(self._rng.integers(met + 1))) < KEPT:
                self._memory[place] = row


def training_bytes(networks: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the weights of these networks, and of an optimizer's state."""
    weights = sum(weight.nbytes for network in networks for weight in network.state_dict().values())
    return weights + sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )


class _Network(nn.Module):
    place_L: Tensor

    def __init__(self, live: np.ndarray) -> None:
        super().__init__()
        rows = np.flatnonzero(live.any(axis=(0, 2)))
        self.shape = (live.shape[0], len(rows), live.shape[2])
        inside = np.ascontiguousarray(live[:, rows])
        self.register_buffer("place_L", torch.from_numpy(np.flatnonzero(inside)))
        depth, first, second = live.shape[0], *WIDTHS
        self.down = nn.ModuleList([nn.Conv2d(depth, first, 3, 2, 1), nn.Conv2d(first, second, 3, 2, 1)])
        self.halves = [self.shape[1:], *[((r + 1) // 2, (s + 1) // 2) for r, s in [self.shape[1:]]]]
        self.halves.append(((self.halves[1][0] + 1) // 2, (self.halves[1][1] + 1) // 2))
        inner = second * self.halves[2][0] * self.halves[2][1]
        self.narrow, self.wide = nn.Linear(inner, BOTTLENECK), nn.Linear(BOTTLENECK, inner)
        self.up = nn.ModuleList([nn.ConvTranspose2d(second, first, 3, 2, 1), nn.ConvTranspose2d(first, depth, 3, 2, 1)])
        self.bias_L = nn.Parameter(torch.zeros(len(self.place_L)))

    def forward(self, x_BL: Tensor) -> Tensor:
        flat = x_BL.new_zeros(len(x_BL), self.shape[0] * self.shape[1] * self.shape[2])
        x_BFRS = flat.index_copy(1, self.place_L, x_BL).reshape(len(x_BL), *self.shape)
        for convolution in self.down:
            x_BFRS = convolution(x_BFRS).relu()
        rebuilt = self.wide(self.narrow(x_BFRS.flatten(1))).relu().reshape(x_BFRS.shape)
        rebuilt = self.up[0](rebuilt, output_size=list(self.halves[1])).relu()
        rebuilt = self.up[1](rebuilt, output_size=list(self.halves[0]))
        out_BL: Tensor = rebuilt.flatten(1).index_select(1, self.place_L) + self.bias_L
        return out_BL
