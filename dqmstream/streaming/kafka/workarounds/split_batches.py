"""Waiting until all messages were acknowledged.

Mended: `KafkaProducer.flush` raises where a batch was too large and is sent again in parts, although every message may still
arrive; and where messages are refused it returns as if they had arrived. Seen with kafka-python 3.0.12. Not reported upstream;
for the Java client: KAFKA-19479.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kafka.errors import KafkaError


def wait_for_acknowledgements(futures: Sequence[Any], timeout_s: float) -> list[KafkaError]:
    """Wait for the futures that `KafkaProducer.send` returned; returns the errors of those that failed."""
    errors: list[KafkaError] = []
    deadline = time.monotonic() + timeout_s
    for future in futures:
        try:
            future.get(timeout=max(deadline - time.monotonic(), 0.0))
        except KafkaError as error:
            errors.append(error)
    return errors
