"""DepthViT as a detector of anomalies: masked autoencoders of scaled maps, the newest one beside older ones.

Julson et al., arXiv:2603.02369: models trained on the newest data are ensembled with older ones. Of the paper only the abstract
was read, and code that names its architecture and training (github.com/daksh-mor/heptapod-dqm, dqm_core/train.py, utils.py). As
in that code: maps are scaled by the quartiles of their own channels; the loss is the squared error of the rebuilt map; a
channel's score is the deviation of its absolute error from the mean of good data, in standard deviations; a lumisection's score
is the largest of its channels. Not found in public, and so ours: which older models stay (`learners.memory.checkpoints`), and
the mean over the models' scores. Means and standard deviations are of the newest run that was learnt, for older models too.

Shape suffixes: B lumisections, L live channels, N patches, C depths.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dqmstream.errors import InputError
from dqmstream.learners.memory.checkpoints import spread
from dqmstream.learners.monitoring.autoencoder import training_bytes
from dqmstream.learners.networks.depth_vit import MaskedDepthViT

_AT_ONCE = 128
"""Lumisections that are rebuilt at once."""

_LEAST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True)
class Training:
    """Size and training of a model.

    patch, features, layers, mlp_ratio, among_patches: of `MaskedDepthViT`. mask: share of the tokens that are masked. batch,
    rate, weight_decay: lumisections a step, learning rate and weight decay of AdamW (AMSGrad). first_epochs, epochs: passes
    over the first run and over every later one. models: their number, the newest one included.
    """

    patch: tuple[int, int] = (12, 12)
    features: int = 8
    layers: int = 5
    mlp_ratio: float = 1.0
    among_patches: bool = False
    mask: float = 0.5
    batch: int = 32
    rate: float = 1e-3
    weight_decay: float = 1e-7
    first_epochs: int = 20
    epochs: int = 4
    models: int = 1


class DepthViTDetector:
    """Learns good lumisections run by run, and scores the channels of others."""

    def __init__(self, live: np.ndarray, training: Training, seed: int, least_deviation: float = _LEAST_SPREAD) -> None:
        """live: bool, (depth, 64, 72); channels outside it are ignored. least_deviation: of a channel's error."""
        self.live, self.training, self._least_deviation = live, training, least_deviation
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._newest = MaskedDepthViT(
                live,
                patch=training.patch,
                features=training.features,
                layers=training.layers,
                mlp_ratio=training.mlp_ratio,
                among_patches=training.among_patches,
            )
        self._adam = torch.optim.AdamW(
            self._newest.parameters(), lr=training.rate, weight_decay=training.weight_decay, amsgrad=True
        )
        self._older: list[tuple[int, MaskedDepthViT]] = []
        self._errors: list[tuple[np.ndarray, np.ndarray]] = []
        self.runs = 0

    @property
    def models(self) -> list[MaskedDepthViT]:
        """The newest model, and the older ones from the oldest on."""
        return [self._newest, *(model for _, model in self._older)]

    @property
    def learnt_after(self) -> list[int]:
        """After how many runs each older model was set aside."""
        return [runs for runs, _ in self._older]

    @property
    def numbers(self) -> int:
        """Number of weights of all models, and of the means and standard deviations of their errors."""
        statistics = sum(mean.size + deviation.size for mean, deviation in self._errors)
        return statistics + sum(weight.numel() for model in self.models for weight in model.parameters())

    @property
    def kept_bytes(self) -> int:
        """Bytes of these numbers and of the optimizer's state."""
        statistics = sum(mean.nbytes + deviation.nbytes for mean, deviation in self._errors)
        return statistics + training_bytes(self.models, self._adam)

    def learn(self, values: np.ndarray) -> list[float]:
        """Train the newest model on the next run. values: float32 (n, live), n > 0. Returns the loss of each step."""
        if self.runs and self.training.models > 1:
            self._older.append((self.runs, copy.deepcopy(self._newest)))
            stay = spread(self.learnt_after, self.runs + 1, self.training.models - 1)
            self._older = [self._older[place] for place in stay]
        losses = self._train(torch.from_numpy(values), self.training.epochs if self.runs else self.training.first_epochs)
        self._errors = [self._statistics(self._errors_of(model, values)) for model in self.models]
        self.runs += 1
        return losses

    def scores(self, values: np.ndarray, own_statistics: bool = False) -> np.ndarray:
        """Deviation of each channel's error in standard deviations, the mean over the models: float32 (n, live).

        own_statistics: whether mean and standard deviation are those of these values, later ones included, as in the public
        evaluation script; otherwise those of the last run that was learnt.
        """
        if not self._errors:
            raise InputError("no run was learnt yet: learn one before scoring")
        found = []
        for model, known in zip(self.models, self._errors, strict=True):
            error = self._errors_of(model, values)
            mean, deviation = self._statistics(error) if own_statistics else known
            found.append(np.abs(error - mean) / deviation)
        return np.asarray(np.mean(found, axis=0), dtype=np.float32)

    def _errors_of(self, model: nn.Module, values: np.ndarray) -> np.ndarray:
        return np.abs(self.rebuilt(model, values) - values)

    def _statistics(self, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return error.mean(axis=0), np.maximum(error.std(axis=0), self._least_deviation)

    @torch.no_grad()
    def rebuilt(self, model: nn.Module, values: np.ndarray) -> np.ndarray:
        """The values as a model rebuilds them with no token masked: float32 (n, live)."""
        model.eval()
        parts = [model(part).numpy() for part in torch.from_numpy(values).split(_AT_ONCE)]
        return np.concatenate([np.zeros((0, values.shape[1]), np.float32), *parts])

    def _train(self, values_ML: torch.Tensor, epochs: int) -> list[float]:
        losses, batch = [], self.training.batch
        self._newest.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(values_ML), generator=self._generator).split(batch):
                x_BL = values_ML[rows]
                mask_BNC = self._newest.random_mask(len(x_BL), self.training.mask, self._generator)
                loss = nn.functional.mse_loss(self._newest(x_BL, mask_BNC), x_BL)
                self._adam.zero_grad()
                loss.backward()
                self._adam.step()
                losses.append(float(loss.detach()))
        return losses


def scaled_by_quartiles(counts: np.ndarray) -> np.ndarray:
    """(count - first quartile) / (third - first), quartiles over the channels of each lumisection: float32, (n, live).

    Where the quartiles are equal, (count - mean) / standard deviation; 0 where all counts are equal.
    """
    counts = counts.astype(np.float64)
    low, high = np.quantile(counts, (0.25, 0.75), axis=1, keepdims=True)
    by_deviation = (counts - counts.mean(axis=1, keepdims=True)) / np.maximum(counts.std(axis=1, keepdims=True), _LEAST_SPREAD)
    by_quartiles = (counts - low) / np.maximum(high - low, _LEAST_SPREAD)
    return np.where(high - low < _LEAST_SPREAD, by_deviation, by_quartiles).astype(np.float32)
