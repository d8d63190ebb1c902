"""Each policy keeps lumisections with the stated probabilities, within the budget, and resumes to the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from dqmstream.errors import InputError
from dqmstream.learners.checks import check_learns_and_scores, check_resumes_to_the_same_bits
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.memory.selection import POLICIES, herded
from dqmstream.learners.networks.recipe import Recipe
from tests.learners.streams import make_stream
from tests.learners.test_strategies import BRIEF, make

PLACES, CHANNELS = 30, 2
FULL_AT_THE_SECOND_RUN = 150 * 932 * 2


def _rows(first: int, n: int, fraction: float = 0.0) -> np.ndarray:
    """Rows that hold their number in the stream."""
    return np.stack([np.arange(first, first + n) + fraction, np.ones(n)], axis=1).astype(np.float32)


def _kept(policy: str, seed: int, sizes: list[int], fraction: float = 0.0) -> tuple[list[int], np.ndarray]:
    """Kept lumisections of each class after runs of these sizes, and their numbers in the stream."""
    memory = ExemplarMemory(CHANNELS, PLACES * CHANNELS * 2, seed, policy)
    first = 0
    for i, n in enumerate(sizes):
        memory.add(_rows(first, n, fraction if i else 0.0), lambda counts: counts)
        assert memory.memory_bytes() <= PLACES * CHANNELS * 2
        first += n
    kept = [memory.of(i) for i in range(len(sizes))]
    return [len(rows) for rows in kept], np.floor(np.concatenate(kept)[:, 0])


def _frequencies(policy: str, sizes: list[int], trials: int = 3000, fraction: float = 0.0) -> np.ndarray:
    """How often each lumisection of the stream is kept, over seeds: (lumisections,)."""
    found = np.concatenate([_kept(policy, seed, sizes, fraction)[1] for seed in range(trials)])
    return np.bincount(found.astype(int), minlength=sum(sizes))


def _is_uniform(found: np.ndarray, probability: float, trials: int) -> bool:
    """Whether Pearson's chi-square of inclusions without replacement is below its 99.9 % quantile."""
    expected = trials * probability
    statistic = float(((found - expected) ** 2).sum() / (expected * (1 - probability)))
    return statistic < chi2.ppf(0.999, len(found))


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_reservoir_is_uniform_over_the_stream_however_long_its_runs(fraction: float) -> None:
    """Also where fractional counts halve the places on the way."""
    sizes, trials = [20, 45, 5, 60], 1500
    found = _frequencies("reservoir", sizes, trials, fraction)
    places = PLACES if fraction == 0.0 else PLACES // 2
    assert found.sum() == trials * places
    assert _is_uniform(found, places / sum(sizes), trials)
    assert not _is_uniform(_frequencies("balanced", sizes, trials), PLACES / sum(sizes), trials)


@pytest.mark.parametrize("policy", ["balanced", "balanced_reservoir"])
def test_a_balanced_memory_has_equal_shares_and_is_uniform_within_a_class(policy: str) -> None:
    sizes, trials = [20, 45, 40], 1500
    assert _kept(policy, 0, sizes)[0] == [10, 10, 10]
    found = _frequencies(policy, sizes, trials)
    for low, high in ((0, 20), (20, 65), (65, 105)):
        assert _is_uniform(found[low:high], 10 / (high - low), trials)


def test_a_balanced_reservoir_keeps_a_short_run_whole_and_shares_its_free_places() -> None:
    assert _kept("balanced_reservoir", 0, [4, 100, 100])[0] == [4, 13, 13]
    assert _kept("balanced", 0, [4, 100, 100])[0] == [4, 10, 10]


def test_herding_is_nearer_to_the_mean_of_the_run_than_random_choices() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 50)) + rng.standard_normal(50)
    order = herded(features, 200)
    assert sorted(order) == list(range(200))
    for kept in (5, 20):
        away = np.linalg.norm(features[order[:kept]].mean(axis=0) - features.mean(axis=0))
        random = [rng.permutation(200)[:kept] for _ in range(200)]
        assert away < min(np.linalg.norm(features[one].mean(axis=0) - features.mean(axis=0)) for one in random)
    best = int(np.linalg.norm(features - features.mean(axis=0), axis=1).argmin())
    assert order[0] == best
    second = np.linalg.norm((features + features[best]) / 2 - features.mean(axis=0), axis=1)
    assert order[1] == int(np.where(np.arange(200) == best, np.inf, second).argmin())


def test_herding_drops_from_the_end_of_its_order_and_needs_residuals() -> None:
    memory = ExemplarMemory(CHANNELS, PLACES * CHANNELS * 2, 0, "herding")
    memory.add(_rows(0, 41), lambda counts: counts)
    assert memory.of(0)[0, 0] == 20
    first = memory.of(0)[:15].copy()
    memory.add(_rows(41, 41), lambda counts: counts)
    np.testing.assert_array_equal(memory.of(0), first)
    with pytest.raises(InputError, match="herding needs residuals"):
        memory.add(_rows(82, 3))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_memory_resumes_to_the_same_bits_from_its_state(policy: str) -> None:
    memory, again = (ExemplarMemory(CHANNELS, PLACES * CHANNELS * 2, 3, policy) for _ in range(2))
    for first in (0, 40, 80):
        memory.add(_rows(first, 40), lambda counts: counts)
    again.restore(memory.state())
    for stored in (memory, again):
        stored.add(_rows(120, 40, 0.5), lambda counts: counts)
    for name, array in memory.state().items():
        np.testing.assert_array_equal(again.state()[name], array)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != Recipe().memory])
def test_replay_keeps_the_contract_with_every_memory(policy: str) -> None:
    recipe, stream = replace(BRIEF, memory=policy, steps=2), make_stream(3, drift=0.03, seed=1)
    check_learns_and_scores(make("replay", 0, recipe, FULL_AT_THE_SECOND_RUN), stream, FULL_AT_THE_SECOND_RUN)
    check_resumes_to_the_same_bits(lambda seed: make("replay", seed, recipe, FULL_AT_THE_SECOND_RUN), stream)


def test_a_memory_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="choose one of balanced, reservoir"):
        Recipe(memory="all")
