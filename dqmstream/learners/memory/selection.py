"""Which lumisections a memory keeps when a run arrives: the policies.

A policy is called once a run. It gets the numbers of lumisections kept of each old run and offered of the new one, and returns
which old ones stay and which new ones are added. It holds neither rows nor state (`memory.exemplars`). Accuracies with each
policy: docs/decisions/2026-11-29-closed-forms.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

Features = Callable[[], np.ndarray]
"""Features of the new run's lumisections, (n, features), computed only when a policy calls this."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Decision of a policy. stay: for each old class, positions that stay, ascending. come: positions added of the new run."""

    stay: list[np.ndarray]
    come: np.ndarray


@dataclass(frozen=True, eq=False)
class Offer:
    """Input of a policy. sizes: lumisections kept of each old class. new: lumisections of the new run.

    places: lumisections that fit in total, perhaps fewer than before. seen: lumisections offered in all earlier calls.
    features: of the new run.
    """

    sizes: Sequence[int]
    new: int
    places: int
    seen: int
    features: Features


class Policy(Protocol):
    """Decides what is kept, from the offer and a random generator that is seeded for this run."""

    def __call__(self, offer: Offer, rng: np.random.Generator) -> Choice: ...


def balanced(offer: Offer, rng: np.random.Generator) -> Choice:
    """An equal share for every class; within a class, a random choice.

    Lumisections are put in random order when they are added; later, the first ones stay.
    """
    return _first_of_each(offer, rng.permutation(offer.new))


def herding(offer: Offer, rng: np.random.Generator) -> Choice:
    """An equal share for every class; within a class, those whose mean is nearest to the mean of the run, best first.

    The k-th is argmin over x of |μ - (φ(x) + sum of the k - 1 before) / k|, with φ the features and μ their mean. Source:
    iCaRL, algorithm 4 (Rebuffi et al. 2017, arXiv:1611.07725). φ are residuals here, since a network's features change.
    """
    share = equal_sizes([*offer.sizes, offer.new], offer.places)[-1]
    return _first_of_each(offer, herded(offer.features(), share))


def reservoir(offer: Offer, rng: np.random.Generator) -> Choice:
    """Every lumisection of the stream is kept with the same probability: places / lumisections so far.

    For the t-th, j is drawn from 0 ... t - 1; if place j exists, it goes there. Source: algorithm R (Vitter, ACM Trans. Math.
    Softw. 11 (1985) 37). The share of each run falls as 1/t; over a long stream some runs have none left.
    """
    held = sum(offer.sizes)
    owner = np.arange(held)
    if held > offer.places:  # fewer places than before: a uniform choice of a uniform choice is uniform
        owner = np.sort(rng.choice(held, offer.places, replace=False))
    free = offer.places - len(owner)
    first = min(free, offer.new)  # no place is free once a lumisection was rejected
    owner = np.concatenate([owner, held + np.arange(first)])
    later = np.arange(first, offer.new)
    place = rng.integers(0, offer.seen + later + 1)
    taken = place < len(owner)
    owner[place[taken]] = held + later[taken]  # of several drawn for one place, NumPy assigns the last
    owner.sort()
    start = np.cumsum([0, *offer.sizes])
    stay = [owner[(owner >= low) & (owner < high)] - low for low, high in pairwise(start)]
    return Choice(stay, owner[owner >= held] - held)


def balanced_reservoir(offer: Offer, rng: np.random.Generator) -> Choice:
    """Class-balancing reservoir sampling: a lumisection of a smaller class replaces a random one of the largest class.

    For a class that is or was the largest, the n-th lumisection replaces one of its m with probability m/n. Source: Chrysakis
    and Moens 2020 (ICML, PMLR 119:1952). It sees each lumisection once and needs no run boundaries. Where every run is a class
    and arrives as a whole, as here, the choice follows the same law as `balanced`, with other random numbers.
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
"""Policies by name, as in the `memory` entry of a recipe."""


def equal_sizes(available: Sequence[int], places: int) -> list[int]:
    """Equal shares of the places for each class, the first ones larger by one if needed; none larger than the class itself."""
    share, more = divmod(places, len(available))
    return [min(n, share + (i < more)) for i, n in enumerate(available)]


def herded(features: np.ndarray, most: int) -> np.ndarray:
    """Positions of rows of features (n, F), chosen so that for each k the mean of the first k is near that of all: (most,)."""
    wanted = features.mean(axis=0, dtype=np.float64)
    # k² |μ - (s + φ)/k|² = |φ|² + 2 φ·(s - k μ) + terms without φ, with s the sum of those chosen: matrix products.
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
