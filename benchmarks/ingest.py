"""How fast messages become committed rows, against a bare poll loop of the same topic; and how long one waits at real rate.

    python -m tools.broker run -- python -m benchmarks.ingest

Prints one JSON object. A ratio is the median of those of a bare loop and the ingest right after it, each in a process of its
own (the allocator of one that has filed serves a bare loop better); all else depends on the machine.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from dqmstream.lumisection import Lumisection, RunStart, RunStop, he_depth1_mask
from dqmstream.storage.archive import Archive
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.kafka import KafkaFeed, KafkaSender, create_topic
from dqmstream.streaming.wire import encode

LUMISECTIONS_A_RUN = 1000

SOURCE = "/Bench#occupancy"

WARM_UP = 4
"""Rates are of what comes behind the first so-manieth part: a consumer runs for months, and its memory is made once."""


def produce(bootstrap: str, topic: str, messages: int, partitions: int, compression: str | None) -> None:
    """Runs of 1000 lumisections of 18 KB each, counts as a detector gives them."""
    create_topic(bootstrap, topic, partitions)
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, compression_type=compression, linger_ms=5, batch_size=256 * 2**10, acks="all"
    )

    def send(key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        producer.send(topic, key=key, value=value, headers=headers)

    rng = np.random.default_rng(0)
    live = he_depth1_mask()
    occupancy = np.zeros((64, 72), np.float32)
    for number in range(messages):
        run, lumisection = 1 + number // LUMISECTIONS_A_RUN, 1 + number % LUMISECTIONS_A_RUN
        if lumisection == 1:
            send(*encode(RunStart(run)))
        occupancy[live] = rng.binomial(1500, 0.5, int(live.sum()))
        record = Lumisection(run, lumisection, occupancy, n_events=1500.0, source=SOURCE)
        send(*encode(record))
        if lumisection == LUMISECTIONS_A_RUN:
            send(*encode(RunStop(run)))
    producer.flush()
    producer.close()


def apart(measure: Callable[..., float], *arguments: Any) -> float:
    """What it measures in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=quiet) as pool:
        return pool.submit(measure, *arguments).result()


def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def bare_poll(bootstrap: str, topic: str, expected: int) -> float:
    """Messages a second of a loop that only polls."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        max_poll_records=256,
        max_partition_fetch_bytes=4 * 2**20,
        fetch_max_bytes=16 * 2**20,
    )
    parts = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    seen = 0
    while seen < expected // WARM_UP:
        seen += sum(map(len, consumer.poll(timeout_ms=500).values()))
    began, first = time.perf_counter(), seen
    while seen < expected:
        seen += sum(map(len, consumer.poll(timeout_ms=500).values()))
    rate = (seen - first) / (time.perf_counter() - began)
    consumer.close()
    return rate


def consume(bootstrap: str, topic: str, expected: int, folder: Path, profile: Path | None = None) -> float:
    """Rows that are committed a second, till the last one is."""
    archive = Archive.create(folder / "A", source=SOURCE)
    feed = KafkaFeed(bootstrap, topic, f"bench-{archive.archive_id}")
    ingest = Ingest(feed, ArchiveWriter(archive), FolderDeadLetters(folder / "letters"), topic=topic)
    while ingest.counts.messages < expected // WARM_UP:
        ingest.step(0.2)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    began, first = time.perf_counter(), ingest.counts.rows
    while ingest.counts.messages < expected:
        ingest.step(0.2)
    ingest.drain()
    rate = (ingest.counts.rows - first) / (time.perf_counter() - began)
    if profile:
        profiler.disable()
        with profile.open("w") as file:
            pstats.Stats(profiler, stream=file).sort_stats("tottime").print_stats(40)
    assert ingest.counts.rows == sum(s.lumisections for s in archive.refresh().runs())
    ingest.close()
    feed.close()
    return rate


def delays(bootstrap: str, folder: Path, messages: int, interval_s: float) -> list[float]:
    """Seconds from the producer's acknowledgement-free send to the commit, one lumisection every interval_s."""
    topic = f"delay-{os.getpid()}"
    create_topic(bootstrap, topic, 1)
    archive = Archive.create(folder / "D", source=SOURCE)
    feed = KafkaFeed(bootstrap, topic, f"bench-{archive.archive_id}")
    ingest = Ingest(feed, ArchiveWriter(archive), FolderDeadLetters(folder / "letters"), topic=topic)
    sender = KafkaSender(bootstrap, topic)
    while ingest.step(0.05) == 0 and not feed.exhausted:
        pass
    found = []
    for number in range(1, messages + 1):
        due = time.perf_counter() + interval_s
        sent = time.perf_counter()
        sender.send(*encode(Lumisection(1, number, np.full((64, 72), number, np.float32), source=SOURCE)))
        sender.flush()
        while ingest.counts.rows < number:
            ingest.step(0.05)
        found.append(time.perf_counter() - sent)
        while time.perf_counter() < due:
            ingest.step(0.05)
    sender.close()
    ingest.close()
    feed.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default=os.environ.get("DQMSTREAM_BOOTSTRAP"), help="host:port of a broker")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", type=Path, help="write the profile of the polling thread there")
    options = parser.parse_args()
    quiet()
    found: dict[str, Any] = {}
    for compression in (None, "zstd"):
        topic = f"bench-{compression}-{os.getpid()}"
        produce(options.bootstrap, topic, options.messages, options.partitions, compression)
        total = options.messages + 2 * (options.messages // LUMISECTIONS_A_RUN)
        bare, filed = [], []
        for _ in range(options.repeats):
            bare.append(apart(bare_poll, options.bootstrap, topic, total))
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                filed.append(apart(consume, options.bootstrap, topic, total, Path(folder), options.profile))
        found[compression or "uncompressed"] = {
            "messages": total,
            "bare_poll_per_s": [round(rate) for rate in bare],
            "committed_per_s": [round(rate) for rate in filed],
            "ratio": round(statistics.median(f / b for f, b in zip(filed, bare, strict=True)), 3),
        }
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        waits = delays(options.bootstrap, Path(folder), 20, 1.5)
    found["delay_s"] = {"median": round(statistics.median(waits), 4), "max": round(max(waits), 4)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
