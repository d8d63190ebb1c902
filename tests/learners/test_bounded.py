"""However many runs come, what is kept of them stays within the budget, and all else grows by rows of a fixed length.

Seven runs in `make test`, fifty in `make soak`. Counted twice: by what a strategy says of itself, and by its state's arrays.
"""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import GRADIENT, LIVE_BASELINES, NAMES, make_strategy
from dqmstream.learners.saved_state import STAMP
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader
from tests.scale import scaled

BUDGET = 40_000
"""So small that exemplars fill it from the first run on, and a few runs' statistics do."""

FEW, MANY = 6, scaled(7, 50)
EXEMPT = ("joint", "cumulative")
RECIPE = Recipe(dim=16, depth=2, heads=2, experts=4, steps=1, batch=16, fisher_samples=2)
STREAM = make_stream(MANY, drift=0.03, seed=9, n=100)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_does_not_grow_with_the_runs(name: str) -> None:
    strategy = make_strategy(name, geometry=Geometry(1), seed=0, recipe=RECIPE, memory_bytes=BUDGET, device="cpu")
    after: dict[int, tuple[int, int]] = {}
    for experience, run in enumerate(STREAM):
        strategy.learn(experience, run, reader(STREAM))
        after[experience + 1] = _nbytes(strategy.state(), experience + 1)
        if name not in (*EXEMPT, *LIVE_BASELINES):
            assert strategy.memory_bytes() <= BUDGET, f"after {experience + 1} runs"
    fixed, rows = after[MANY]
    # A row a run may not become longer, and what is not a row a run may fill the budget, once.
    assert rows / MANY <= 1.02 * after[FEW][1] / FEW
    assert fixed - after[FEW][0] <= (BUDGET if name not in LIVE_BASELINES else 0)
    if name in GRADIENT:
        assert strategy.state_bytes() <= 3 * (fixed + rows), "a teacher, a Fisher information: copies of the network, no more"


def _nbytes(state: dict[str, np.ndarray], classes: int) -> tuple[int, int]:
    """Bytes of the state's arrays that are no row a class, and of those that are; some have none for the reference run."""
    # The stamp is text, whose length may be any number.
    of_class = {
        name: array.nbytes for name, array in state.items() if name != STAMP and array.shape[:1] in ((classes,), (classes - 1,))
    }
    return sum(array.nbytes for name, array in state.items() if name not in of_class), sum(of_class.values())
