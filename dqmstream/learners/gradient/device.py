"""What torch computes on, and from which random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dqmstream.errors import InputError


def chosen_device(name: str) -> torch.device:
    """name: auto (CUDA where there is one), cpu, cuda or cuda:N. Raises InputError for one that is not here."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if name not in ("auto", *here):
        raise InputError(f"device {name!r} is not here; choose one of auto, {', '.join(here)}")
    return torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)


@contextmanager
def seeded(seed: int, number: int) -> Iterator[torch.Generator]:
    """Seed torch for one experience or epoch and give a generator of its own; outside nothing has changed.

    A training that starts from (seed, number) needs no random state in a checkpoint.
    """
    first, second = (int(word) for word in np.random.SeedSequence([seed, number]).generate_state(2))
    with torch.random.fork_rng():
        torch.manual_seed(first)
        yield torch.Generator().manual_seed(second)
