"""Intervals and tests for figures of a benchmark: what another stream, and other runs in it, would have given.

A figure is an average over runs, of streams (drawn by a seed), in orders (the same runs learnt in another one). Lumisections
of a run are no independent evidence, and neither are the runs of a stream, which one learner has gone through: what is
resampled or exchanged are whole runs and whole streams. The orders of a stream are averaged run by run first; they say how much
the order matters, not what another stream would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm, t

from dqmstream.errors import InputError

CONFIDENCE = 0.95
DRAWS = 2000
"""Resamples of a bootstrap."""

EXACT_CLUSTERS = 14
"""All sign flips are tried up to so many clusters (16384), and FLIPS random ones beyond."""

FLIPS = 9999
STREAMS_TO_FLIP = 6
"""Of fewer streams no two-sided sign-flip test can come below .05: the smallest p-value of 5 is 2 / 2^5."""

MAX_LAG = 30
"""Length of a test block (`learners.splits`): what lies in two blocks has 170 lumisections between, and is independent."""

Cells = Mapping[tuple[int, int], Mapping[int, float]]
"""(stream seed, order) -> run -> value, for instance the last row of R. Orders of one stream have the same runs, or some of
them; the same number in two streams is two runs."""


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class ClusteredInterval(Interval):
    """resampled: "streams and runs", or "runs" where there is one stream: then it speaks of other runs of such a stream only.

    orders: the most that any stream has. runs: in all streams.
    """

    streams: int
    orders: int
    runs: int
    resampled: str


@dataclass(frozen=True)
class PairedDifference:
    """interval: of the mean difference. p: two-sided, by flipping `clusters` "streams" or "runs" (`flipped`).

    exact: whether all flips were tried.
    """

    interval: ClusteredInterval
    p: float
    flipped: str
    clusters: int
    exact: bool


def clustered_mean(cells: Cells, seed: int = 0) -> ClusteredInterval:
    """Mean over streams of the mean over runs, with a bootstrap interval in which streams are drawn, and runs in each.

    Two-stage bootstrap (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8): as many streams as
    there are, with replacement; in each of them as many runs as it has, with replacement. Of the resampled means the expanded
    percentiles are taken (Hesterberg, The American Statistician 69 (2015) 371): at Phi(-sqrt(n/(n-1)) t) in place of .025, t
    being Student's 97.5 % quantile for n - 1 degrees of freedom, n the number of streams (of runs, where there is one
    stream). A plain percentile interval is too narrow by sqrt((n-1)/n) and by the normal's tails: with 8 runs of one stream it
    held the truth 88-91 times of 100, with 3 streams that differ more than their runs 85. The expanded one held it 93 times
    or more in every case tried (1 to 10 streams, 8 and 20 runs), and is wide where streams hardly differ: up to 100 of 100
    from 2 streams on. Below 5 streams its ends are the extremes of the resamples. BCa was not taken: its acceleration comes
    from leaving out clusters one by one, and cannot be had from two or three.

    Where there is one run, or all are alike, the interval is the estimate, and says nothing. All nan for no run at all.
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
"""How often each run of a stream counts, (draws, runs), to k figures of the stream, (draws, k)."""


def clustered_figures(streams: Sequence[Figures], sizes: Sequence[int], seed: int = 0) -> list[ClusteredInterval]:
    """Mean over streams of figures that are no means over runs, with the intervals of `clustered_mean`.

    streams: for each its figures; sizes: its number of runs. A figure that is nan in a stream (nothing there to be measured) is
    left out of the mean, and resamples without any are left out of the interval. All nan for a figure that no stream has.
    """
    rng = np.random.default_rng(seed)
    whole = np.stack([figures(np.ones((1, size)))[0] for figures, size in zip(streams, sizes, strict=True)])
    drawn = np.stack([
        figures(rng.multinomial(size, np.full(size, 1 / size), size=DRAWS).astype(np.float64))
        for figures, size in zip(streams, sizes, strict=True)
    ])  # fmt: skip
    place = np.arange(DRAWS)
    # The same stream drawn twice is resampled twice: another of its resamples stands in the second place.
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
    """Over the first axis; nan where all is nan."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.divide(np.where(known, values, 0.0).sum(axis=0), count, out=np.full(values.shape[1:], np.nan), where=count > 0)


def paired_difference(ours: Cells, theirs: Cells, seed: int = 0) -> PairedDifference:
    """Difference ours - theirs on the same runs of the same cells: interval of `clustered_mean`, p-value by flipping signs.

    If it made no difference which of the two learnt a cluster, its difference would have had the other sign as often. The
    p-value is the share of sign assignments whose mean is as far from zero as what was seen (Fisher, "The Design of
    Experiments", 1935, section 21): all of them up to 14 clusters, else 9999 random ones with (1 + as far) / (1 + 9999)
    (Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39).

    Clusters are streams where there are 6 or more. With fewer no p-value could fall below .05, and runs are flipped: that takes
    the runs of a stream for independent given the two strategies. Where a strategy gains or loses on a whole stream they are
    not, and the p-value is too small: with 3 streams whose differences scatter by half of what their runs' do, it was below .05
    37 times of 100. Quote it with `flipped`, and take 6 streams for a figure that is to convince.

    Raises InputError where the two do not have the same cells and runs.
    """
    if ours.keys() != theirs.keys() or any(ours[cell].keys() != theirs[cell].keys() for cell in ours):
        raise InputError("a paired comparison needs the same streams, orders and runs on both sides: compute what is missing")
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
    """Adjusted p-values of a family of tests, in the given order: float64, shape (m,).

    With p sorted ascending, adjusted p_(k) = max over j <= k of min(1, (m - j + 1) p_(j)), j from 1 (Holm, Scand. J. Stat. 6
    (1979) 65): rejecting where it is below .05 keeps the chance of any false rejection below .05, however the tests depend
    on each other.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def chance_interval(classes: int, independent: float) -> Interval:
    """What guessing gives: 1 / classes, and the central 95 % of Binomial(n, 1 / classes) / n.

    independent: n, the number of test lumisections, or of as many independent ones as they are worth (`effective_count`).
    """
    n = max(1, round(independent))
    tail = (1 - CONFIDENCE) / 2
    low, high = binom.ppf(np.array([tail, 1 - tail]), n, 1 / classes) / n
    return Interval(1 / classes, float(low), float(high))


def effective_count(named: np.ndarray, labels: np.ndarray, lumisection: np.ndarray) -> float:
    """How many independent lumisections the given ones are worth, for the average accuracy of a strategy that knows nothing.

    named: the run that each was given to, (n,); labels: its own run, (n,), of T; lumisection: its number, (n,). Neighbours
    share their luminosity, so they tend to be given to the same run, right or wrong. Of pairs of lumisections whose numbers
    differ by k, let same(k) be the share given to one run where both are of the same run, and other(k) where they are of two.
    Where nothing differs between runs the average accuracy has the variance of

        effective = (1 - 1/T) n² / (n (1 - other(0)) + 2 sum over k of (same(k) - other(k)) pairs(k))

    independent guesses, pairs(k) counting those of the same run. It is the variance of a mean of correlated numbers, in which
    what all runs share at the same number, such as the fall of luminosity in a fill, has no part: it moves lumisections from
    one run to another, and the average not at all. The sum goes up to the first k where it would not grow, and to 30 at most
    (Geyer, Statistical Science 7 (1992) 473, for the stop). At least 1; at most n, for caution. Where a strategy does tell
    runs apart same(k) is high for that reason and the count too low: chance is then judged with caution as well.

    On `null` (8 runs of 400, seeds 100-139) a lumisection counted for .21 with ring means, .93 with naive Bayes and .99 with
    gain maps; the accuracy lay in `chance_interval` of it 37, 38 and 38 times of 40, and of the plain number 25, 37 and 38.
    """
    n, classes = len(named), len(np.unique(labels))
    numbers, place = np.unique(lumisection, return_inverse=True)
    given = np.zeros((len(numbers), int(max(named.max(), 0)) + 1))
    np.add.at(given, (place, named.astype(np.int64)), 1.0)
    there = given.sum(axis=1)
    # In this order pairs of one run are found by shifting, whatever is left out between.
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
    # At lag 0 a pair of other runs is found twice, and so are the lumisections with themselves; the ratio does not mind.
    other = np.divide(agree_in_all - agree, every - same, out=np.full(MAX_LAG + 1, 1 / classes), where=every > same)
    spread = n * (1 - other[0])
    for k in range(1, MAX_LAG + 1):
        grows = 2 * (agree[k] - other[k] * same[k])
        if same[k] and grows <= 0:
            break
        spread += grows
    return float(np.clip((1 - 1 / classes) * n**2 / spread, 1.0, n)) if spread > 0 else float(n)


def _by_stream(cells: Cells) -> list[np.ndarray]:
    """For each stream the value of each run, averaged over the orders that have it; streams without a run are left out."""
    values: dict[int, dict[int, list[float]]] = {}
    for (stream, _), of_cell in sorted(cells.items()):
        for run, value in of_cell.items():
            values.setdefault(stream, {}).setdefault(run, []).append(value)
    return [np.array([np.mean(of_run) for of_run in runs.values()]) for runs in values.values()]


def _resampled_means(tables: Sequence[np.ndarray], sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of DRAWS two-stage resamples, (DRAWS,)."""
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
    """Share of sign assignments with |sum| as large as seen; parts: what each cluster adds to the mean."""
    # What is equal but for rounding is as far.
    seen = abs(float(parts.sum())) - 1e-12
    if exact:
        signs = 1 - 2 * (np.arange(2 ** len(parts))[:, None] >> np.arange(len(parts)) & 1)
        return float(np.mean(np.abs(signs @ parts) >= seen))
    rng = np.random.default_rng(seed)
    signs = 1 - 2 * rng.integers(0, 2, size=(FLIPS, len(parts)), dtype=np.int8)
    return float((1 + np.sum(np.abs(signs @ parts) >= seen)) / (1 + FLIPS))
