"""Readers, networks and strategies of other installed packages, found by their entry points.

A package announces what it has in its `pyproject.toml`, and the decorator of that kind registers it when it is imported:

    [project.entry-points."dqmstream.readers"]
    our_format = "our_package.our_format"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from dqmstream.errors import InputError

READERS = "dqmstream.readers"
NETWORKS = "dqmstream.networks"
STRATEGIES = "dqmstream.strategies"


@cache
def load_plugins(group: str) -> None:
    """Import what installed packages announce in a group of entry points, by name, once in a process.

    Call it where the names that are registered already do not suffice, not on import. Raises InputError, which names the
    entry point and its package, where one cannot be imported.
    """
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:
            package = f" of the package {point.dist.name}" if point.dist else ""
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"the entry point {point.name} = {point.value} ({group}){package} cannot be loaded ({reason}): "
                "mend or uninstall that package"
            ) from error
