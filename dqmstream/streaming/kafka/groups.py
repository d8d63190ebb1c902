"""Other members of a consumer group."""

from __future__ import annotations

import structlog
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from dqmstream.streaming.kafka.connection import connect, reason

log = structlog.get_logger("dqmstream.kafka")


def warn_of_others(bootstrap: str, group: str, client_id: str) -> int:
    """Number of members of the group with another client id; warns of them, since partitions are shared with them.

    0 where the broker does not tell. Raises BrokerError if no broker answers.
    """
    admin = connect(KafkaAdminClient, bootstrap)
    try:
        members = admin.describe_groups([group])[group]["members"]
    except KafkaError as error:  # a user may have no right to ask, and a broker's first group takes a moment
        log.info("the members of the group cannot be read", group=group, error=reason(error))
        return 0
    finally:
        admin.close()
    others = sum(member["client_id"] != client_id for member in members)
    if others:
        log.warning(
            "the group has workers that do not file into this archive: each archive gets only some of the partitions; give "
            "each a --group of its own",
            group=group,
            others=others,
        )
    return others
