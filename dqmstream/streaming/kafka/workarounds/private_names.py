"""Every private name of kafka-python that is used here; tests compare this list with the installed version.

Tried with kafka-python 3.0.12.
"""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer

PRIVATE_NAMES = {
    "kafka.consumer.group.KafkaConsumer": ("_fetcher", "_manager", "_subscription"),
    "kafka.producer.kafka.KafkaProducer": ("_metadata",),
    "kafka.admin.client.KafkaAdminClient": ("_manager",),
    "kafka.cluster.ClusterMetadata": ("_coordinator_brokers",),
    "kafka.consumer.fetcher.Fetcher": ("_parse_fetched_data",),
    "kafka.consumer.fetcher.Fetcher.PartitionRecords": (
        "_unpack_records",
        "_consume_aborted_transactions_up_to",
        "_contains_abort_marker",
        "_is_batch_aborted",
    ),
    "kafka.record.memory_records.MemoryRecords": ("_buffer", "_next_slice"),
    "kafka.net.manager.KafkaConnectionManager": ("_build_transport",),
    "kafka.net.transport.KafkaTCPTransport": ("_sock", "_sock_recv"),
}
"""Class of the client, and its private attributes and methods that are read, replaced or overridden."""


def fetcher(consumer: KafkaConsumer) -> Any:
    """What fetches for a consumer (`kafka.consumer.fetcher.Fetcher`)."""
    return consumer._fetcher


def subscription(consumer: KafkaConsumer) -> Any:
    """The partitions of a consumer and their positions (`kafka.consumer.subscription_state.SubscriptionState`)."""
    return consumer._subscription


def manager(consumer: KafkaConsumer) -> Any:
    """What opens a consumer's connections and runs code on its I/O thread (`kafka.net.manager.KafkaConnectionManager`)."""
    return consumer._manager


def cluster(client: Any) -> Any:
    """What a consumer, producer or admin client knows of the cluster (`kafka.cluster.ClusterMetadata`)."""
    return client._metadata if hasattr(client, "_metadata") else client._manager.cluster
