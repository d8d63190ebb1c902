"""Which lumisections a memory keeps when a run comes: policies, apart from where the rows lie (`learners.memory.exemplars`).

A policy is asked once a run. It looks at how many lumisections are kept of each old run and at those of the new one, and names
the old ones that stay and the new ones that come in. It keeps no rows, and no state but what the memory hands it.

Accuracy of replay (40 steps a run) on seeds 0, 1, 2 of `small`: 8 runs in 100 kB, 6 or 7 lumisections a run, balanced .402 .598
.477, reservoir .373 .548 .496, balanced_reservoir .450 .656 .502, herding .460 .767 .540; of these the first and the third are
one law, so .05 is chance. Of 20 runs in 1 MB, 26 a run, balanced .784 .852 .770, herding .790 .863 .807.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

Features = Callable[[], np.ndarray]
"""Features of the new run's lumisections, (n, features), made only when a policy asks."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What a policy decided. stay: of each old class, positions that stay, ascending. come: positions of the new run's."""

    stay: list[np.ndarray]
    come: np.ndarray


@dataclass(frozen=True, eq=False)
class Offer:
    """What a policy is asked. sizes: lumisections kept of each old class. new: lumisections of the new one.

    places: that fit in all, which may be fewer than before. seen: lumisections that were ever offered before these.
    """

    sizes: Sequence[int]
    new: int
    places: int
    seen: int
    features: Features


class Policy(Protocol):
    """Decides what is kept, by the offer and by random numbers of a generator that is seeded for this run alone."""

    def __call__(self, offer: Offer, rng: np.random.Generator) -> Choice: ...


def balanced(offer: Offer, rng: np.random.Generator) -> Choice:
    """An equal share for every class; within a class a random choice.

    Old classes keep the first of theirs, which were put in random order when they came.
    """
    return _first_of_each(offer, rng.permutation(offer.new))


def herding(offer: Offer, rng: np.random.Generator) -> Choice:
    """An equal share for every class; within a class those whose mean stays nearest to the mean of the run, best first.

    Each next one is argmin over x of |μ - (φ(x) + sum of those before) / k|, k of them with it. Source: iCaRL, algorithm 4
    (Rebuffi et al. 2017, arXiv:1611.07725); φ are residuals in place of a network's features, which would change.
    """
    share = equal_sizes([*offer.sizes, offer.new], offer.places)[-1]
    return _first_of_each(offer, herded(offer.features(), share))


def reservoir(offer: Offer, rng: np.random.Generator) -> Choice:
    """Every lumisection of the stream is kept with the same probability, places over how many there were.

    The t-th is put in place j, drawn from 0 ... t - 1, where there is such a place: algorithm R (Vitter, ACM Trans. Math.
    Softw. 11 (1985) 37). Every run thins out as 1/t: over a long stream some have nothing left.
    """
    held = sum(offer.sizes)
    owner = np.arange(held)
    if held > offer.places:  # fewer fit than did: what is left of a uniform choice by a uniform choice is one
        owner = np.sort(rng.choice(held, offer.places, replace=False))
    free = offer.places - len(owner)
    first = min(free, offer.new)  # none is free once something was turned away
    owner = np.concatenate([owner, held + np.arange(first)])
    later = np.arange(first, offer.new)
    place = rng.integers(0, offer.seen + later + 1)
    taken = place < len(owner)
    owner[place[taken]] = held + later[taken]  # of several in one place the last stays, as NumPy assigns
    owner.sort()
    start = np.cumsum([0, *offer.sizes])
    stay = [owner[(owner >= low) & (owner < high)] - low for low, high in pairwise(start)]
    return Choice(stay, owner[owner >= held] - held)


def balanced_reservoir(offer: Offer, rng: np.random.Generator) -> Choice:
    """Class-balancing reservoir sampling: a full memory gives up one of its largest class for one of a smaller class.

    Of a class that is or was the largest, the n-th lumisection takes the place of one of its m with probability m/n. Source:
    Chrysakis and Moens 2020 (ICML, PMLR 119:1952). It looks at each lumisection once and need not know where a run ends. Where
    every run is a class and comes in one piece, as here, it chooses as `balanced` does, by other random numbers.
    """
    stay = [list(range(size)) for size in offer.sizes]
    come: list[int] = []
    held, full = sum(offer.sizes), False

    def give_one_up() -> None:
        largest = max(map(len, stay))
        chosen = stay[int(rng.choice([i for i, kept in enumerate(stay) if len(kept) == largest]))]
        del chosen[int(rng.integers(largest))]

    for _ in range(held - offer.places):
        give_one_up()
    held = min(held, offer.places)
    for new in range(offer.new):
        full = full or len(come) >= max(map(len, stay), default=0)
        if held < offer.places:
            come.append(new)
            held += 1
        elif not full:
            give_one_up()
            come.append(new)
        elif rng.random() <= len(come) / (new + 1):
            come[int(rng.integers(len(come)))] = new
    return Choice([np.array(kept, dtype=np.int64) for kept in stay], np.array(come, dtype=np.int64))


POLICIES: dict[str, Policy] = {
    "balanced": balanced,
    "reservoir": reservoir,
    "balanced_reservoir": balanced_reservoir,
    "herding": herding,
}
"""By the name that a recipe gives as `memory`."""


def equal_sizes(there: Sequence[int], places: int) -> list[int]:
    """The share of each class: equal, the first ones more by one where it does not divide, none more than is there."""
    share, more = divmod(places, len(there))
    return [min(n, share + (i < more)) for i, n in enumerate(there)]


def herded(features: np.ndarray, most: int) -> np.ndarray:
    """Positions of so many rows of features (n, F), so that the mean of the first k is near that of all for each k: (most,)."""
    wanted = features.mean(axis=0, dtype=np.float64)
    # |μ - (s + φ)/k|² by products of matrices: k² of it is |φ|² + 2 φ·(s - k μ) and what is the same for every φ.
    square = np.einsum("nf,nf->n", features, features, dtype=np.float64)
    with_mean = features @ wanted
    with_sum = np.zeros(len(features))
    left = np.ones(len(features), dtype=bool)
    order = np.empty(most, dtype=np.int64)
    for k in range(most):
        cost = np.where(left, square + 2 * (with_sum - (k + 1) * with_mean), np.inf)
        order[k] = int(cost.argmin())
        left[order[k]] = False
        with_sum += features @ features[order[k]]
    return order


def _first_of_each(offer: Offer, order: np.ndarray) -> Choice:
    *old, new = equal_sizes([*offer.sizes, offer.new], offer.places)
    return Choice([np.arange(size) for size in old], order[:new])
