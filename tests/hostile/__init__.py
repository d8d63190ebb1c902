"""A corpus of messages from broken, careless or hostile producers, each with the fate that it must have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.hostile.draw import KINDS, Draw, Made, Sent, plain, signed
from tests.hostile.envelopes import NAME, bomb
from tests.hostile.values import Witness

__all__ = ["KINDS", "NAME", "Draw", "Sent", "Witness", "bomb", "corpus", "signed"]


def good(draw: Draw) -> Made:
    return plain(draw, draw.da00())


def corpus(seed: int, size: int, good_every: int) -> Iterator[Sent]:
    """`size` messages: one in good_every is good, and one in fifty of the others repeats a good one."""
    names = sorted(KINDS)
    for index in range(size):
        draw = Draw(np.random.default_rng((seed, index)), index)
        if index % good_every == 0:
            yield Sent("good", *good(draw), "row")
        elif index > good_every and draw.rng.random() < 0.02:
            earlier = Draw(draw.rng, good_every * int(draw.rng.integers(index // good_every)))
            yield Sent("good_again", *good(earlier), "duplicate")
        else:
            name = names[int(draw.rng.integers(len(names)))]
            make, fate = KINDS[name]
            yield Sent(name, *make(draw), fate)
