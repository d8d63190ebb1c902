"""At which addresses brokers could not be reached.

Mended: a client reaches the bootstrap address and then fails at the addresses that the cluster advertises; its error names
none of them. Seen with kafka-python 3.0.12. Not reported upstream.
"""

from __future__ import annotations

from typing import Any

from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, NodeNotReadyError, RequestTimedOutError

from dqmstream.streaming.kafka.workarounds import private_names

UNREACHED = (KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError, RequestTimedOutError)
"""What the client raises where a broker does not answer."""


def hint(client: Any, bootstrap: str, error: KafkaError) -> str:
    """What to do after an error of a client that has connected, empty unless a broker was not reached."""
    if not isinstance(error, UNREACHED):
        return ""
    advertised = ", ".join(sorted(f"{broker.host}:{broker.port}" for broker in private_names.cluster(client).brokers()))
    return (
        f"; {bootstrap} answered, and says that its brokers are at {advertised or 'no address'}: they must be up, and "
        "advertised.listeners in their settings must be addresses that this machine can reach"
    )
