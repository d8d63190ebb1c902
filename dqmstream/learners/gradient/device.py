"""The device that PyTorch computes on, and its random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dqmstream.errors import InputError


def chosen_device(name: str) -> torch.device:
    """The device of a name: auto (CUDA where there is one), cpu, cuda or cuda:N. Raises InputError for one that is not here."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if name not in ("auto", *here):
        raise InputError(f"device {name!r} is not here; choose one of auto, {', '.join(here)}")
    return torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)


@contextmanager
def seeded(seed: int, number: int) -> Iterator[torch.Generator]:
    """Seed PyTorch inside from a seed and a number, and give a generator of its own; restore PyTorch's state at the end.

    number: of an experience or epoch. A training that is seeded so needs no random state in a checkpoint.
    """
    first, second = (int(word) for word in np.random.SeedSequence([seed, number]).generate_state(2))
    with torch.random.fork_rng():
        torch.manual_seed(first)
        yield torch.Generator().manual_seed(second)
