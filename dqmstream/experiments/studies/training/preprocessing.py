"""Preprocessing of images: normalisation fitted on the train part only, padding, resizing.

B images, C channels, H x W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dqmstream.errors import InputError
from dqmstream.experiments.studies.training.batches import Images, buffer_rows, in_order
from dqmstream.experiments.studies.training.plan import TrainingPlan


@dataclass(frozen=True)
class Preprocessing:
    """(x - shift) * scale per channel, then zero padding and bilinear resizing as in the plan."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    pad: tuple[int, int] | None
    resize: int

    @classmethod
    def fit(cls, images: Images, rows: np.ndarray, plan: TrainingPlan) -> Preprocessing:
        """Fit to train rows, read once, a buffer at a time. Raises InputError if the padding is smaller than the images."""
        channels, height, width = images.shape[1:]
        if plan.pad is not None and (plan.pad[0] < height or plan.pad[1] < width):
            raise InputError(f"pad {plan.pad} is smaller than the images, {height} x {width}: make it larger")
        statistics = _ChannelStatistics(channels)
        if plan.normalise != "none":
            for x, _ in in_order(images, rows, buffer_rows(images)):
                statistics.add(x)
        shift, scale = _NORMALISATIONS[plan.normalise](statistics)
        return cls(tuple(shift.tolist()), tuple(scale.tolist()), plan.pad, plan.resize)

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the output."""
        if self.resize:
            return channels, self.resize, self.resize
        return (channels, *(self.pad or (height, width)))

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        shift, scale = (x_BCHW.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (self.shift, self.scale))
        x_BCHW = (x_BCHW - shift) * scale
        if self.pad is not None:
            x_BCHW = functional.pad(x_BCHW, (0, self.pad[1] - x_BCHW.shape[3], 0, self.pad[0] - x_BCHW.shape[2]))
        if self.resize:
            size = (self.resize, self.resize)
            x_BCHW = functional.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)
        return x_BCHW

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What `dataclasses.asdict` gave, through JSON."""
        pad = values["pad"]
        return cls(tuple(values["shift"]), tuple(values["scale"]), None if pad is None else tuple(pad), values["resize"])


class _ChannelStatistics:
    """Of each channel the smallest and largest value, the sum, the sum of squares, (C,) each; values: how many a channel."""

    def __init__(self, channels: int) -> None:
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.total, self.squares, self.values = np.zeros(channels), np.zeros(channels), 0

    def add(self, x_BCHW: np.ndarray) -> None:
        x = x_BCHW.astype(np.float64)
        self.low, self.high = np.minimum(self.low, x.min(axis=(0, 2, 3))), np.maximum(self.high, x.max(axis=(0, 2, 3)))
        self.total += x.sum(axis=(0, 2, 3))
        self.squares += (x**2).sum(axis=(0, 2, 3))
        self.values += x[:, 0].size


Normalisation = Callable[[_ChannelStatistics], tuple[np.ndarray, np.ndarray]]
"""Shift and scale of each channel, (C,)."""


def _by_maximum(statistics: _ChannelStatistics) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros_like(statistics.high), _inverse(np.maximum(np.abs(statistics.low), np.abs(statistics.high)))


def _to_unit(statistics: _ChannelStatistics) -> tuple[np.ndarray, np.ndarray]:
    low = statistics.low.min()
    return np.full_like(statistics.low, low), _inverse(np.full_like(statistics.high, statistics.high.max() - low))


def _to_deviations(statistics: _ChannelStatistics) -> tuple[np.ndarray, np.ndarray]:
    mean = statistics.total / statistics.values
    return mean, _inverse(np.sqrt(np.maximum(statistics.squares / statistics.values - mean**2, 0.0)))


def _as_they_are(statistics: _ChannelStatistics) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros_like(statistics.total), np.ones_like(statistics.total)


_NORMALISATIONS: dict[str, Normalisation] = {
    "maximum": _by_maximum,
    "unit": _to_unit,
    "standard": _to_deviations,
    "none": _as_they_are,
}


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 / values, and 1 where a channel is zero throughout."""
    return np.divide(1.0, values, out=np.ones_like(values, dtype=np.float64), where=values > 0)


def to_device(x: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device, non_blocking=True)
