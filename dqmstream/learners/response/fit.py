"""The fit of a response to the first run: the saturation law where it fits as well as a quadratic, else the quadratic.

Two things fix the rates of the law:

* a pileup that moves within the run: the counts follow it (`Saturating.fit`);
* the scatter of the counts (`response.scatter`). It needs no movement, so a run of level pileup is enough. Rates of channels
  that fire in nearly every event stay uncertain; their errors widen the standard deviations at other pileups.

Later runs fix what the first could not (`response.later_runs`).
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.base import ROUNDING, MeasureConditions, Response
from dqmstream.learners.response.later_runs import with_rates_of
from dqmstream.learners.response.quadratic import Quadratic
from dqmstream.learners.response.saturating import Saturating
from dqmstream.learners.response.scatter import FEWEST_LUMISECTIONS, law_from_scatter

_AS_GOOD = 1.1
"""The law is chosen where its residual variance is at most this many times that of the quadratic."""


def fit_response(
    counts: np.ndarray, conditions: MeasureConditions, profile: np.ndarray, ring: np.ndarray, box: np.ndarray
) -> Response:
    """Fit the response to the counts (n, live) of a run; all lumisections have b > 0.

    profile: mean counts, (live,). ring: number of each channel's ring, box: name of its readout box, (live,).
    """
    at = conditions(counts)
    quadratic, left_over = Quadratic.fit(counts, at, profile, ring)
    if len(counts) < FEWEST_LUMISECTIONS:
        return quadratic
    moves = bool(np.isfinite(quadratic.ratio[1]))
    if moves:
        law, left_by_law = Saturating.fit(counts, at, conditions, quadratic, ring)
        if _is_good(law, left_by_law, left_over):
            return law
    law_of_scatter = law_from_scatter(counts, at, conditions, ring)
    if law_of_scatter is None:
        return quadratic
    if moves:
        law_of_scatter = with_rates_of(law_of_scatter, counts, at, conditions, box)
    left_by_law = law_of_scatter.fit_spread(counts, at)
    # Where rounding hides the scatter of the counts, the fitted spread says nothing about other pileups.
    counting = law_of_scatter.binomial_variance(at)
    law_of_scatter.spread = np.where(counting > (ROUNDING * law_of_scatter.size) ** 2, law_of_scatter.spread, 1.0)
    return law_of_scatter if _is_good(law_of_scatter, left_by_law, left_over) else quadratic


def _is_good(law: Saturating, left_by_law: np.ndarray, left_over: np.ndarray) -> bool:
    """Whether the law fits as well as the quadratic, and a/b resolves pileup. Arguments: their residual variances, (live,)."""
    as_good = np.median(left_by_law / np.maximum(left_over, np.finfo(np.float64).tiny)) <= _AS_GOOD
    return bool(law.pileup_resolved and as_good)
