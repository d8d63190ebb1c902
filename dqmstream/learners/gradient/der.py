"""DER++: replay, and the logits that the network once gave its exemplars are held.

    L = mean over classes c of CE(f(x), c) + strength mean over x' and over classes k known then of (f_k(x') - z_k(x'))²

f: the network's logits; x: from the new run or the memory; x': from the memory, in a batch of its own; z: stored logits.
Source: Buzzega et al. 2020 (arXiv:2004.07211), eq. 6. Logits are compared on the classes that were known when they were stored.
They are stored for residuals without noise and compared under the training's noise, as in the paper under augmentations.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dqmstream.errors import StateError
from dqmstream.learners.gradient.method import Inputs
from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import RunTemplate
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.recipe import Recipe

SHARE_LOGITS = 0.125
"""Part of the budget for logits: at 1 MB those of all exemplars up to 260 runs, later those of a run's first exemplars."""


@register_method("der")
class Der(Replay):
    """Keeps the logits of a run's exemplars at the end of its training, as float16.

    They are computed when the next training begins, before the first step. Those of run 0 are of the first training, before
    which there is no network. Where not all fit, a run's first exemplars have them.
    """

    name = "der"

    def __init__(self, recipe: Recipe, seed: int, memory_bytes: int) -> None:
        self._logit_bytes = int(SHARE_LOGITS * memory_bytes)
        super().__init__(recipe, seed, memory_bytes - self._logit_bytes)
        self.logits: list[np.ndarray] = []
        """Stored logits, a group each: float16, (exemplars with logits, classes known then)."""
        self.places: list[np.ndarray] = []
        """Numbers of the exemplars that they belong to, a group each: int32."""
        self._beside = 0

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        lesson = strategy.experience
        self._beside = 0
        if not lesson.known:
            return
        exemplars = [lesson.residuals_ML[lesson.group_M == i] for i in range(len(self.exemplars()))]
        for residuals_NL in exemplars[len(self.logits) :]:
            self.logits.append(logits_of(strategy.model, residuals_NL)[:, : lesson.known].astype(np.float16))
            self.places.append(np.arange(len(residuals_NL), dtype=np.int32))
        share = self._logit_bytes // len(exemplars)
        for i, (z, places) in enumerate(zip(self.logits, self.places, strict=True)):
            fit = share // (z.shape[1] * z.itemsize + places.itemsize)
            self.logits[i], self.places[i] = z[:fit].copy(), places[:fit].copy()
        self._exemplar_ML = torch.cat([rows[places] for rows, places in zip(exemplars, self.places, strict=True)])
        self._logit_MC = torch.from_numpy(padded(self.logits, strategy.model.classes)).to(self._exemplar_ML.device)

    def before_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        if strategy.experience.known and len(self._logit_MC):
            index_B = torch.randint(len(self._logit_MC), (len(strategy.mb_x),), generator=strategy.experience.generator)
            index_B = index_B.to(self._logit_MC.device)
            asked_BL = strategy.experience.with_noise(self._exemplar_ML[index_B])
            held = difference(strategy.model(asked_BL), self._logit_MC[index_B])
            strategy.loss = strategy.loss + self.recipe.der_strength * held
            self._beside += len(index_B)

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._exemplar_ML = self._logit_MC = torch.zeros(0)

    def lumisections_beside(self) -> int:
        return self._beside

    def keep(self, new: Mapping[int, np.ndarray], inputs: Inputs) -> None:
        before = [self._rows(i)[places] for i, places in enumerate(self.places)]
        super().keep(new, inputs)
        for i, rows in enumerate(before):
            # Logits of exemplars that the memory has dropped are dropped too.
            at = {row.tobytes(): place for place, row in enumerate(self._rows(i))}
            stay = [n for n, row in enumerate(rows) if row.tobytes() in at]
            self.places[i] = np.array([at[rows[n].tobytes()] for n in stay], dtype=np.int32)
            self.logits[i] = self.logits[i][stay]

    def _rows(self, experience: int) -> np.ndarray:
        return np.zeros((0, 0)) if self._memory is None else self._memory.of(experience).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {
            "logits": np.concatenate([np.zeros(0, np.float16), *(z.ravel() for z in self.logits)]),
            "logit_shapes": np.array([z.shape for z in self.logits], dtype=np.int64).reshape(-1, 2),
            "logit_places": np.concatenate([np.zeros(0, np.int32), *self.places]),
        }

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        super().restore(state, model)
        missing = sorted({"logits", "logit_shapes", "logit_places"} - state.keys())
        if missing:
            raise StateError(f"the state of {self.name} lacks {', '.join(missing)}; it is damaged")
        shapes = np.array(state["logit_shapes"], dtype=np.int64).reshape(-1, 2)
        ends, row_ends = np.cumsum(shapes.prod(axis=1)), np.cumsum(shapes[:, 0])
        held, places = len(state["logits"]), len(state["logit_places"])
        if held != shapes.prod(axis=1).sum() or places != shapes[:, 0].sum():
            raise StateError(
                f"the state of {self.name} holds {held} logits of {places} exemplars, not its shapes'; it is damaged"
            )
        parts = np.split(np.array(state["logits"]), ends)[: len(shapes)]
        self.logits = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        self.places = np.split(np.array(state["logit_places"]), row_ends)[: len(shapes)]

    def memory_bytes(self) -> int:
        return super().memory_bytes() + sum(kept.nbytes for kept in (*self.logits, *self.places))


@torch.no_grad()
def logits_of(model: Network, residuals_NL: Tensor) -> np.ndarray:
    """Logits of a model in evaluation mode: float32, (N, classes). The model is left in training mode."""
    model.eval()
    logits_NC = model(residuals_NL).cpu().numpy()
    model.train()
    return np.asarray(logits_NC)


def padded(logits: list[np.ndarray], classes: int) -> np.ndarray:
    """Logits of all groups in one array: float32, (M, classes), nan for classes that were not known."""
    out = np.full((sum(map(len, logits)), classes), np.nan, dtype=np.float32)
    start = 0
    for z in logits:
        out[start : start + len(z), : z.shape[1]] = z
        start += len(z)
    return out


def difference(logits_BC: Tensor, stored_BC: Tensor) -> Tensor:
    """Mean square of the differences, over entries whose stored logit is not nan."""
    known_BC = ~stored_BC.isnan()
    return (logits_BC[known_BC] - stored_BC[known_BC]).square().mean()
