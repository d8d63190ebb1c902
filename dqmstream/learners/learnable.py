"""Whether a run can be learnt: what holds too few lumisections that count anything is left out, with the reason."""

from __future__ import annotations

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part

FEWEST = 20
"""Lumisections for training that must count something."""


def lit(maps: Maps) -> np.ndarray:
    """Which lumisections count anything, and hold finite numbers alone: bool, shape (n,)."""
    axes = tuple(range(1, maps.counts.ndim))
    return np.asarray(np.isfinite(maps.counts).all(axis=axes) & (maps.counts > 0).any(axis=axes))


def why_left_out(run: RunData, *, as_reference: bool) -> str:
    """Why a run cannot be learnt; "" where it can.

    It needs `FEWEST` lumisections for training and one for validation and test each that count anything. as_reference: it is
    to give the reference as well, by which all later runs are seen.
    """
    counting = {part: int(lit(run.part(part)).sum()) for part in (Part.TRAIN, Part.VALIDATION, Part.TEST)}
    empty = [part.name.lower() for part, lumisections in counting.items() if not lumisections]
    if empty:
        return f"empty: no lumisection for {', '.join(empty)} counts anything"
    if counting[Part.TRAIN] < FEWEST:
        return f"almost empty: {counting[Part.TRAIN]} lumisections for train count anything, {FEWEST} are needed"
    if as_reference:
        try:
            Reference.fit(run.part(Part.TRAIN))
        except InputError as error:
            return f"it cannot be the first run: {error}"
    return ""
