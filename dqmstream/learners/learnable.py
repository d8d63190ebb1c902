"""Whether a run has enough lumisections with counts to be learnt; if not, why it is left out."""

from __future__ import annotations

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.response.quadratic import Quadratic
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part

FEWEST_TRAIN_LUMISECTIONS = 8
"""Train lumisections with counts that a run needs. The errors of its gains are 3.5 times those of a run of 100."""

FEWEST_OF_A_REFERENCE = 20
"""The same for the first run, to which the response of every channel is fitted and with which all later runs are compared."""

FEWEST_WITHOUT_THE_LAW = 50
"""The same for a first run that is fitted by a quadratic. Fewer may follow the law without showing it, and their quadratic is
wrong at the pileup of later runs (docs/decisions/2026-11-29-splits.md)."""


def has_counts(maps: Maps) -> np.ndarray:
    """Which lumisections have a count above zero and only finite numbers: bool, (n,)."""
    axes = tuple(range(1, maps.counts.ndim))
    return np.asarray(np.isfinite(maps.counts).all(axis=axes) & (maps.counts > 0).any(axis=axes))


def why_left_out(run: RunData, *, as_reference: bool) -> str:
    """Why a run cannot be learnt; "" where it can.

    A run needs 8 lumisections with counts for training, and one each for validation and test. as_reference: it must also be fit
    to be the first run, to which the reference is fitted: 20 for training, or 50 where they do not follow the law of the
    response, channels with counts, most readout boxes lit.
    """
    counting = {part: int(has_counts(run.part(part)).sum()) for part in (Part.TRAIN, Part.VALIDATION, Part.TEST)}
    empty = [part.name.lower() for part, lumisections in counting.items() if not lumisections]
    if empty:
        return f"empty: no lumisection for {', '.join(empty)} counts anything"
    if counting[Part.TRAIN] < FEWEST_TRAIN_LUMISECTIONS:
        return (
            f"too short or almost empty: {counting[Part.TRAIN]} lumisections for train count anything, "
            f"{FEWEST_TRAIN_LUMISECTIONS} are needed"
        )
    if as_reference:
        if counting[Part.TRAIN] < FEWEST_OF_A_REFERENCE:
            return (
                f"it cannot be the first run: {counting[Part.TRAIN]} lumisections for train count anything, and the reference "
                f"needs {FEWEST_OF_A_REFERENCE}"
            )
        try:
            reference = Reference.fit(run.part(Part.TRAIN))
        except InputError as error:
            return f"it cannot be the first run: {error}"
        if reference.kind == Quadratic.kind and counting[Part.TRAIN] < FEWEST_WITHOUT_THE_LAW:
            return (
                f"it cannot be the first run: {counting[Part.TRAIN]} lumisections for train do not show whether counts follow "
                f"the law of the response, which needs up to {FEWEST_WITHOUT_THE_LAW}"
            )
    return ""
