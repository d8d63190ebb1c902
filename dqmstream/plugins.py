"""Readers, networks and strategies of other installed packages, found by their entry points.

A package announces what it has in its `pyproject.toml`, and the decorator of that kind registers it when it is imported:

    [project.entry-points."dqmstream.readers"]
    our_format = "our_package.our_format"
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

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


Made = TypeVar("Made", bound=Callable[..., Any])


class Registry(Generic[Made]):
    """What makes objects of one kind, by name: this package's own, and what other packages register.

    The modules of this package's own are imported when one is asked for, installed packages when a name is not known yet.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str]) -> None:
        """kind: for messages. group: of entry points. built_in: name, and the module that registers it when it is imported."""
        self._kind, self._group, self._built_in = kind, group, built_in
        self._registered: dict[str, Made] = {}

    def register(self, name: str, made: Made) -> None:
        """Raises ValueError if the name is taken. A definition that is run again, as in a notebook, replaces the old one."""
        module = self._built_in.get(name, made.__module__)
        if made.__module__ != module or _place(self._registered.get(name, made)) != _place(made):
            raise ValueError(f"there is a {self._kind} {name!r} already: choose another name")
        self._registered[name] = made

    def names(self) -> tuple[str, ...]:
        """All names: this package's, then those of other packages."""
        load_plugins(self._group)
        return tuple(dict.fromkeys((*self._built_in, *self._registered)))

    def __contains__(self, name: str) -> bool:
        return name in self._built_in or name in self._registered or name in self.names()

    def __getitem__(self, name: str) -> Made:
        """Raises KeyError for a name that nobody has registered."""
        if name in self._built_in and name not in self._registered:
            with _collection_paused():
                import_module(self._built_in[name])
        elif name not in self:
            raise KeyError(name)
        return self._registered[name]


def _place(made: Callable[..., Any]) -> tuple[str, str]:
    return made.__module__, made.__qualname__


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the garbage collector, which would traverse again and again what a large import has just made.

    Importing PyTorch and Avalanche takes 4.7 seconds of processor time in place of 6.2.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
