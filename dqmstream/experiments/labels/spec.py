"""What the benchmark of labels computes: every strategy on the streams of every seed, with every split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dqmstream.errors import InputError
from dqmstream.experiments.labels.cell import SPLITS, LabelCell
from dqmstream.experiments.simulator.streams import named_stream, seed_use
from dqmstream.learners.labels.closed_forms import CLOSED_FORMS
from dqmstream.learners.labels.registry import label_recipe_changes, resolve_label
from dqmstream.learners.registry import MEMORY_BYTES

STRATEGIES = (*CLOSED_FORMS, "naive", "ewc", "lwf", "agem", "er_ace", "der", "replay", "joint")
LEAST_LUMISECTIONS = 180


@dataclass(frozen=True)
class LabelSpec:
    """Strategies, seeds, splits (`labels.cell.SPLITS`), and the settings of `LabelCell`. recipe: changes for all networks."""

    stream: str = "tracks"
    strategies: tuple[str, ...] = STRATEGIES
    seeds: tuple[int, ...] = (100, 101, 102)
    splits: tuple[str, ...] = ("blocks",)
    runs: int = 24
    lumisections: int = 400
    memory_bytes: int = MEMORY_BYTES
    evaluation_samples: int = 6000
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> LabelSpec:
        """The same. Raises InputError for what does not exist or makes no sense, before anything is computed."""
        if not named_stream(self.stream).within_runs:
            raise InputError(f"{self.stream} has no lumisections that are good or faulty: the task of labels takes tracks")
        for name in self.strategies:
            resolve_label(name)
            label_recipe_changes(name, self.recipe)
        seed_use(self.seeds)
        for split in self.splits:
            if split not in SPLITS:
                raise InputError(f"there is no split {split!r} for labels; choose one of {', '.join(SPLITS)}")
        for what, least in (("runs", 3), ("lumisections", LEAST_LUMISECTIONS), ("evaluation_samples", 1), ("memory_bytes", 0)):
            if getattr(self, what) < least:
                raise InputError(f"{what}: the benchmark of labels takes {least} or more, not {getattr(self, what)}")
        return self

    def cells(self) -> list[LabelCell]:
        """All cells; those of a stream together, which share what is followed."""
        return [self.cell(split, seed, name) for split in self.splits for seed in self.seeds for name in self.strategies]

    def cell(self, split: str, seed: int, strategy: str) -> LabelCell:
        """The cell of a strategy on a stream."""
        own = resolve_label(strategy)
        recipe = json.dumps(label_recipe_changes(own, self.recipe), sort_keys=True)
        return LabelCell(
            self.stream, seed, own, self.runs, self.lumisections, self.memory_bytes, self.evaluation_samples, split, recipe
        )
