"""How well lumisections of two runs are told apart: by their channels under their conditions, and by luminosity alone.

Both are judged by cross-validation over blocks of consecutive lumisections, with gaps on both sides of each tested block, since
neighbours share their luminosity (`learners.splits`). The channels' score is the log-likelihood ratio of the gain map
(`learners.closed_form.gain_map.GainMap`), with the response and both runs' gains from the other folds:

    score = sum_c [((x - mu_A) / s)² - ((x - mu_B) / s)²] / 2, each pull cut at ±10.

Luminosity's score is quadratic discriminant analysis on two ring means. An AUC compares lumisections of the same fold only,
since each fold has a model of its own (Airola et al., Comput. Stat. Data Anal. 55 (2011) 1828, sec. 3). Its interval is a
bootstrap over blocks (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, ch. 13, percentiles; blocks as in Künsch,
Ann. Stat. 17 (1989) 1217): it covers the choice of lumisections, not that of training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dqmstream.experiments.compare.estimate import spread_of
from dqmstream.experiments.compare.luminosity import MIN_COUNTS, LuminosityRuler
from dqmstream.experiments.compare.response_fit import fit_response
from dqmstream.experiments.compare.samples import Channels, Sample
from dqmstream.experiments.compare.shared_response import SharedResponse
from dqmstream.learners.response.reference import CLIP
from dqmstream.learners.splits import BETWEEN, TEST

TEST_BLOCK, GAP = TEST, BETWEEN
"""Lumisections of a test block, and of the gap on each side of it (times 25 where rows were interpolated)."""

FOLDS = 5
"""Every fifth block is tested in a fold: 120 lumisections lie between two test blocks, and 80 of these are trained on."""

MIN_SPAN = (FOLDS + 1) * TEST_BLOCK
"""Lumisections that a run must span for an AUC: each fold then has a test block and lumisections to train on."""

RESAMPLES = 2000
CONFIDENCE = 0.95
_ROWS = 256
_SEED = 20220601  # of the bootstrap: the same files give the same interval


@dataclass(frozen=True)
class Auc:
    """P(a lumisection of run B scores higher than one of run A), with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def above_chance(self) -> bool:
        return self.low > 0.5


@dataclass(frozen=True)
class Separation:
    """AUC by the channels, and by luminosity alone. blocks: number of test blocks of runs A and B."""

    channels: Auc
    luminosity: Auc
    blocks: tuple[int, int]


def separate(a: Sample, b: Sample, channels: Channels, steady: np.ndarray, counts_events: bool) -> Separation | None:
    """Compute both AUC. steady: bool, (live,), the channels that conditions are read off. None if a run is too short."""
    blocks = (blocks_of(a), blocks_of(b))
    if any(not _enough(sample, block) for sample, block in zip((a, b), blocks, strict=True)):
        return None
    scores = [np.full((len(sample), 2), np.nan) for sample in (a, b)]
    for fold in range(FOLDS):
        rows = [rows_of_fold(sample, block, fold) for sample, block in zip((a, b), blocks, strict=True)]
        train = [sample.take(teach) for sample, (teach, _) in zip((a, b), rows, strict=True)]
        ruler = LuminosityRuler.fit(train, channels, steady, counts_events)
        ratios = np.concatenate([ruler.exposure_and_ratio(sample)[1] for sample in train])
        response = fit_response(train[0], train[1], ruler, float(ratios.min()), float(ratios.max()))
        luminosity = _luminosity(ruler, train)
        for out, sample, (_, judge) in zip(scores, (a, b), rows, strict=True):
            test = sample.take(judge)
            out[judge, 0] = score(response, test, testable(train[0], train[1], counts_events))
            out[judge, 1] = luminosity.decision_function(ruler.ring_levels(test))
    rng = np.random.default_rng(_SEED)
    by_channels, by_luminosity = (_auc(blocks, scores[0][:, k], scores[1][:, k], rng) for k in (0, 1))
    return Separation(by_channels, by_luminosity, (int(blocks[0].max()) + 1, int(blocks[1].max()) + 1))


def _enough(sample: Sample, block: np.ndarray) -> bool:
    """Whether a run spans MIN_SPAN lumisections, half of them usable, and each fold can be trained and tested."""
    span = sample.lumisection[-1] - sample.lumisection[0] + 1
    if span < MIN_SPAN * sample.scale or len(sample) < MIN_SPAN * sample.scale / 2 or block[-1] + 1 < FOLDS:
        return False
    return all(len(rows_of_fold(sample, block, fold)[0]) >= TEST_BLOCK * sample.scale for fold in range(FOLDS))


def testable(a: Sample, b: Sample, counts_events: bool) -> np.ndarray:
    """Channels with enough counts, and enough events without one, for a normal test: bool, (live,).

    What counts is the number that the shorter run would have if nothing had changed.
    """
    counts = a.totals() + b.totals()
    sizes = [one.events.sum() if counts_events else len(one) for one in (a, b)]
    part = 2 * min(sizes) / sum(sizes)
    enough = part * counts >= MIN_COUNTS
    return np.asarray(enough & (part * (sum(sizes) - counts) >= MIN_COUNTS) if counts_events else enough)


def score(response: SharedResponse, sample: Sample, chosen: np.ndarray) -> np.ndarray:
    """Log-likelihood of run B minus that of run A for each lumisection, float64, (n,), with h shrunk by its error.

    chosen: the channels to use, bool, (live,).
    """
    if not chosen.any():
        return np.zeros(len(sample))
    estimate = response.estimate(chosen)
    h = shrunk(estimate.h[chosen], estimate.error[chosen])
    noise = estimate.error[chosen] / response.model_error[chosen]
    out = []
    for start in range(0, len(sample), _ROWS):
        part = sample.take(np.arange(start, min(start + _ROWS, len(sample))))
        middle, variance = (values[:, chosen] for values in response.expected(part))
        deviation = np.sqrt(variance) * noise
        residual, step = (part.counts[:, chosen] - middle) / deviation, middle * h / deviation
        apart = np.clip(residual + step, -CLIP, CLIP) ** 2 - np.clip(residual - step, -CLIP, CLIP) ** 2
        out.append(apart.sum(axis=1) / 2)
    return np.concatenate(out)


def shrunk(h: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Shrink h towards zero: h times (true variance) / (true variance + error²).

    The true variance is the larger of that of all channels and that of this one (the positive part of James and Stein), and at
    least a tenth of error², so that runs without any difference still get scores.
    """
    common = spread_of(h, error)
    true = np.maximum(np.maximum(common, h**2 - error**2), 0.1 * error**2)
    return h * true / (true + error**2)


def _luminosity(ruler: LuminosityRuler, train: list[Sample]) -> Pipeline:
    rings = [ruler.ring_levels(sample) for sample in train]
    labels = np.repeat([0, 1], [len(one) for one in rings])
    # reg_param: conditions that do not move in a run would give a singular covariance. tol: the default would warn about a
    # covariance that is only narrow compared with the distance between the runs.
    analysis = QuadraticDiscriminantAnalysis(priors=[0.5, 0.5], reg_param=1e-6, tol=0.0)
    return make_pipeline(StandardScaler(), analysis).fit(np.concatenate(rings), labels)


def blocks_of(sample: Sample) -> np.ndarray:
    """Number of the test block of each lumisection, (n,): 0, 1, 2, ... without gaps."""
    _, block = np.unique((sample.lumisection - sample.lumisection[0]) // (TEST_BLOCK * sample.scale), return_inverse=True)
    return block


def rows_of_fold(sample: Sample, block: np.ndarray, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the lumisections that are trained on in a fold, and of those that are tested."""
    tested = block % FOLDS == fold
    numbers = sample.lumisection[tested]
    at = np.searchsorted(numbers, sample.lumisection)
    before = sample.lumisection - numbers[np.maximum(at - 1, 0)]
    after = numbers[np.minimum(at, len(numbers) - 1)] - sample.lumisection
    near = np.minimum(np.abs(before), np.abs(after)) <= GAP * sample.scale
    return np.flatnonzero(~near & ~tested), np.flatnonzero(tested)


def _auc(blocks: tuple[np.ndarray, np.ndarray], a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> Auc:
    """AUC over pairs of the same fold, with its interval by resampling the blocks of each run."""
    above, pairs = _wins(blocks, a, b)
    value = float(above.sum() / pairs.sum())
    draws = [rng.multinomial(len(side), np.full(len(side), 1 / len(side)), RESAMPLES) for side in (above, above.T)]
    wins, sizes = (np.einsum("ri,ij,rj->r", draws[0], table, draws[1], optimize=True) for table in (above, pairs))
    drawn = wins[sizes > 0] / sizes[sizes > 0]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if value in (0.0, 1.0):  # all resamples agree: take each block as one observation without an exception
        beyond = float(((1 - CONFIDENCE) / 2) ** (1 / min(above.shape)))
        low, high = (beyond, 1.0) if value else (0.0, 1 - beyond)
    return Auc(value, float(low), float(high))


def _wins(blocks: tuple[np.ndarray, np.ndarray], a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of lumisections in which B scores higher (ties count half), and all pairs, for each pair of blocks.

    Both float64, (blocks of A, blocks of B), zero where the folds differ.
    """
    sizes = [int(block.max()) + 1 for block in blocks]
    above, pairs = np.zeros(sizes), np.zeros(sizes)
    for i in range(sizes[0]):
        mine = np.sort(a[blocks[0] == i])
        for j in range(i % FOLDS, sizes[1], FOLDS):
            theirs = b[blocks[1] == j]
            below, upto = np.searchsorted(mine, theirs, "left"), np.searchsorted(mine, theirs, "right")
            above[i, j] = (below + upto).sum() / 2
            pairs[i, j] = len(mine) * len(theirs)
    return above, pairs
