"""Effort: a share of the training steps, which is part of the state; at 0 a strategy trains nothing and keeps what it keeps."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

STREAM = make_stream(4, drift=0.03, seed=1, n=100)


def make(name: str) -> DeepStrategy:
    recipe = Recipe(model="linear", steps=24, batch=16)
    strategy = make_strategy(name, geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=400_000, device="cpu")
    assert isinstance(strategy, DeepStrategy)
    return strategy


def steps_of_next_run(strategy: DeepStrategy) -> int:
    experience = strategy.classes
    return len(strategy.learn(experience, STREAM[experience], reader(STREAM)).loss)


@pytest.mark.parametrize("name", ["replay", "statistical_replay"])
def test_a_probe_takes_its_share_of_the_steps_and_full_training_is_taken_up_again(name: str) -> None:
    strategy = make(name)
    steps_of_next_run(strategy)
    strategy.effort = 1 / 8
    assert steps_of_next_run(strategy) == 3
    strategy.effort = 0
    assert steps_of_next_run(strategy) == 0
    assert strategy.classes == 3
    assert strategy.network is not None
    assert not strategy.network.heads()[0].weight[2].any()
    strategy.effort = 1
    assert steps_of_next_run(strategy) == 24


def test_the_effort_is_part_of_the_state() -> None:
    unbroken, before = make("replay"), make("replay")
    for strategy in (unbroken, before):
        steps_of_next_run(strategy)
        strategy.effort = 0.25
        steps_of_next_run(strategy)
    resumed = make("replay")
    resumed.restore(before.state())
    assert resumed.effort == 0.25
    assert steps_of_next_run(resumed) == steps_of_next_run(unbroken) == 6
    for name, array in unbroken.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array, err_msg=name)


def test_states_that_do_not_name_the_effort_are_of_full_training() -> None:
    strategy = make("replay")
    steps_of_next_run(strategy)
    older = strategy.state()
    assert "effort" not in older
    strategy.effort = 0
    strategy.restore(older)
    assert strategy.effort == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_an_effort_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        make("replay").effort = share
