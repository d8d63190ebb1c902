"""Columns that are sums over the run, as `delivered_lumi` of OMS: recognised, and turned into values of each lumisection."""

from __future__ import annotations

import numpy as np

ENOUGH_RISES = 5
"""Rises without a fall that show a sum. At constant luminosity, values of single lumisections do so once in 720 times."""


def own_of_sum(
    name: str, run: np.ndarray, lumisection: np.ndarray, values: np.ndarray, pileup: np.ndarray
) -> tuple[np.ndarray, str]:
    """Values of each single lumisection, nan where unknown, and a note for the user, empty if there is nothing to say.

    run, lumisection, values, pileup: (n,), sorted by run and lumisection, each once. A sum never falls within a run.
    Luminosity also rises at the start of a fill, but then pileup rises with it. The first lumisection of a run, and one after a
    gap, have no difference and become nan.
    """
    known = ~np.isnan(values)
    follows = np.append(False, np.diff(run[known]) == 0)
    steps = np.diff(values[known], prepend=np.nan)
    least = 1e-6 * float(values[known].max(initial=0.0))
    rises, falls = int((follows & (steps > least)).sum()), int((follows & (steps < -least)).sum())
    if rises < ENOUGH_RISES or falls > 0.02 * rises or _goes_with(pileup, values):
        if known.any() and not falls and rises < ENOUGH_RISES and values[known].max() > 0:
            return values, (
                f"{name} was taken as the lumisection's own. Too few lines show whether it is a sum over the run, "
                f"as it is in answers of OMS: there use {name}_per_lumisection"
            )
        return values, ""
    own = np.full(len(values), np.nan)
    neighbours = (np.diff(run) == 0) & (np.diff(lumisection) == 1)
    own[1:][neighbours] = np.diff(values)[neighbours]
    own[own < -least] = np.nan
    own = np.maximum(own, 0.0)  # keeps nan
    without = int((known & np.isnan(own)).sum())
    return own, (
        f"{name} is a sum over the run: differences of neighbouring lumisections were taken, "
        f"and {without} of {int(known.sum())} lumisections have none"
    )


def _goes_with(pileup: np.ndarray, values: np.ndarray) -> bool:
    """Whether the values are proportional to a pileup that changes."""
    both = (pileup > 0) & (values > 0)
    if both.sum() < ENOUGH_RISES or pileup[both].max() < 1.5 * pileup[both].min():
        return False
    ratio = values[both] / pileup[both]
    return bool(ratio.std() < 0.1 * ratio.mean())
