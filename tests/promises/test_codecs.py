"""README: a topic in any codec is read; a missing codec ends the service, and no message is passed over."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaProducer

from dqmstream.storage.archive import Archive
from dqmstream.streaming.kafka import create_topic
from dqmstream.streaming.wire import encode
from tests.commandline import Command, result, told
from tests.maps import SOURCE, check_tiling, lumisection

pytestmark = pytest.mark.kafka

CODECS = [None, "gzip", "snappy", "lz4", "zstd"]


def send(bootstrap: str, topic: str, codec: str | None, numbers: range) -> None:
    with closing(
        KafkaProducer(bootstrap_servers=bootstrap, compression_type=codec, batch_size=2**18, linger_ms=50)
    ) as producer:
        for number in numbers:
            key, value, headers = encode(lumisection(7, number, source=SOURCE))
            producer.send(topic, value=value, key=key, headers=headers)
        producer.flush()


def consume(bootstrap: str, topic: str, archive: Path) -> tuple[object, ...]:
    flags = ("--bootstrap", bootstrap, "--topic", topic, "--archive", archive, "--source", SOURCE)
    return ("consume", *flags, "--no-learn", "--until-idle", 0.5)


def without_snappy() -> None:
    sys.modules["cramjam"] = None  # type: ignore[assignment]


def failed(*arguments: object) -> str:
    command = Command(*arguments, before=without_snappy)
    code = command.wait(100)
    return told(subprocess.CompletedProcess([], code, *command.communicate()), 4)


def test_every_codec_is_read_and_one_that_is_missing_ends_the_service_before_its_batch(
    bootstrap: str, topic: str, tmp_path: Path
) -> None:
    create_topic(bootstrap, topic, 1)
    for k, codec in enumerate(CODECS):
        send(bootstrap, topic, codec, range(1 + 8 * k, 9 + 8 * k))
    line = failed(*consume(bootstrap, topic, tmp_path / "A"))
    assert f"{topic}/0 cannot be read on from offset 16: it is compressed with snappy" in line
    assert "pip install cramjam" in line
    ((_, partitions),) = Archive.open(tmp_path / "A").offsets().items()
    assert partitions == {0: (0, 16)}  # what lay before it is filed
    done = result(*consume(bootstrap, topic, tmp_path / "A"))
    assert (done["rows"], done["dead"], done["waiting"]) == (24, 0, 0)
    head = Archive.open(tmp_path / "A")
    assert head.run(7)["lumisection"].values.tolist() == list(range(1, 41))
    check_tiling(head)


def test_a_topic_that_is_set_to_snappy_is_read_and_refused_at_start_where_snappy_is_missing(
    bootstrap: str, topic: str, tmp_path: Path
) -> None:
    create_topic(bootstrap, topic, 1, {"compression.type": "snappy"})
    send(bootstrap, topic, "zstd", range(1, 41))
    line = failed(*consume(bootstrap, topic, tmp_path / "A"))
    assert f"topic {topic} is compressed with snappy, which needs the package cramjam" in line
    assert not Archive.exists(tmp_path / "A")
    done = result(*consume(bootstrap, topic, tmp_path / "A"))
    assert (done["rows"], done["dead"]) == (40, 0)
