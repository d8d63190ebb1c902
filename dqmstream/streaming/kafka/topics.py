"""Topics of a broker: creating and checking them."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import ConfigResource
from kafka.errors import AuthorizationError, TopicAlreadyExistsError, UnsupportedVersionError

from dqmstream.errors import BrokerError
from dqmstream.streaming.kafka.codecs import CODECS, missing_codecs
from dqmstream.streaming.kafka.connection import connect, guarded, reason

log = structlog.get_logger("dqmstream.kafka")

REFUSED = (AuthorizationError, UnsupportedVersionError)
"""What the client raises where a broker does not tell its settings to this user, or to anybody."""


def check_broker(bootstrap: str) -> None:
    """Raise BrokerError if no broker answers there."""
    connect(KafkaAdminClient, bootstrap).close()


def create_topic(
    bootstrap: str, topic: str, partitions: int, settings: Mapping[str, str] | None = None, *, exist_ok: bool = False
) -> bool:
    """Create a topic with the broker's default number of replicas. False if it exists already and exist_ok is given.

    Raises BrokerError where the broker cannot be reached, refuses, or has the topic and exist_ok is not given.
    """
    admin = connect(KafkaAdminClient, bootstrap)
    asked = {topic: {"num_partitions": partitions, "configs": dict(settings or {})}}
    try:
        with guarded(admin, bootstrap, f"topic {topic} could not be made on {bootstrap}", (TopicAlreadyExistsError,)):
            admin.create_topics(asked, wait_for_metadata=True)
    except TopicAlreadyExistsError as error:
        if not exist_ok:
            raise BrokerError(f"topic {topic} exists already on {bootstrap}: leave out --create") from error
        return False
    finally:
        admin.close()
    return True


def check_topic(bootstrap: str, topic: str) -> int:
    """Number of partitions of the topic. Raises BrokerError if the broker has no topic of that name."""
    consumer = connect(KafkaConsumer, bootstrap, allow_auto_create_topics=False)
    try:
        with guarded(consumer, bootstrap, f"topic {topic} cannot be read"):
            if topic not in consumer.topics():
                raise BrokerError(missing(bootstrap, topic))
            return len(consumer.partitions_for_topic(topic))
    finally:
        consumer.close()


def topic_settings(bootstrap: str, topic: str) -> dict[str, str]:
    """The topic's settings by name, with the broker's defaults; empty where the broker does not tell them."""
    admin = connect(KafkaAdminClient, bootstrap)
    try:
        with guarded(admin, bootstrap, f"the settings of topic {topic} cannot be read", REFUSED):
            told = admin.describe_configs([ConfigResource("topic", topic)], config_filter="all")
    except REFUSED as error:
        log.info("the topic's settings cannot be read", topic=topic, error=reason(error))
        return {}
    finally:
        admin.close()
    return {
        name: config["value"] for name, config in told.get("topic", {}).get(topic, {}).items() if config["value"] is not None
    }


def check_codecs(bootstrap: str, topic: str) -> None:
    """Raise BrokerError where the topic's codec is not installed or not known; warn of other codecs that are missing."""
    codec = topic_settings(bootstrap, topic).get("compression.type", "producer")
    lacking = missing_codecs()
    if codec not in {"producer", "uncompressed", *(known.name for known in CODECS.values())}:
        raise BrokerError(
            f"topic {topic} is compressed with {codec}, which this version of dqmstream does not know: update dqmstream, or "
            "set the topic's compression.type to another"
        )
    if codec in lacking:
        package = lacking[codec]
        raise BrokerError(
            f"topic {topic} is compressed with {codec}, which needs the package {package}: pip install {package}, then start "
            "again"
        )
    for name, package in lacking.items():
        log.warning("this codec is not installed: a batch in it would end the service", codec=name, install=package)


def missing(bootstrap: str, topic: str) -> str:
    return f"{bootstrap} has no topic {topic}: make it, or start `dqmstream publish --create` first"
