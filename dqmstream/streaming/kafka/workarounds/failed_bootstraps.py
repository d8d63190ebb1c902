"""The reason why no broker could be reached.

Mended: a wrong password, an unknown certificate and a closed port all raise `KafkaTimeoutError: Unable to bootstrap`, after
30 s unless told otherwise; the reason stands only in the client's log. Seen with kafka-python 3.0.12. Reported for a failed
name lookup: dpkp/kafka-python issue 2671 (closed).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from kafka.errors import KafkaError

from dqmstream.errors import BrokerError


class _Warnings(logging.Handler):
    """Keeps what the client warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def explained(bootstrap: str) -> Iterator[None]:
    """Turn the client's errors into a BrokerError with the reason from its log."""
    logger = logging.getLogger("kafka")
    warnings = _Warnings()
    logger.addHandler(warnings)
    try:
        yield
    except (KafkaError, OSError) as error:
        why = warnings.messages[-1] if warnings.messages else str(error) or type(error).__name__
        raise BrokerError(f"no Kafka broker answers at {bootstrap}: {why}; is it running, and is --bootstrap right?") from error
    finally:
        logger.removeHandler(warnings)
