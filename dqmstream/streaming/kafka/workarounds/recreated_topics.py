"""Which of the topics that ever had its name a consumer reads.

Mended: the client fetches by name, so it reads on in silence where a topic was deleted and made again, at least for as long
as its metadata are old; and only the admin client tells a topic's id. Seen with kafka-python 3.0.12. Not reported upstream;
for the Java client: KAFKA-12257.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import LeaderNotAvailableError, UnknownTopicOrPartitionError
from kafka.protocol.metadata import MetadataRequest, MetadataResponse

from dqmstream.errors import DataLostError
from dqmstream.streaming.kafka.workarounds import private_names


class Incarnation:
    """The topic that a consumer reads. name: topic, cluster id and topic id."""

    def __init__(self, consumer: KafkaConsumer, topic: str) -> None:
        self._topic = topic
        self._cluster = private_names.cluster(consumer)
        self._manager = private_names.manager(consumer)
        self._id = self._cluster.topic_id(topic)  # None before Kafka 2.8
        self.name = self._named(self._id)

    def _named(self, topic_id: Any) -> str:
        return f"{self._topic}@{self._cluster.cluster_id}.{topic_id or 'no-id'}"

    @property
    def exists(self) -> bool:
        """Whether the newest metadata know a topic of that name."""
        return self._cluster.partitions_for_topic(self._topic) is not None

    def check(self) -> None:
        """Raise DataLostError where the metadata that the client holds tell of another incarnation."""
        self._compare(self._cluster.topic_id(self._topic))

    def confirm(self, partitions: Collection[int], timeout_s: float) -> None:
        """Ask the leaders of the partitions for the topic's id as it is now.

        Raises DataLostError where it is another incarnation, KafkaError where a leader does not answer or know the topic.
        """
        if self._id is None:
            return
        leaders = {self._cluster.leader_for_partition(TopicPartition(self._topic, p)) for p in partitions}
        for found in self._manager.run(self._ask, leaders, timeout_s):
            if found is None:
                raise UnknownTopicOrPartitionError(self._topic)
            self._compare(found)

    def _compare(self, found: Any) -> None:
        if found is not None and found != self._id:
            raise DataLostError(
                f"{self.name} was deleted and made again as {self._named(found)}: start again to read the new one"
            )

    async def _ask(self, leaders: Collection[int | None], timeout_s: float) -> list[Any]:
        """The topic's id as each of these brokers has it; runs on the client's I/O thread."""
        request = MetadataRequest(
            topics=[MetadataRequest.MetadataRequestTopic(name=self._topic)], allow_auto_topic_creation=False
        )
        asked = [self._manager.send(request, node_id=self._own_connection(leader)) for leader in leaders]
        answers = [await self._manager.wait_for(answer, timeout_s * 1000) for answer in asked]
        return [answer.topics[0].topic_id for answer in answers]

    def _own_connection(self, leader: int | None) -> str:
        """Node id of a connection to this broker that no fetch uses: behind a fetch the answer waits up to half a second."""
        broker = self._cluster.broker_metadata(leader)
        if broker is None:
            raise LeaderNotAvailableError(self._topic)
        own = f"incarnation-{leader}"
        self._cluster._coordinator_brokers[own] = MetadataResponse.MetadataResponseBroker(own, broker.host, broker.port, None)
        return own
