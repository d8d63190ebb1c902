"""Access to the client of a feed, for tests in which something happens to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka.consumer.subscription_state import ConsumerRebalanceListener

from dqmstream.streaming.kafka import feed


class RecordedConsumer(KafkaConsumer):
    """A consumer that keeps its listener."""

    listener: ConsumerRebalanceListener

    def subscribe(self, topics: Sequence[str] = (), pattern: str | None = None, listener: Any = None) -> None:
        self.listener = listener
        super().subscribe(topics, pattern, listener)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RecordedConsumer]:
    """The consumers of all feeds that are made from now on."""
    made: list[RecordedConsumer] = []

    class Recorded(RecordedConsumer):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            made.append(self)

    monkeypatch.setattr(feed, "KafkaConsumer", Recorded)
    return made
