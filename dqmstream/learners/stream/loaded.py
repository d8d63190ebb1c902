"""The newest checkpoint of a learner, opened for reading: it scores lumisections and learns nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.by_last import Temper
from dqmstream.learners.evaluation.repeated_runs import merge_repeated, newest_of_run
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.registry import make_strategy, recipe_of
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import within
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.state_folder import read_json
from dqmstream.learners.task import RUNS
from dqmstream.learners.threads import held_threads
from dqmstream.lumisection import Geometry


class LoadedLearner:
    """A learner as it was at its newest checkpoint. Nothing is written, so it may be loaded while the learner runs.

    Parameters
    ----------
    folder : str or Path
        State folder of one learner, such as `A.state/live`.
    strategy : Strategy, optional
        An object like the one that wrote the state, which it takes back. Needed only for a strategy that is not registered.

    Attributes
    ----------
    runs : list of int
        The known runs, in the order of the columns of `scores`.
    experiences : list of int
        The run of each experience; a run that was learnt twice is there twice.
    strategy_name : str
    archive_id : str
        Of the archive that was learnt from.
    temper : Temper or None
        How sure sums over several lumisections are, by validation lumisections; None where that is not known.

    Raises
    ------
    StateError
        Where the folder holds no checkpoint or a damaged one, or where its strategy is not registered and none is given.
    """

    def __init__(self, folder: str | Path, strategy: Strategy | None = None) -> None:
        self.folder = Path(folder)
        meta, arrays = self._newest_checkpoint()
        self.archive_id, self.strategy_name, self.experiences = meta.archive_id, meta.strategy, meta.runs
        self._kept = np.unique(newest_of_run(meta.runs))
        self.runs = [meta.runs[i] for i in self._kept]
        self.threads = meta.threads
        self.temper = None
        if meta.temperature is not None and meta.correlation is not None:
            # Validation lumisections without an error do not show that probabilities should be surer than the strategy's.
            self.temper = Temper(max(1.0, meta.temperature), meta.correlation)
        stored = read_json(self.folder / "state.json")
        if stored.get("task", RUNS.name) != RUNS.name:
            raise StateError(f"{folder} is of a learner of {stored['task']}, which tells no runs apart: give --name of another")
        of_strategy, of_novelty = within(arrays, "strategy"), within(arrays, "novelty")
        if not Novelty.holds_all(of_novelty):
            raise StateError(f"the checkpoint in {folder} holds no new-run or fault score: let the learner learn one more run")
        reference = Reference.from_state(within(of_novelty, "reference"))
        geometry = Geometry(reference.live.shape[0])
        self.strategy = self._registered(meta, geometry, stored.get("recipe", {})) if strategy is None else strategy
        self.novelty = Novelty(geometry, meta.seed)
        if stored.get("reference"):
            self.strategy.set_reference(reference)
            self.novelty.set_reference(reference)
        self.strategy.restore(of_strategy)
        self.novelty.restore(of_novelty)

    def scores(self, maps: Maps) -> np.ndarray:
        """Log-probability of each known run: float64, shape (n, len(runs)). All are equal where a lumisection is blank."""
        with held_threads(self.threads):
            log_probability = log_softmax(self.strategy.scores(maps), axis=1)
        return merge_repeated(log_probability, self.experiences)[:, self._kept]

    def predict(self, maps: Maps) -> np.ndarray:
        """Number of the most probable known run of each lumisection: int64, shape (n,)."""
        return np.array(self.runs)[self.scores(maps).argmax(axis=1)]

    def __repr__(self) -> str:
        return f"<LoadedLearner of {self.strategy_name}: {len(self.runs)} runs, {self.folder}>"

    def _newest_checkpoint(self) -> tuple[checkpoint.CheckpointMeta, dict[str, np.ndarray]]:
        found = checkpoint.load_newest(self.folder / "checkpoints")
        if found is None:
            there = ", ".join(sorted(path.parent.name for path in self.folder.parent.glob("*/checkpoints"))) or "none"
            raise StateError(
                f"{self.folder} holds no checkpoint; run `dqmstream learn`, or give --state and --name; learners there: {there}"
            )
        return found

    def _registered(self, meta: checkpoint.CheckpointMeta, geometry: Geometry, recipe: dict[str, object]) -> Strategy:
        try:
            return make_strategy(
                meta.strategy,
                geometry=geometry,
                seed=meta.seed,
                recipe=recipe_of(meta.strategy, recipe),
                memory_bytes=meta.memory_bytes,
                device="cpu",
            )
        except InputError as error:
            raise StateError(f"{self.folder} cannot be loaded: {error}; or give an object of its strategy") from error
