"""Lumisections of a run that were not used to learn it, in stretches as long as the window of a score."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part

MOST_STRETCHES = 4
"""Stretches of a run that are scored, spread evenly, so that a long run costs no more than one of 800 lumisections."""

LONGEST = 50
"""Lumisections of a stretch: a validation block with the gaps beside it. Of longer ones (interpolated files), the last."""

TRUNCATED = 0.6
"""Share of the run's usual number of events below which a lumisection is truncated."""


def held_out(run: RunData, reference: Reference) -> list[Maps]:
    """Consecutive lumisections around each validation block, up to the train and test parts; in order.

    The gaps belong to them: a validation block is shorter than the window of a score. Test lumisections are never among them.
    Blank and truncated lumisections are left out.
    """
    outside = np.flatnonzero((run.parts == Part.VALIDATION) | (run.parts == Part.GAP))
    stretches = np.split(outside, np.flatnonzero(np.diff(outside) > 1) + 1)
    stretches = [rows[-LONGEST:] for rows in stretches if (run.parts[rows] == Part.VALIDATION).any()]
    if len(stretches) > MOST_STRETCHES:
        stretches = [stretches[i] for i in np.linspace(0, len(stretches) - 1, MOST_STRETCHES).round().astype(int)]
    if not stretches:
        return []
    maps = run.maps.take(np.concatenate(stretches))
    counts = maps.counts[:, reference.live].astype(np.float64)
    events, blank = reference.conditions_of_live(counts)[:, 1], reference.blank(counts)
    usual = np.median(events[~blank]) if not blank.all() else 0.0
    whole = ~blank & (events >= TRUNCATED * usual)
    ends = np.cumsum([len(rows) for rows in stretches])
    found = [maps.take(begin + np.flatnonzero(whole[begin:end])) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [one for one in found if len(one)]
