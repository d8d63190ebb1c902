"""Stamps of saved states: a state is restored only by a strategy of the same name, seed, geometry and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from dqmstream.errors import StateError

STAMP = "stamp"


def stamp(belongs_to: Mapping[str, Any]) -> np.ndarray:
    """The settings that a state depends on, as UTF-8 JSON: uint8, (bytes,)."""
    return np.frombuffer(json.dumps(dict(belongs_to), sort_keys=True).encode(), dtype=np.uint8).copy()


def check_stamp(
    state: Mapping[str, np.ndarray],
    belongs_to: Mapping[str, Any],
    removed: Mapping[str, Any] = MappingProxyType({}),
    added: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Raise StateError if the stamp of a state is missing or differs from these settings; it names every difference.

    removed, added: entries that only states of older versions have, and those that they lack, by dotted name, each with the
    value that is accepted.
    """
    if STAMP not in state:
        raise StateError("the state does not say which strategy it belongs to; it is damaged or of another version")
    try:
        found = json.loads(np.asarray(state[STAMP], dtype=np.uint8).tobytes())
    except ValueError as error:
        raise StateError(f"the state's stamp cannot be read ({error}); it is damaged or of another version") from error
    differing = _differences("", json.loads(stamp(belongs_to).tobytes()), found, removed, added)
    if differing:
        raise StateError(f"the state is of another model: {'; '.join(differing)}. Use its settings, or start a new state")


def within(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Entries named `prefix.x`, renamed to x."""
    return {name[len(prefix) + 1 :]: array for name, array in state.items() if name.startswith(f"{prefix}.")}


def prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Entries x, renamed to `prefix.x`."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _differences(where: str, wanted: Any, found: Any, removed: Mapping[str, Any], added: Mapping[str, Any]) -> list[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        names = sorted(wanted.keys() | found.keys())
        dotted = {name: f"{where}.{name}" if where else name for name in names}
        return [d for n in names for d in _differences(dotted[n], wanted.get(n), found.get(n), removed, added)]
    if wanted is None and where in removed and found == removed[where]:
        return []
    if found is None and where in added and wanted == added[where]:
        return []
    return [] if wanted == found else [f"{where} is {found!r} there and {wanted!r} here"]
