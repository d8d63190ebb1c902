"""The settings of a learner, and its identity: what a state folder must have been made with to be used again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dqmstream.learners.evaluation.stability_gap import Watcher
from dqmstream.learners.labels.registry import label_recipe_changes, resolve_label
from dqmstream.learners.registry import recipe_changes, resolve
from dqmstream.learners.saved_state import STAMP
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.stream.reference_file import load_reference
from dqmstream.learners.stream.state_folder import Identity
from dqmstream.learners.task import LABELS
from dqmstream.storage.archive import Archive


@dataclass(frozen=True)
class LearnerSettings:
    """How a learner learns. Raises InputError for `watch_samples` that do not suffice for one run.

    Attributes
    ----------
    strategy : str
        Name of a registered strategy, or `default`.
    recipe : mapping
        Changes to the strategy's recipe, where it has one.
    reference : Path, optional
        Reference file (`learners.stream.reference_file`); without one the first run is the reference.
    seed : int
        Seed of the strategy and of the new-run score.
    memory_bytes : int
        Budget for what is kept of past runs, in all.
    idle_s : float
        A run without a stop message is complete when nothing of it has arrived for so long.
    evaluation_samples : int
        Test lumisections that each evaluation scores, over all runs.
    watch_samples : int
        Lumisections that are scored in the course of each training (`learners.evaluation.stability_gap`); 0 for none. What is
        learnt does not depend on it.
    window : int
        Lumisections in a window, after each of which a run that goes on is learnt (`learners.stream.windows`); 0 for none.
    label_delay : int
        Windows until the run of a window becomes known.
    threads : int
        CPU threads. More than one slows down a machine on which other processes run.
    device : str
        "auto", "cpu" or "cuda".
    task : str
        "runs" (runs are told apart) or "labels" (lumisections are good or faulty).
    """

    strategy: str = "default"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    reference: Path | None = None
    seed: int = 0
    memory_bytes: int = 1_000_000
    idle_s: float = 300.0
    evaluation_samples: int = 6000
    watch_samples: int = 0
    window: int = 0
    label_delay: int = 1
    threads: int = 1
    device: str = "auto"
    task: str = "runs"

    def __post_init__(self) -> None:
        if self.watch_samples:
            Watcher(self.watch_samples)


def identity(archive: Archive, settings: LearnerSettings, strategy: Strategy | None = None) -> Identity:
    """The identity of a learner with these settings.

    strategy: an object that is used in place of the one that the settings name. It is identified by its name and by the stamp
    in its state (`learners.saved_state.stamp`), if it has one.
    """
    return Identity(
        strategy=strategy_name(settings.task, settings.strategy) if strategy is None else strategy.name,
        seed=settings.seed,
        memory_bytes=settings.memory_bytes,
        evaluation_samples=settings.evaluation_samples,
        watch_samples=settings.watch_samples,
        window=settings.window,
        label_delay=settings.label_delay if settings.window else 1,
        archive_id=archive.archive_id,
        recipe=_recipe_changes(settings) if strategy is None else {},
        reference=load_reference(settings.reference, archive.geometry)[1].version if settings.reference else "",
        stamp="" if strategy is None else _stamp(strategy),
        task=settings.task,
    )


def strategy_name(task: str, name: str) -> str:
    """The own name of a strategy. Raises InputError for one that the task does not have."""
    return resolve_label(name) if task == LABELS.name else resolve(name)


def _recipe_changes(settings: LearnerSettings) -> dict[str, Any]:
    changes = label_recipe_changes if settings.task == LABELS.name else recipe_changes
    return changes(settings.strategy, settings.recipe)


def _stamp(strategy: Strategy) -> str:
    stamp = strategy.state().get(STAMP)
    return "" if stamp is None else json.dumps(json.loads(stamp.tobytes()), sort_keys=True)
