"""However many runs come, memory stays within the budget, and all else grows by a row of fixed length a run.

Seven runs in `make test`, fifty in `make soak`. Counted by the strategy itself and by the arrays of its state.
"""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import GRADIENT, NAMES, make_strategy, strategy_info
from dqmstream.learners.saved_state import STAMP
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader
from tests.scale import scaled

BUDGET = 40_000
"""So small that exemplars fill it from the first run, and closed forms after a few."""

FEW, MANY = 6, scaled(7, 50)
EXEMPT = ("joint", "cumulative")
RECIPE = Recipe(dim=16, depth=2, heads=2, experts=4, steps=1, batch=16, fisher_samples=2)
STREAM = make_stream(MANY, drift=0.03, seed=9, n=100)


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_runs(name: str) -> None:
    strategy = make_strategy(name, geometry=Geometry(1), seed=0, recipe=RECIPE, memory_bytes=BUDGET, device="cpu")
    after: dict[int, tuple[int, int]] = {}
    for experience, run in enumerate(STREAM):
        strategy.learn(experience, run, reader(STREAM))
        after[experience + 1] = _nbytes(strategy.state(), experience + 1)
        if strategy_info(name).budgeted and name not in EXEMPT:
            assert strategy.memory_bytes() <= BUDGET, f"after {experience + 1} runs"
    fixed, rows = after[MANY]
    # A row a run may not grow, and arrays without a row a run may fill the budget once.
    assert rows / MANY <= 1.02 * after[FEW][1] / FEW
    assert fixed - after[FEW][0] <= (BUDGET if strategy_info(name).budgeted else 0)
    if name in GRADIENT:
        assert strategy.state_bytes() <= 3 * (fixed + rows), (
            "no more than a few copies of the network, such as a teacher or Fisher information"
        )


def _nbytes(state: dict[str, np.ndarray], classes: int) -> tuple[int, int]:
    """Bytes of the state's arrays without a row a class, and of those with one (some have none for the first run)."""
    # The stamp is text, whose length may be any number.
    of_class = {
        name: array.nbytes for name, array in state.items() if name != STAMP and array.shape[:1] in ((classes,), (classes - 1,))
    }
    return sum(array.nbytes for name, array in state.items() if name not in of_class), sum(of_class.values())
