"""Training of a classifier on images in files; the best epoch is chosen by validation, and a stopped training continues.

B images, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.studies.training import checkpoints
from dqmstream.experiments.studies.training.augmentation import augmented
from dqmstream.experiments.studies.training.batches import Batch, Images, SplitRows, in_order, shuffled
from dqmstream.experiments.studies.training.networks import WholeMap, build, taken_by
from dqmstream.experiments.studies.training.plan import TrainingPlan
from dqmstream.experiments.studies.training.preprocessing import Preprocessing, to_device
from dqmstream.learners.evaluation.roc import one_against_rest
from dqmstream.learners.gradient.device import chosen_device, seeded

SCORE_BATCH = 128


@runtime_checkable
class HasAuxiliaryLoss(Protocol):
    """A network with a loss of its own in training, such as that of routers or of the members of an ensemble."""

    def auxiliary_loss(self) -> Tensor | float: ...


@dataclass(frozen=True)
class EpochProgress:
    """How far a training is. epoch: from 1 to at most `epochs`. left_s: seconds to the end of the last epoch at this rate."""

    epoch: int
    epochs: int
    images: int
    of_images: int
    images_per_s: float
    left_s: float


@dataclass(frozen=True)
class Training:
    """Everything that the result of a training depends on, besides images and rows.

    device: of `learners.gradient.device`. weights: file of initial weights. about: plain values that identify the data; a
    folder with a training of other values is refused.
    """

    plan: TrainingPlan
    seed: int = 0
    device: str = "auto"
    weights: Path | None = None
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished training. history: an entry per epoch. best_epoch: from 1, the epoch whose weights gave the scores.

    rows: of "validation", "test", and as many of "train" as test has. log_probability: of these rows, float64 (n, C). taken:
    what was loaded from a file of weights, "" without one.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    parameters: int
    device: str
    taken: str
    rows: dict[str, np.ndarray]
    log_probability: dict[str, np.ndarray]


def train(
    images: Images,
    parts: SplitRows,
    training: Training,
    folder: Path,
    progress: Callable[[EpochProgress], None] = lambda progress: None,
) -> Trained:
    """Train, or continue a training, in a folder of its own.

    On a CPU with the same number of threads, a training that was stopped at any moment gives the same bits as one that was not.
    Raises InputError if images or weights do not suit the plan or the loss is not finite, StateError if the folder holds
    another training or is damaged.
    """
    plan, device = training.plan, chosen_device(training.device)
    identity = {"plan": plan.model_dump(mode="json"), "seed": training.seed, **(training.about or {})}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = _checkpoint(folder, identity)
    inputs = Preprocessing.from_json(checkpoint[1]["inputs"]) if checkpoint else Preprocessing.fit(images, parts.train, plan)
    with seeded(training.seed, 0):
        network = build(plan, inputs.shape(*images.shape[1:]), len(images.classes), training.weights).to(device)
    optimizer = _OPTIMIZERS[plan.optimizer](network.parameters(), lr=plan.lr, eps=plan.epsilon, weight_decay=plan.weight_decay)
    history: list[dict[str, Any]] = []
    if checkpoint:
        checkpoints.restore(checkpoint[0], network, optimizer)
        history = checkpoint[1]["history"]
    loop = TrainingLoop(images, plan, inputs, network, optimizer, device, training.seed)
    while len(history) < plan.epochs and not _out_of_patience(history, plan.patience):
        line = loop.epoch(len(history) + 1, parts, progress)
        history.append(line)
        about = {**identity, "inputs": asdict(inputs), "history": history}
        if best_of(history) == len(history):
            checkpoints.write(folder / checkpoints.BEST, network.state_dict(), about)
        checkpoints.write(folder / checkpoints.LAST, checkpoints.tensors_of(network, optimizer), about)
    network.load_state_dict(checkpoints.read(folder / checkpoints.BEST)[0])
    few = np.linspace(0, len(parts.train) - 1, min(len(parts.train), len(parts.test))).astype(np.int64)
    rows = {"train": parts.train[few], "validation": parts.validation, "test": parts.test}
    return Trained(
        history,
        best_of(history),
        sum(weight.numel() for weight in network.parameters()),
        str(device),
        taken_by(network, training.weights),
        rows,
        {name: loop.log_probability(of_part) for name, of_part in rows.items()},
    )


def best_of(history: Sequence[Mapping[str, Any]]) -> int:
    """The epoch, from 1, with the best validation AUC; among equal ones the lowest validation loss, then the first."""
    return 1 + min(range(len(history)), key=lambda e: (-history[e]["validation_auc"], history[e]["validation_loss"], e))


class TrainingLoop:
    """The parts of a running training."""

    def __init__(
        self,
        images: Images,
        plan: TrainingPlan,
        inputs: Preprocessing,
        network: nn.Module,
        optimizer: optim.Optimizer,
        device: torch.device,
        seed: int,
    ) -> None:
        self.images, self.plan, self.inputs, self.network = images, plan, inputs, network
        self.optimizer, self.device, self.seed = optimizer, device, seed

    def epoch(self, epoch: int, parts: SplitRows, progress: Callable[[EpochProgress], None]) -> dict[str, Any]:
        """Train for an epoch and evaluate it on validation; returns its entry of the history."""
        began, seen, total = time.perf_counter(), 0, 0.0
        images = len(parts.train)
        with seeded(self.seed, epoch) as generator:
            self.network.train()
            for x, y in shuffled(self.images, parts.train, self.plan.batch, np.random.default_rng([self.seed, epoch])):
                total += self._step(x, y, generator) * len(x)
                seen += len(x)
                pace = seen / (time.perf_counter() - began)
                left = ((self.plan.epochs - epoch + 1) * images - seen) / pace
                progress(EpochProgress(epoch, self.plan.epochs, seen, images, pace, left))
        train_loss = total / max(seen, 1)
        if not np.isfinite(train_loss):
            raise InputError(
                f"the loss of epoch {epoch} is {train_loss}: try a lower learning rate, --set lr={self.plan.lr / 10:g}"
            )
        log_probability = self.log_probability(parts.validation)
        labels = self.images.labels[parts.validation]
        return {
            "epoch": epoch,
            "train_loss": train_loss,
            "validation_loss": float(-log_probability[np.arange(len(labels)), labels].mean()),
            "validation_accuracy": float((log_probability.argmax(axis=1) == labels).mean()),
            "validation_auc": one_against_rest(log_probability, labels),
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _step(self, x: np.ndarray, y: np.ndarray, generator: torch.Generator) -> float:
        """Make a step of the optimizer; returns the mean loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for few, labels in _pieces((x, y), self.plan.micro_batch or len(x)):
            shown = augmented(self.inputs(to_device(few, self.device)), self.plan.augment, generator)
            target = torch.from_numpy(labels).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.bf16 and self.device.type == "cuda"):
                loss = self._loss(self.network(shown), target)
            (loss * (len(few) / len(x))).backward()
            losses.append(loss.detach() * (len(few) / len(x)))
        self.optimizer.step()
        if isinstance(self.network, WholeMap):
            self.network.after_step()
        return float(torch.stack(losses).sum())

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.plan.loss == "sigmoid":
            return functional.binary_cross_entropy_with_logits(logits[:, 0].float(), target.float())
        loss = functional.cross_entropy(logits.float(), target)
        return loss + self.network.auxiliary_loss() if isinstance(self.network, HasAuxiliaryLoss) else loss

    @torch.inference_mode()
    def log_probability(self, rows: np.ndarray) -> np.ndarray:
        """Log-probabilities float64 (n, C) of ascending rows."""
        self.network.eval()
        found = []
        for buffer, _ in in_order(self.images, rows, 8 * SCORE_BATCH):
            for start in range(0, len(buffer), SCORE_BATCH):
                logits = self.network(self.inputs(to_device(buffer[start : start + SCORE_BATCH], self.device))).double()
                if self.plan.loss == "sigmoid":
                    logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
                found.append(logits.log_softmax(dim=1).cpu().numpy())
        return np.concatenate(found)


def _pieces(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch[0]), size):
        yield batch[0][start : start + size], batch[1][start : start + size]


_OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {"adam": optim.Adam, "adamw": optim.AdamW}


def _out_of_patience(history: Sequence[Mapping[str, Any]], patience: int) -> bool:
    return bool(history) and patience > 0 and len(history) - best_of(history) >= patience


def _checkpoint(folder: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last checkpoint and its metadata; None without one. Raises StateError if it is of another training."""
    path = folder / checkpoints.LAST
    if not path.exists():
        return None
    tensors, found = checkpoints.read(path)
    other = sorted(name for name in identity if found.get(name) != identity[name])
    if other:
        raise StateError(f"{path} is of a training with another {', '.join(other)}: choose another folder or delete this one")
    return tensors, found
