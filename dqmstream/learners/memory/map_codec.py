"""Lumisections packed into named arrays without loss: channels that are always 0 are left out, whole counts take two bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.maps import Maps, joined

_NAMES = {"sizes", "shape", "channels", "counts", "n_events", "pileup", "lumisection"}


def packed(several: Sequence[Maps]) -> dict[str, np.ndarray]:
    """Arrays that hold the lumisections of several runs (float32 counts); {} where there is no run."""
    if not several:
        return {}
    maps = joined(several)
    flat = maps.counts.reshape(len(maps), -1)
    channels = np.flatnonzero((flat.view(np.uint32) != 0).any(axis=0))
    counts = flat[:, channels]
    return {
        "sizes": np.array([len(one) for one in several], dtype=np.int64),
        "shape": np.array(maps.counts.shape[1:], dtype=np.int64),
        "channels": channels.astype(np.int64),
        "counts": _narrow(counts),
        "n_events": maps.n_events,
        "pileup": maps.pileup,
        "lumisection": maps.lumisection,
    }


def unpacked(state: Mapping[str, np.ndarray]) -> list[Maps]:
    """The lumisections that `packed` was given. Raises StateError if the arrays are damaged."""
    if not state:
        return []
    if not state.keys() >= _NAMES:
        raise StateError(f"kept lumisections lack {', '.join(sorted(_NAMES - state.keys()))}: the state is damaged")
    flat = np.zeros((len(state["counts"]), int(np.prod(state["shape"]))), dtype=np.float32)
    flat[:, state["channels"]] = state["counts"]
    maps = Maps(
        flat.reshape(len(flat), *state["shape"]),
        np.array(state["n_events"]),
        np.array(state["pileup"]),
        np.array(state["lumisection"]),
    )
    ends = np.cumsum(state["sizes"])
    if len(ends) == 0 or ends[-1] != len(maps):
        raise StateError("the number of kept lumisections differs from the stated sizes: the state is damaged")
    return [maps.take(np.arange(end - size, end)) for end, size in zip(ends, state["sizes"], strict=True)]


def _narrow(counts: np.ndarray) -> np.ndarray:
    """Counts as uint16, where this loses no bit."""
    inside = bool(np.isfinite(counts).all()) and (counts.size == 0 or 0 <= counts.min() <= counts.max() <= 65535)
    narrow = counts.astype(np.uint16) if inside else counts
    same = inside and np.array_equal(narrow.astype(np.float32).view(np.uint32), counts.view(np.uint32))
    return narrow if same else counts
