"""The ensemble of checkpoints: it keeps the members that it says, averages as it says, and resumes with the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dqmstream.errors import StateError
from dqmstream.learners.checks import assert_same_state
from dqmstream.learners.gradient.ensemble import MEMBERS, CheckpointEnsemble
from dqmstream.learners.maps import RunData
from dqmstream.learners.memory.checkpoints import spread
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

TINY = Recipe(model="linear", steps=6, batch=16)


def make(name: str = "ensemble") -> CheckpointEnsemble:
    made = make_strategy(name, geometry=Geometry(1), seed=0, recipe=TINY, memory_bytes=200_000, device="cpu")
    assert isinstance(made, CheckpointEnsemble) or name != "ensemble"
    return made  # type: ignore[return-value]


def learn(strategy: CheckpointEnsemble, stream: Sequence[RunData], first: int = 0) -> CheckpointEnsemble:
    for experience in range(first, len(stream)):
        strategy.learn(experience, stream[experience], reader(list(stream)))
    return strategy


def test_models_that_stay_are_the_oldest_and_those_at_growing_ages() -> None:
    kept: list[int] = []
    for now in range(1, 65):
        kept = [kept[place] for place in spread(kept, now, 3)]
        assert len(kept) <= 3 and kept == sorted(kept)
        kept.append(now)
    kept = [kept[place] for place in spread(kept, 65, 3)]
    ages = [65 - learnt for learnt in kept]
    assert kept[0] == 1
    assert ages[0] > 2 * ages[1] > 4 * ages[2]
    assert spread([1, 2], 3, 0) == [] and spread([], 3, 2) == []


def test_members_are_the_newest_and_older_networks_and_their_probabilities_are_averaged() -> None:
    stream = make_stream(3, drift=0.03, n=120)
    strategy = learn(make(), stream[:2])
    before, maps = np.exp(strategy.scores(stream[2].maps)), stream[2].maps
    strategy.learn(2, stream[2], reader(stream))
    assert strategy.known == [2]
    newest = np.exp(learn(make("replay"), stream).scores(maps))  # trains by the same batches
    together = newest.copy()
    together[:, :2] = (newest[:, :2] + before * newest[:, :2].sum(axis=1, keepdims=True)) / 2
    np.testing.assert_allclose(np.exp(strategy.scores(maps)), together, rtol=1e-5, atol=1e-7)
    assert strategy.state_bytes() > make("replay").state_bytes() + 2 * 932 * 4


def test_the_ensemble_resumes_to_the_same_bits_and_holds_no_more_members_than_stated() -> None:
    stream = make_stream(7, drift=0.03, n=60)
    unbroken = learn(make(), stream[:5])
    resumed = make()
    resumed.restore(unbroken.state())
    for strategy in (unbroken, resumed):
        learn(strategy, stream, first=5)
        assert len(strategy.known) == MEMBERS - 1
    assert resumed.known == unbroken.known
    assert_same_state(resumed, unbroken)
    np.testing.assert_array_equal(resumed.scores(stream[0].maps), unbroken.scores(stream[0].maps))
    state = {name: array for name, array in unbroken.state().items() if not name.startswith("older1.")}
    with pytest.raises(StateError, match="older member 1"):
        make().restore(state)
