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
    "Archive": "storage.archive",
    "Evaluation": "experiments.evaluate",
    "evaluate": "experiments.evaluate",
    "simulate_runs": "experiments.simulated_runs",
    "LearnLog": "learners.strategy",
    "Maps": "learners.maps",
    "Part": "learners.splits",
    "RunData": "learners.maps",
    "Strategy": "learners.strategy",
}
"""The module of each public name, below this package."""

__all__ = [
    "Archive",
    "Evaluation",
    "LearnLog",
    "Maps",
    "Part",
    "RunData",
    "Strategy",
    "__version__",
    "evaluate",
    "open_archive",
    "simulate_runs",
]

if TYPE_CHECKING:
    from pathlib import Path

    from dqmstream.experiments.evaluate import Evaluation, evaluate
    from dqmstream.experiments.simulated_runs import simulate_runs
    from dqmstream.learners.maps import Maps, RunData
    from dqmstream.learners.splits import Part
    from dqmstream.learners.strategy import LearnLog, Strategy
    from dqmstream.storage.archive import Archive


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


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found  # the next use does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
