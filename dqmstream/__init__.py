"""dqmstream: file each lumisection once and only once, learn to tell the runs apart, measure what is forgotten.

>>> import dqmstream as dq
>>> runs = dq.simulate_runs("moderate", seed=1, runs=2, lumisections=200)
>>> dq.evaluate(runs, "gain_map", beside=[]).runs
[355400, 355411]

The names below are the public interface (docs/api.md); all else may change from version to version. They are imported when
they are first used: `import dqmstream` itself imports no other library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "Archive": "storage.archive:Archive",
    "Comparison": "experiments.compare.comparison:Comparison",
    "Evaluation": "experiments.evaluate:Evaluation",
    "Geometry": "lumisection:Geometry",
    "LearnLog": "learners.strategy:LearnLog",
    "Learner": "learners.stream.learner:Learner",
    "LearnerSettings": "learners.stream.learner_settings:LearnerSettings",
    "LoadedLearner": "learners.stream.loaded:LoadedLearner",
    "Maps": "learners.maps:Maps",
    "Part": "learners.splits:Part",
    "Reader": "storage.imports.readers.registry:Reader",
    "RowPerRun": "learners.closed_form.row_per_run:RowPerRun",
    "RunData": "learners.maps:RunData",
    "RunFile": "storage.imports.run_file:RunFile",
    "Strategy": "learners.strategy:Strategy",
    "check_strategy": "learners.checks:check_strategy",
    "compare": "experiments.compare.compare:compare_runs",
    "evaluate": "experiments.evaluate:evaluate",
    "reader": "storage.imports.readers.registry:reader",
    "register_network": "learners.networks.registry:register_network",
    "register_strategy": "learners.registry:register_strategy",
    "simulate_runs": "experiments.simulator.learner_input:simulate_runs",
}
"""Where each public name stands: module below this package, and its name there."""

__all__ = [
    "Archive",
    "Comparison",
    "Evaluation",
    "Geometry",
    "LearnLog",
    "Learner",
    "LearnerSettings",
    "LoadedLearner",
    "Maps",
    "Part",
    "Reader",
    "RowPerRun",
    "RunData",
    "RunFile",
    "Strategy",
    "__version__",
    "check_strategy",
    "compare",
    "evaluate",
    "load_learner",
    "open_archive",
    "reader",
    "register_network",
    "register_strategy",
    "simulate_runs",
]

if TYPE_CHECKING:
    from pathlib import Path

    from dqmstream.experiments.compare.compare import compare_runs as compare
    from dqmstream.experiments.compare.comparison import Comparison
    from dqmstream.experiments.evaluate import Evaluation, evaluate
    from dqmstream.experiments.simulator.learner_input import simulate_runs
    from dqmstream.learners.checks import check_strategy
    from dqmstream.learners.closed_form.row_per_run import RowPerRun
    from dqmstream.learners.maps import Maps, RunData
    from dqmstream.learners.networks.registry import register_network
    from dqmstream.learners.registry import register_strategy
    from dqmstream.learners.splits import Part
    from dqmstream.learners.strategy import LearnLog, Strategy
    from dqmstream.learners.stream.learner import Learner
    from dqmstream.learners.stream.learner_settings import LearnerSettings
    from dqmstream.learners.stream.loaded import LoadedLearner
    from dqmstream.lumisection import Geometry
    from dqmstream.storage.archive import Archive
    from dqmstream.storage.imports.readers.registry import Reader, reader
    from dqmstream.storage.imports.run_file import RunFile


def open_archive(path: str | Path, snapshot: str | None = None) -> Archive:
    """Open an archive for reading.

    Parameters
    ----------
    path : str or Path
        Folder of the archive.
    snapshot : str, optional
        Snapshot or tag to read; by default the newest snapshot. What is filed later is not seen until `refresh` is called.

    Returns
    -------
    Archive
        A reader, which may be used in a `with` statement.

    Raises
    ------
    ArchiveError
        If there is no archive, if it cannot be read, or if a newer dqmstream made it.
    """
    from dqmstream.storage.archive import Archive

    return Archive.open(path, snapshot)


def load_learner(folder: str | Path, strategy: Strategy | None = None) -> LoadedLearner:
    """Load a learner as it was at its newest checkpoint, to score maps. Nothing is written.

    Parameters
    ----------
    folder : str or Path
        State folder of one learner, such as `A.state/live`.
    strategy : Strategy, optional
        For a strategy that is not registered: a new object like the one that wrote the state.

    Returns
    -------
    LoadedLearner

    Raises
    ------
    StateError
        If there is no checkpoint, if it is damaged, or if its strategy is not registered and none is given.
    """
    from dqmstream.learners.stream.loaded import LoadedLearner

    return LoadedLearner(folder, strategy)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _PLACES[name].partition(":")
    found = getattr(import_module(f"{__name__}.{module}"), there)
    globals()[name] = found  # the next use does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
