"""What a training settles on: averages, early stops and temperatures, each as it says, and the same bits after a resume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dqmstream.errors import InputError, StateError
from dqmstream.learners.checks import check_strategy
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.gradient.weight_choice import Settler, Settling
from dqmstream.learners.maps import RunData
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import build
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

TINY = Recipe(dim=16, depth=2, heads=2, experts=4, steps=20, batch=32, lr=3e-3)
BUDGET = 400_000


def make(recipe: Recipe, name: str = "replay", seed: int = 0) -> DeepStrategy:
    made = make_strategy(name, geometry=Geometry(1), seed=seed, recipe=recipe, memory_bytes=BUDGET, device="cpu")
    assert isinstance(made, DeepStrategy)
    return made


def learnt(recipe: Recipe, stream: list[RunData], name: str = "replay") -> tuple[DeepStrategy, list[int]]:
    strategy = make(recipe, name)
    return strategy, [len(strategy.learn(i, run, reader(stream)).loss) for i, run in enumerate(stream)]


def test_all_of_it_together_keeps_the_contract() -> None:
    recipe = replace(TINY, steps=21, ema=0.8, patience=1, temperature=True)
    check_strategy(lambda seed: make(recipe, seed=seed), BUDGET)


def test_scores_come_from_averaged_weights_and_training_goes_on_from_its_own() -> None:
    stream = make_stream(3, drift=0.03, seed=3)
    plain, averaged = learnt(TINY, stream)[0], learnt(replace(TINY, ema=0.9), stream)[0]
    before, after = plain.state(), averaged.state()
    weights = [name for name in before if name.startswith("model.")]
    for name in weights:
        np.testing.assert_array_equal(before[name], after[name])
    assert averaged.state_bytes() - plain.state_bytes() >= sum(before[name].nbytes for name in weights)
    test = stream[2].part(Part.TEST)
    assert (averaged.scores(test) != plain.scores(test)).any()
    followed = learnt(replace(TINY, ema=1e-12), stream)[0]
    np.testing.assert_allclose(followed.scores(test), plain.scores(test), rtol=1e-4, atol=1e-4)


def test_a_training_that_gets_worse_stops_and_goes_back_to_its_best() -> None:
    live = np.zeros((1, 64, 72), dtype=bool)
    live[0, 10, :2] = True
    recipe = replace(TINY, model="linear", patience=2)
    model = build(live, recipe)
    model.grow(2)
    # Class 0 shows in the first channel and class 1 in the second: the larger the weight there, the better.
    held = {0: torch.tensor([[1.0, 0.0]] * 3), 1: torch.tensor([[0.0, 1.0]])}
    settler = Settler(Settling(recipe, 0, 0), model, None, held)
    weight = model.heads()[0].weight
    said = []
    for step in range(1, 41):
        with torch.no_grad():
            weight.copy_(torch.eye(2) * (step if step <= 20 else -step))
        said.append(settler(step))
        if said[-1]:
            break
    assert len(said) == 40 and said.index(True) == 39
    settler.end()
    np.testing.assert_array_equal(weight.detach().numpy(), 20 * np.eye(2))


def test_a_training_may_be_shorter_than_its_budget_and_costs_less() -> None:
    stream = make_stream(2, drift=0.008, seed=3)
    by_heart = replace(TINY, steps=120, lr=1e-2, cosine=False, noise=0.0, weight_decay=0.0, patience=1)
    strategy = make(by_heart)
    logs = [strategy.learn(i, run, reader(stream)) for i, run in enumerate(stream)]
    assert len(logs[1].loss) % 10 == 0 and 20 <= len(logs[1].loss) < 120
    assert logs[1].samples == len(logs[1].loss) * TINY.batch


def test_a_temperature_changes_how_sure_one_is_and_no_name() -> None:
    stream = make_stream(4, drift=0.03, seed=3)
    # Steps of a batch that is learnt by heart make the network too sure.
    eager = replace(TINY, steps=60, noise=0.0, weight_decay=0.0)
    hot = make(replace(eager, temperature=True))
    for i, run in enumerate(stream):
        log = hot.learn(i, run, reader(stream))
    assert log.notes["temperature"] != 1.0
    test = stream[1].part(Part.TEST)
    scores = hot.scores(test)
    own = scores * log.notes["temperature"]
    np.testing.assert_allclose(np.exp(own).sum(axis=1), 1.0, rtol=1e-9)
    np.testing.assert_array_equal(own.argmax(axis=1), scores.argmax(axis=1))
    assert hot.memory_bytes() <= BUDGET


@pytest.mark.parametrize("off", [{"ema": 1.0}, {"ema": -0.1}, {"patience": -1}])
def test_a_recipe_of_no_use_is_refused(off: dict[str, float]) -> None:
    with pytest.raises(InputError, match="ema"):
        replace(TINY, **off)


def test_a_state_without_what_was_settled_is_refused() -> None:
    stream = make_stream(2, drift=0.03)
    recipe = replace(TINY, steps=11, ema=0.8, patience=1, temperature=True)
    state = learnt(recipe, stream)[0].state()
    settled = [name for name in state if name.startswith("settling.")]
    assert {"settling.temperature", "settling.held.counts"} < set(settled)
    for missing in settled:
        with pytest.raises(StateError):
            make(recipe).restore({name: array for name, array in state.items() if name != missing})
