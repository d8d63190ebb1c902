"""Avalanche's training template on our own data path: batches from tensors in memory, and a fixed number of steps.

Methods hook into Avalanche's callbacks. Its data loaders, dataset wrappers, metrics and optimizer bookkeeping are not used:
they are slow, and keep every past run in memory. The optimizer is new for each run, so a checkpoint holds no optimizer state.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dqmstream.learners.gradient.cuda_graph import CapturedStep, on_stream_of_captures
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.strategy import Watch
from dqmstream.learners.task import RUNS, Task
from dqmstream.libraries import load_avalanche_paths

load_avalanche_paths()
with warnings.catch_warnings():
    # Avalanche imports its GEM plugin, whose solver package warns that no solver is installed; it is not used here.
    warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
    from avalanche.core import SupervisedPlugin
    from avalanche.training.templates import SupervisedTemplate


WATCH_STEPS = 10
"""Training steps between two calls of a `Watch`."""

STEP_CALLBACKS = tuple(
    f"{when}_{what}" for what in ("training_iteration", "forward", "backward", "update") for when in ("before", "after")
)
"""Avalanche's callbacks within a training step."""

UNDECAYED = ("position_ND", "pos_embed", "cls_token", "dist_token")
"""Parameters of several axes without weight decay: positions and tokens, ours and timm's."""


class Lesson:
    """What one training sees: residuals of some groups, drawn in batches in which every group has the same share.

    It takes the place of Avalanche's experience and data loader. Batches are drawn with replacement by a generator on the CPU,
    so that without noise they are the same on every device. Noise is drawn on the device, which is faster.
    """

    def __init__(
        self,
        residuals: Mapping[int, np.ndarray],
        recipe: Recipe,
        steps: int,
        device: torch.device,
        generator: torch.Generator,
        *,
        task: Task = RUNS,
        experience: int | None = None,
    ) -> None:
        """residuals: float32 (n, live), n > 0, by group. experience: the one that is learnt; by default the last run given.

        groups: their numbers. incoming: those of the experience that is learnt. known: outputs that were trained before.
        """
        sizes = [len(rows) for rows in residuals.values()]
        learnt = max(residuals) if experience is None else experience
        self.residuals_ML = torch.from_numpy(np.concatenate(list(residuals.values()))).to(device)
        self.group_M = torch.from_numpy(np.repeat(list(residuals), sizes)).to(device)
        self.label_M = torch.from_numpy(np.repeat([task.label(group) for group in residuals], sizes)).to(device)
        self.groups = list(residuals)
        self.incoming = [group for group in task.groups(learnt) if group in residuals]
        self.known = task.outputs(learnt) if learnt > task.first else 0
        self.steps = steps
        self.generator = generator
        self._noise_generator = generator
        if device.type == "cuda" and recipe.noise:
            seed = int(torch.randint(2**62, (), generator=generator))
            self._noise_generator = torch.Generator(device).manual_seed(seed)
        self._size_G = torch.tensor(sizes)
        self._start_G = torch.cumsum(self._size_G, 0) - self._size_G
        self._recipe = recipe

    def __len__(self) -> int:
        return len(self.label_M)

    @property
    def old(self) -> list[int]:
        """The groups of earlier experiences."""
        return [group for group in self.groups if group not in self.incoming]

    def of(self, groups: Sequence[int]) -> Lesson:
        """A lesson with the same rows, steps and generator, whose batches are of these groups alone; it must have them all."""
        part = copy.copy(self)
        places = [self.groups.index(i) for i in groups]
        part.groups = list(groups)
        part._size_G, part._start_G = self._size_G[places], self._start_G[places]
        return part

    def batches(self) -> Iterator[list[Tensor]]:
        """Residuals (B, L) and labels (B,), `steps` times."""
        for step in range(self.steps):
            index_B = self.drawn(step, self._recipe.batch)
            yield [self.with_noise(self.residuals_ML[index_B]), self.label_M[index_B]]

    def drawn(self, number: int, batch: int) -> Tensor:
        """Rows of the `number`-th of many batches of this size, counted from 0: (B,), on the device."""
        # Each batch starts at the group where the last one ended, so that shares are equal over many batches.
        which_B = (number * batch + torch.arange(batch)) % len(self._size_G)
        place_B = torch.rand(batch, generator=self.generator, dtype=torch.float64) * self._size_G[which_B]
        # The host must not wait for the copy: it prepares the next step while the GPU computes this one.
        return (self._start_G[which_B] + place_B.long()).to(self.label_M.device, non_blocking=True)

    def with_noise(self, residuals_BL: Tensor) -> Tensor:
        """Residuals (B, L) with new noise of the recipe's standard deviation."""
        if not self._recipe.noise:
            return residuals_BL
        noise_BL = torch.randn(residuals_BL.shape, generator=self._noise_generator, device=residuals_BL.device)
        return residuals_BL + self._recipe.noise * noise_BL


class _NoEvaluation(SupervisedPlugin):
    """No evaluation, in place of Avalanche's, which calls its metrics and loggers at every callback."""

    def get_last_metrics(self) -> dict[str, float]:
        return {}


class RunTemplate(SupervisedTemplate):
    """Trains a model on one lesson: cross-entropy and the routers' losses, AdamW, a cosine schedule with a warm-up.

    On a GPU a step is recorded and replayed (`learners.gradient.cuda_graph`) if the plugin takes no part in steps and the step
    does not make the host wait.

    Attributes
    ----------
    losses
        Loss of each step of the last `teach`, on the device.
    captured
        Whether steps of the last `teach` were recorded.
    """

    captured = False
    experience: Lesson
    model: Network

    def __init__(
        self,
        *,
        model: Network,
        recipe: Recipe,
        device: torch.device,
        plugin: SupervisedPlugin,
        watch: Watch | None = None,
        capture: bool = True,
    ) -> None:
        """plugin: the method. watch: called every `WATCH_STEPS` steps but the last. capture: whether steps may be recorded."""
        super().__init__(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters()),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=recipe.batch,
            train_epochs=1,
            device=device,
            plugins=[plugin],
            evaluator=_NoEvaluation(),
        )
        self.recipe = recipe
        self.losses: list[Tensor] = []
        self._watch = watch
        self._capture = capture and device.type == "cuda" and not takes_part_in_steps(plugin)

    def teach(self, lesson: Lesson) -> None:
        """Train on a lesson, for all of its steps."""
        self.losses = []
        self.train(lesson, eval_streams=[])
        # An optimizer with a schedule is part of a reference cycle, so its state would live until the next garbage collection.
        self.optimizer.state.clear()
        self.optimizer.param_groups.clear()
        # Gradients of a recorded step keep all of its memory alive.
        self.model.zero_grad()

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        self.adapted_dataset = None

    def make_train_dataloader(self, **kwargs: Any) -> None:
        self.dataloader = self.experience.batches()

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        return self.model if model is None else model

    def make_optimizer(self, **kwargs: Any) -> None:
        recipe, total = self.recipe, self.experience.steps
        lr = torch.tensor(recipe.lr, device=self.device) if self._capture else recipe.lr
        groups = decay_groups(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=lr, fused=self.device.type == "cuda" or None)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate_at(step, total, recipe))
        self.optimized_param_id: dict[str, Tensor] = {}  # Avalanche makes another optimizer if this is None

    def training_epoch(self, **kwargs: Any) -> None:
        """One pass over the lesson's batches, as Avalanche's own, with steps that may be recorded."""
        captured = CapturedStep(self._step, self._before_capture) if self._capture else None
        with on_stream_of_captures(self.device) if captured else nullcontext():
            for batch in self.dataloader:
                if self._stop_training:
                    break
                self.losses.append((captured or self._step)(batch))
                self._schedule.step()
                self._call_watch()
        self.captured = captured is not None and captured.captured

    def _step(self, batch: Sequence[Tensor]) -> Tensor:
        """Train on one batch, which may go through the network in parts whose gradients are added. Returns the detached loss.

        Callbacks around forward and backward are called for each part; those around the iteration and the update, and
        `after_backward`, once a batch. What a callback adds to the loss of a part is weighted as the part's own loss is.
        """
        self.mbatch = batch
        self._unpack_minibatch()
        self._before_training_iteration()
        self.optimizer.zero_grad()
        whole = self.mbatch
        size = len(whole[0])
        losses = []
        for start in range(0, size, self.recipe.micro_batch or size):
            self.mbatch = [rows[start : start + (self.recipe.micro_batch or size)] for rows in whole]
            self.loss = self._make_empty_loss()
            self._before_forward()
            self.mb_output = self.forward()
            self._after_forward()
            self.loss += self.criterion()
            self._before_backward()
            self.loss = self.loss * (len(self.mbatch[0]) / size)
            self.backward()
            losses.append(self.loss.detach())
        self.mbatch, self.loss = whole, torch.stack(losses).sum()
        self._after_backward()
        self._before_update()
        self.optimizer_step()
        self.model.after_step()
        self._after_update()
        self._after_training_iteration()
        return self.loss

    def _before_capture(self) -> None:
        for group in self.optimizer.param_groups:
            group["capturable"] = True

    def forward(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16 and self.device.type == "cuda"):
            logits_BC: Tensor = self.model(self.mb_x)
        return logits_BC.float()

    def criterion(self) -> Tensor:
        return super().criterion() + self.model.auxiliary_loss()

    def _call_watch(self) -> None:
        """Call the watch if it is due, with the model in evaluation mode and a random state of its own."""
        if self._watch is None or len(self.losses) % WATCH_STEPS or len(self.losses) == self.experience.steps:
            return
        self.model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            self._watch()
        self.model.train()


def takes_part_in_steps(plugin: SupervisedPlugin) -> bool:
    """Whether a plugin has a callback within a training step."""
    return any(getattr(type(plugin), name) is not getattr(SupervisedPlugin, name) for name in STEP_CALLBACKS)


def rate_at(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of a step over the recipe's: linear in the warm-up, then constant or a cosine."""
    rising = max(int(recipe.warmup * total), 1)
    if step < rising or not recipe.cosine:
        return min(1.0, (step + 1) / rising)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer: matrices decay; biases, norms and `UNDECAYED` do not."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_free = parameter.ndim == 1 or "bias" in name or name.rpartition(".")[2] in UNDECAYED
        (free if is_free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
