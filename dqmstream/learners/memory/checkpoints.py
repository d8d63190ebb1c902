"""Which of the past models stay: a few, at ages that grow by a factor from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(learnt: Sequence[int], now: int, most: int) -> list[int]:
    """Those of the past models that stay, as positions in `learnt`.

    learnt: numbers of the runs after which the models were set aside, ascending, all before `now`. The oldest stays; of the
    others one after another is dropped whose neighbours' ages have the smallest ratio.
    """
    stay = list(range(len(learnt)))
    while len(stay) > max(most, 0):
        if len(stay) == 1:
            return []
        ages = np.log([now - learnt[place] for place in stay] + [0.5])  # the newest model stands for an age below 1
        stay.pop(1 + int(np.argmin(ages[:-2] - ages[2:])))
    return stay
