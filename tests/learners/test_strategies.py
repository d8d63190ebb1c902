"""Every registered strategy passes the checks, separates runs that differ, and is at chance where only luminosity does."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.learners.checks import assert_same_state, check_strategy
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.networks.recipe import ADDED, REMOVED, Recipe
from dqmstream.learners.registry import NAMES, make_strategy, resolve
from dqmstream.learners.saved_state import STAMP, stamp
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import Geometry
from tests.learners.streams import accuracy, make_stream, reader

TINY = Recipe(dim=16, depth=2, heads=2, experts=4, steps=20, batch=32, lr=3e-3, fisher_samples=4)
BRIEF = replace(TINY, steps=11, batch=16, patch=(16, 18))
"""For checks of bits and shapes, which need a few gradient steps only."""

BUDGET = 400_000
EXEMPT = ("joint", "cumulative")
FORGETFUL = ("naive", "ewc", "si", "mas", "lwf", "agem", "ring_means")
BLIND_TO_DRIFT = ("outages",)


def make(name: str, seed: int = 0, recipe: Recipe = TINY, memory_bytes: int = BUDGET) -> Strategy:
    return make_strategy(name, geometry=Geometry(1), seed=seed, recipe=recipe, memory_bytes=memory_bytes, device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_passes_the_checks(name: str) -> None:
    check_strategy(lambda seed: make(name, seed, BRIEF), None if name in EXEMPT else BUDGET)


@pytest.mark.parametrize("name", NAMES)
def test_is_at_chance_where_only_luminosity_differs(name: str) -> None:
    # 4 runs of 30 test lumisections: chance is .25, and .45 is five binomial deviations above it.
    assert accuracy(make(name), make_stream(4, drift=0.0, seed=2)) < 0.45


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FORGETFUL + BLIND_TO_DRIFT])
def test_separates_runs_whose_channels_drifted(name: str) -> None:
    assert accuracy(make(name), make_stream(4, drift=0.03, seed=3)) > 0.8


@pytest.mark.parametrize("name", ["naive", "replay", "ewc", "lwf", "agem", "er_ace", "der", "cumulative", "joint"])
def test_first_training_has_two_runs(name: str) -> None:
    stream = make_stream(2, drift=0.04, seed=4)
    strategy = make(name)
    assert strategy.learn(0, stream[0], reader(stream)).loss == []
    assert len(strategy.learn(1, stream[1], reader(stream)).loss) == TINY.steps
    assert accuracy(make(name), stream) > 0.8


def test_naive_forgets_and_replay_does_not() -> None:
    stream = make_stream(4, drift=0.03, seed=5)
    assert accuracy(make("replay"), stream) > accuracy(make("naive"), stream) + 0.2


def test_ewc_holds_important_weights() -> None:
    stream = make_stream(3, drift=0.03, seed=5)
    moved = []
    for strength in (0.0, 1e6):
        strategy = make("ewc", recipe=replace(TINY, ewc_strength=strength, fisher_samples=16))
        for experience in (0, 1):
            strategy.learn(experience, stream[experience], reader(stream))
        before = strategy.state()
        strategy.learn(2, stream[2], reader(stream))
        after = strategy.state()
        fisher = {name[len("method.") :]: array for name, array in before.items() if name.startswith("method.")}
        old = {name: len(array) for name, array in fisher.items()}
        steps = {name: after[f"model.{name}"][: old[name]] - before[f"model.{name}"] for name in fisher}
        moved.append(sum(float((fisher[name] * steps[name] ** 2).sum()) for name in fisher))
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("name", ["replay", "agem", "er_ace", "der", "cumulative", "joint"])
def test_past_runs_are_not_kept_alive(name: str) -> None:
    stream = make_stream(3, drift=0.03, seed=6)
    strategy = make(name, recipe=BRIEF)
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    maps = [weakref.ref(run.maps.counts) for run in stream]
    del stream, run
    gc.collect()
    assert [ref() for ref in maps] == [None, None, None]


@pytest.mark.parametrize("name", NAMES)
def test_learning_out_of_order_is_refused(name: str) -> None:
    stream = make_stream(2, drift=0.0, n=100)
    with pytest.raises(ValueError, match="experience 1 cannot follow 0"):
        make(name).learn(1, stream[1], reader(stream))


@pytest.mark.parametrize("name", NAMES)
def test_scoring_before_the_first_run_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="has learnt no run"):
        make(name).scores(make_stream(1, drift=0.0, n=10)[0].maps)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: make("replay", recipe=replace(BRIEF, dim=32)), "recipe.dim is 16 there and 32 here"),
        (lambda: make("replay", seed=1, recipe=BRIEF), "seed is 0 there and 1 here"),
        (lambda: make("replay", memory_bytes=2 * BUDGET, recipe=BRIEF), "memory_bytes"),
        (lambda: make("naive", recipe=BRIEF), "strategy is 'replay' there and 'naive' here"),
        (lambda: make("gain_map"), "strategy is 'replay' there and 'gain_map' here"),
    ],
)
def test_state_of_another_model_is_refused_by_name(other: object, named: str) -> None:
    stream = make_stream(2, drift=0.03, n=100)
    strategy = make("replay", recipe=BRIEF)
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    with pytest.raises(StateError, match=named):
        other().restore(strategy.state())  # type: ignore[operator]


def _with_recipe_entries(state: dict[str, np.ndarray], entries: dict[str, object]) -> dict[str, np.ndarray]:
    """The state as a version would have written it whose recipes had these entries too."""
    belongs_to = json.loads(state[STAMP].tobytes())
    belongs_to["recipe"] |= entries
    return state | {STAMP: stamp(belongs_to)}


def test_a_state_of_a_recipe_with_entries_that_are_gone_opens_where_they_were_at_their_defaults() -> None:
    stream = make_stream(2, drift=0.03, n=100)
    strategy = make("replay", recipe=BRIEF)
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    assert {"augment", "ema", "grow_experts"} < REMOVED.keys()
    resumed = make("replay", recipe=BRIEF)
    resumed.restore(_with_recipe_entries(strategy.state(), REMOVED))
    assert_same_state(resumed, strategy)
    for name, other in (("grow_experts", 2), ("ema", 0.9), ("augment", ["thin"]), ("temperature", True)):
        with pytest.raises(StateError, match=rf"recipe\.{name} is .* there"):
            make("replay", recipe=BRIEF).restore(_with_recipe_entries(strategy.state(), REMOVED | {name: other}))
        with pytest.raises(InputError, match=f"a recipe has no {name}; it has model, patch"):
            BRIEF.changed({name: other})


def test_a_state_of_a_recipe_that_lacks_entries_opens_where_they_change_nothing() -> None:
    strategy = make("replay", recipe=BRIEF)
    run = make_stream(1, drift=0.03, n=100)[0]
    strategy.learn(0, run, reader([run]))
    belongs_to = json.loads(strategy.state()[STAMP].tobytes())
    belongs_to["recipe"] = {name: value for name, value in belongs_to["recipe"].items() if name not in ADDED}
    older = strategy.state() | {STAMP: stamp(belongs_to)}
    resumed = make("replay", recipe=BRIEF)
    resumed.restore(older)
    assert_same_state(resumed, strategy)
    with pytest.raises(StateError, match=r"recipe\.products is None there and 3 here"):
        make("replay", recipe=replace(BRIEF, products=3)).restore(older)


def test_unknown_names_and_devices_are_refused() -> None:
    with pytest.raises(InputError, match="choose one of default, naive, replay"):
        make("no_such")
    with pytest.raises(InputError, match="device"):
        make_strategy("naive", geometry=Geometry(1), seed=0, device="abacus")
    assert resolve("default") in NAMES


def test_recipe_goes_through_json() -> None:
    assert Recipe.from_json(TINY.to_json()) == TINY
    assert Recipe.from_json({"dim": 32}) == Recipe(dim=32)
    with pytest.raises(InputError, match="no dimm"):
        Recipe.from_json({"dimm": 32})
    with pytest.raises(InputError, match="divide"):
        Recipe(patch=(7, 9))


def test_closed_forms_import_neither_torch_nor_avalanche() -> None:
    code = (
        "import sys\n"
        "from dqmstream.learners.registry import CLOSED_FORMS, make_strategy\n"
        "from dqmstream.lumisection import Geometry\n"
        "for name in CLOSED_FORMS: make_strategy(name, geometry=Geometry(1), seed=0)\n"
        "assert not {'torch', 'avalanche', 'timm'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_gain_map_measures_the_gain_and_its_error() -> None:
    # On a stream without drift the gains over their errors are normal: the errors are what they claim to be.
    stream = make_stream(2, drift=0.0, seed=8, n=400)
    strategy = GainMap(Geometry(1), 0)
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    errors = np.hypot(*strategy.gain_errors)
    pulls = (strategy.gains[1] - strategy.gains[0]) / errors
    assert strategy.gains.shape == strategy.gain_errors.shape == (2, 932)
    assert abs(pulls.mean()) < 0.3
    assert 0.8 < pulls.std() < 1.3
