"""How long the tests of the promises run: as `make test` has it, or, with DQMSTREAM_SOAK=1, as `make soak` has it."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

SESSION_MS = 3000
"""Time after which Kafka takes a worker for dead, where a test waits for that. Heartbeats come three times as often."""

SOAK = os.environ.get("DQMSTREAM_SOAK") == "1"


def scaled(test: T, soak: T) -> T:
    """One of the two."""
    return soak if SOAK else test
