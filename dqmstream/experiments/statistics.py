"""Intervals and significance tests for figures of a benchmark.

A figure is an average over runs, over streams (drawn by a seed) and over orders (the same runs learnt in another order). The
lumisections of a run are not independent, and neither are the runs of a stream, since one learner has learnt them all: whole
runs and whole streams are resampled or exchanged. The orders of a stream are first averaged run by run, since they do not tell
what another stream would give. Coverage was measured on simulations: docs/decisions/2026-11-29-intervals.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm, t

from dqmstream.errors import InputError

CONFIDENCE = 0.95
DRAWS = 2000
"""Number of bootstrap resamples."""

EXACT_CLUSTERS = 14
"""Up to this number of clusters all sign flips are used (16384), beyond it FLIPS random ones."""

FLIPS = 9999
STREAMS_TO_FLIP = 6
"""With fewer streams a two-sided sign-flip test cannot give p < .05: for 5 streams the smallest p-value is 2 / 2^5."""

MAX_LAG = 30
"""Length of a test block (`learners.splits`). Two blocks are 170 lumisections apart and independent."""

FiguresByRun = Mapping[tuple[int, int], Mapping[int, float]]
"""(stream seed, order) -> run -> value, for instance the last row of R. Orders of a stream have the same runs, or some of them;
the same run number in two streams means two runs."""


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class ClusteredInterval(Interval):
    """An interval from resampled clusters.

    resampled: "streams and runs", or "runs" if there is one stream; then the interval is valid for other runs of this stream
    only. orders: largest number of orders of any stream. runs: number of runs in all streams.
    """

    streams: int
    orders: int
    runs: int
    resampled: str


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference with its interval and p-value.

    p: two-sided, from flipping the signs of `clusters` streams or runs; `flipped` is "streams" or "runs". exact: whether all
    sign flips were used.
    """

    interval: ClusteredInterval
    p: float
    flipped: str
    clusters: int
    exact: bool


def clustered_mean(cells: FiguresByRun, seed: int = 0) -> ClusteredInterval:
    """Mean over streams of the mean over runs, with a 95 % bootstrap interval in which streams, and runs in each, are drawn.

    Two-stage bootstrap (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8): as many streams as
    there are, with replacement; in each as many runs as it has, with replacement. The interval has the expanded percentiles of
    the resampled means (Hesterberg, The American Statistician 69 (2015) 371): Phi(-sqrt(n/(n-1)) t) in place of .025, with
    Student's 97.5 % quantile t for n - 1 degrees of freedom and n the number of streams, or of runs if there is one stream.

    With a single run the interval is the estimate; without any run all values are nan.
    """
    tables = _by_stream(cells)
    orders = max((sum(1 for stream, _ in cells if stream == one) for one in {stream for stream, _ in cells}), default=0)
    sizes = np.array([len(table) for table in tables])
    resampled = "streams and runs" if len(tables) > 1 else "runs"
    about = (len(tables), orders, int(sizes.sum()), resampled)
    if not tables:
        return ClusteredInterval(np.nan, np.nan, np.nan, *about)
    estimate = float(np.mean([table.mean() for table in tables]))
    means = _resampled_means(tables, sizes, np.random.default_rng(seed))
    units = len(tables) if len(tables) > 1 else int(sizes[0])
    low, high = np.quantile(means, _expanded_tails(units)) if units > 1 else (estimate, estimate)
    return ClusteredInterval(estimate, float(low), float(high), *about)


Figures = Callable[[np.ndarray], np.ndarray]
"""A function from the weights of the runs of a stream, (draws, runs), to k figures of the stream, (draws, k)."""


def clustered_figures(streams: Sequence[Figures], sizes: Sequence[int], seed: int = 0) -> list[ClusteredInterval]:
    """Mean over streams of figures that are not means over runs, with intervals as in `clustered_mean`.

    streams: the figures of each stream; sizes: its number of runs. A figure that is nan in a stream is left out of the mean,
    and resamples without any value are left out of the interval. All values are nan for a figure that no stream has.
    """
    rng = np.random.default_rng(seed)
    whole = np.stack([figures(np.ones((1, size)))[0] for figures, size in zip(streams, sizes, strict=True)])
    drawn = np.stack([
        figures(rng.multinomial(size, np.full(size, 1 / size), size=DRAWS).astype(np.float64))
        for figures, size in zip(streams, sizes, strict=True)
    ])  # fmt: skip
    place = np.arange(DRAWS)
    # A stream that is drawn twice enters with two different resamples.
    means = _nanmean(np.stack([
        drawn[rng.integers(len(streams), size=DRAWS), (place + slot) % DRAWS] for slot in range(len(streams))
    ]))  # fmt: skip
    about = (len(streams), 1, int(sum(sizes)), "streams and runs" if len(streams) > 1 else "runs")
    units = len(streams) if len(streams) > 1 else sizes[0]
    found = []
    for estimate, draws in zip(_nanmean(whole), means.T, strict=True):
        known = draws[np.isfinite(draws)]
        ends = np.quantile(known, _expanded_tails(units)) if units > 1 and len(known) else (estimate, estimate)
        found.append(ClusteredInterval(float(estimate), float(ends[0]), float(ends[1]), *about))
    return found


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without nan; nan if there is no other value."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.divide(np.where(known, values, 0.0).sum(axis=0), count, out=np.full(values.shape[1:], np.nan), where=count > 0)


def paired_difference(ours: FiguresByRun, theirs: FiguresByRun, seed: int = 0) -> PairedDifference:
    """Difference ours - theirs on the same runs, with the interval of `clustered_mean` and a sign-flip p-value.

    If both strategies were equally good, the difference of each cluster would have the other sign as often. The p-value is the
    share of sign assignments whose mean is at least as far from zero as the observed one (Fisher, "The Design of Experiments",
    1935, section 21): all assignments for up to 14 clusters, else 9999 random ones with (1 + as far) / (1 + 9999) (Phipson and
    Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39).

    Clusters are streams if there are 6 or more, else runs. Flipping runs assumes that the runs of a stream are independent
    given the two strategies. If a strategy gains or loses on a whole stream, they are not, and the p-value is too small: quote
    it with `flipped`, and take 6 streams for a firm conclusion.

    Raises InputError if the two do not have the same streams, orders and runs.
    """
    if ours.keys() != theirs.keys() or any(ours[cell].keys() != theirs[cell].keys() for cell in ours):
        raise InputError("a paired comparison needs the same streams, orders and runs on both sides: compute the missing ones")
    differences = {cell: {run: ours[cell][run] - theirs[cell][run] for run in ours[cell]} for cell in ours}
    interval = clustered_mean(differences, seed)
    tables = _by_stream(differences)
    if len(tables) >= STREAMS_TO_FLIP:
        flipped, parts = "streams", np.array([table.mean() / len(tables) for table in tables])
    else:
        flipped, parts = "runs", np.concatenate([table / len(table) / len(tables) for table in tables] or [np.zeros(0)])
    exact = len(parts) <= EXACT_CLUSTERS
    return PairedDifference(interval, _sign_flip(parts, exact, seed), flipped, len(parts), exact)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjusted p-values of m tests, in the given order: float64 (m,).

    With p sorted ascending, adjusted p_(k) = max over j <= k of min(1, (m - j + 1) p_(j)), j from 1 (Holm, Scand. J. Stat. 6
    (1979) 65). Rejecting at adjusted p < .05 keeps the probability of any false rejection below .05, however they depend
    on each other.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def chance_interval(classes: float, independent: float) -> Interval:
    """Accuracy of guessing: 1 / classes, with the central 95 % of Binomial(n, 1 / classes) / n.

    classes: number of runs, or a mean of several. independent: n, the number of independent test lumisections
    (`effective_count`).
    """
    n = max(1, round(independent))
    tail = (1 - CONFIDENCE) / 2
    low, high = binom.ppf(np.array([tail, 1 - tail]), n, 1 / classes) / n
    return Interval(1 / classes, float(low), float(high))


def effective_count(named: np.ndarray, labels: np.ndarray, lumisection: np.ndarray) -> float:
    """Number of independent lumisections that the given ones are worth, for the accuracy of a strategy that knows nothing.

    named: the run that each lumisection was assigned to, (n,). labels: its own run, (n,), of T runs. lumisection: its number,
    (n,).

    Neighbours share their luminosity and tend to be assigned to the same run, right or wrong. For pairs of lumisections whose
    numbers differ by k, same(k) is the share assigned to the same run if both are of one run, other(k) if they are of two. If
    nothing differs between runs, the average accuracy has the variance of

        effective = (1 - 1/T) n² / (n (1 - other(0)) + 2 sum over k of (same(k) - other(k)) pairs(k))

    independent guesses, where pairs(k) counts the pairs of one run. This is the variance of a mean of correlated numbers,
    without the part that all runs share at the same lumisection number, such as the decrease of luminosity in a fill: it moves
    lumisections from one run to another and does not change the average. The sum ends before the first k at which it would not
    increase, at most at 30 (Geyer, Statistical Science 7 (1992) 473).

    The result is between 1 and n. For a strategy that tells runs apart same(k) is larger for that reason, the result is too
    low, and the range of guessing too wide, which is conservative.
    """
    n, classes = len(named), len(np.unique(labels))
    numbers, place = np.unique(lumisection, return_inverse=True)
    given = np.zeros((len(numbers), int(max(named.max(), 0)) + 1))
    np.add.at(given, (place, named.astype(np.int64)), 1.0)
    there = given.sum(axis=1)
    # In this order the pairs of one run are found by shifting, also where lumisections are missing.
    order = np.lexsort((lumisection, labels))
    run, number, name = labels[order], lumisection[order], named[order]
    same, agree, every, agree_in_all = (np.zeros(MAX_LAG + 1) for _ in range(4))
    same[0] = agree[0] = n
    every[0], agree_in_all[0] = (there**2).sum(), (given**2).sum()
    for shift in range(1, min(MAX_LAG, n - 1) + 1):
        lag = number[shift:] - number[:-shift]
        near = (run[shift:] == run[:-shift]) & (lag >= 1) & (lag <= MAX_LAG)
        same += np.bincount(lag[near], minlength=MAX_LAG + 1)
        agree += np.bincount(lag[near], weights=name[shift:][near] == name[:-shift][near], minlength=MAX_LAG + 1)
        lag = numbers[shift:] - numbers[:-shift]
        near = lag <= MAX_LAG
        every += np.bincount(lag[near], weights=there[shift:][near] * there[:-shift][near], minlength=MAX_LAG + 1)
        together = (given[shift:][near] * given[:-shift][near]).sum(axis=1)
        agree_in_all += np.bincount(lag[near], weights=together, minlength=MAX_LAG + 1)
    # At lag 0 each pair is counted twice, in numerator and denominator.
    other = np.divide(agree_in_all - agree, every - same, out=np.full(MAX_LAG + 1, 1 / classes), where=every > same)
    spread = n * (1 - other[0])
    for k in range(1, MAX_LAG + 1):
        grows = 2 * (agree[k] - other[k] * same[k])
        if same[k] and grows <= 0:
            break
        spread += grows
    return float(np.clip((1 - 1 / classes) * n**2 / spread, 1.0, n)) if spread > 0 else float(n)


def _by_stream(cells: FiguresByRun) -> list[np.ndarray]:
    """For each stream the values of its runs, averaged over the orders that have them; streams without runs are left out."""
    values: dict[int, dict[int, list[float]]] = {}
    for (stream, _), of_cell in sorted(cells.items()):
        for run, value in of_cell.items():
            values.setdefault(stream, {}).setdefault(run, []).append(value)
    return [np.array([np.mean(of_run) for of_run in runs.values()]) for runs in values.values()]


def _resampled_means(tables: Sequence[np.ndarray], sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of two-stage resamples, (DRAWS,)."""
    longest = int(sizes.max())
    padded = np.zeros((len(tables), longest))
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    total = np.zeros(DRAWS)
    for _ in tables:
        stream = rng.integers(len(tables), size=DRAWS)
        size = sizes[stream][:, None]
        run = (rng.random((DRAWS, longest)) * size).astype(np.int64)
        counted = np.arange(longest) < size
        total += (padded[stream[:, None], run] * counted).sum(axis=1) / size[:, 0]
    return total / len(tables)


def _expanded_tails(units: int) -> tuple[float, float]:
    tail = float(norm.cdf(-np.sqrt(units / (units - 1)) * t.ppf((1 + CONFIDENCE) / 2, units - 1)))
    return tail, 1 - tail


def _sign_flip(parts: np.ndarray, exact: bool, seed: int) -> float:
    """Share of sign assignments with |sum| as large as observed. parts: contribution of each cluster to the mean."""
    # Values that differ by rounding only count as equal.
    observed = abs(float(parts.sum())) - 1e-12
    if exact:
        signs = 1 - 2 * (np.arange(2 ** len(parts))[:, None] >> np.arange(len(parts)) & 1)
        return float(np.mean(np.abs(signs @ parts) >= observed))
    rng = np.random.default_rng(seed)
    signs = 1 - 2 * rng.integers(0, 2, size=(FLIPS, len(parts)), dtype=np.int8)
    return float((1 + np.sum(np.abs(signs @ parts) >= observed)) / (1 + FLIPS))
