"""README: any message becomes a row or a dead letter, and the next good one is stored.

Ten thousand fuzzed messages go through a real broker; DQMSTREAM_SOAK=1 makes it a hundred thousand and prints figures.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmstream.lumisection import Geometry, Lumisection
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import make_row
from dqmstream.storage.layout import ControlKind, feed_path
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.kafka import KafkaDeadLetters, KafkaFeed, KafkaSender, create_topic
from dqmstream.streaming.kafka.dead_letter_topic import read_letters
from dqmstream.streaming.message import Message
from dqmstream.streaming.wire import Undecodable, decode
from dqmstream.streaming.wire.envelope import READ_HEADERS
from dqmstream.streaming.wire.undecodable import LONGEST_REASON
from tests.hostile import KINDS, Draw, Sent, Witness, bomb, corpus, signed
from tests.hostile.draw import EVENTS
from tests.maps import SOURCE, check_tiling

SOAK = os.environ.get("DQMSTREAM_SOAK") == "1"
SIZE = 100_000 if SOAK else 10_000
GOOD_EVERY = 4
MEMORY_BYTES = 2**20
"""Memory for decoding a message at most, beside its own length."""

DECODE_S = 0.5
"""Far above the 50 us of a good message, and far below a hang."""

GEOMETRY, DTYPE = Geometry(), np.dtype("uint16")


def fate(message: Message) -> str:
    """The fate of a message in a uint16 archive of SOURCE; any other exception is a failure."""
    try:
        record = decode(message)
        if not isinstance(record, Lumisection):
            return "control"
        row = make_row(record, message.offset, GEOMETRY, DTYPE)
    except (Undecodable, ValueError) as error:
        assert "\n" not in str(error) and 0 < len(str(error)) <= LONGEST_REASON + 3
        return "dead"
    assert row.source.isprintable()
    return "row" if row.source in ("", SOURCE) else "dead"


def bounded_fate(message: Message) -> str:
    """The same, with bounds on memory and time."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        became = fate(message)
        took_s, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * message.size + MEMORY_BYTES
    assert took_s < DECODE_S
    return became


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("name", sorted(KINDS))
def test_each_kind_has_its_fate_and_takes_little(name: str, seed: int) -> None:
    make, expected = KINDS[name]
    key, value, headers = make(Draw(np.random.default_rng(seed), seed % 1000))
    became = bounded_fate(Message(0, 0, key, value, headers))
    assert became == expected or expected == "either"
    assert Witness.unpickled == 0


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_damage_behind_a_right_checksum_is_refused_or_read(data: st.DataObject) -> None:
    """Hypothesis chooses the damaged bytes, which seeds choose in the corpus."""
    whole, more = Draw(np.random.default_rng(data.draw(st.integers(0, 3))), 1).any_value()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, min(len(damaged), 600) - 1) | st.integers(0, len(damaged) - 1))
        replaced = data.draw(
            st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"]) | st.binary(min_size=1, max_size=4)
        )
        damaged[place : place + len(replaced)] = replaced
    value = bytes(damaged[: data.draw(st.just(len(damaged)) | st.integers(1, len(damaged)))])
    bounded_fate(Message(0, 0, None, value, signed(value, *more)))


@settings(max_examples=300, deadline=None)
@given(
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=200),
    headers=st.lists(st.tuples(st.sampled_from(sorted(READ_HEADERS)) | st.text(), st.none() | st.binary(max_size=20))),
)
def test_any_key_value_and_headers_are_refused(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    assert bounded_fate(Message(0, 0, key, value, headers)) == "dead"


@pytest.mark.parametrize("listed", [31, 255, 20_000])
def test_a_small_buffer_that_tells_of_terabytes_takes_no_memory(listed: int) -> None:
    value = bomb(listed, 1_000_000)
    assert bounded_fate(Message(0, 0, b"1", value, signed(value))) == "dead"


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_the_next_good_message_is_stored_without_a_broker_too(dtype: str, tmp_path: Path) -> None:
    """A float32 archive accepts large and fractional counts, which a uint16 one refuses."""
    sent = list(corpus(11, 600, GOOD_EVERY))
    messages = [Message(0, offset, one.key, one.value, one.headers) for offset, one in enumerate(sent)]
    archive = Archive.create(tmp_path / "A", dtype=dtype, source=SOURCE)
    feed = InProcessFeed("hcal", lambda: iter(messages), max_records=50)
    loop = Ingest(feed, ArchiveWriter(archive), FolderDeadLetters(tmp_path / "letters"), topic="hcal")
    while loop.counts.messages < len(messages):
        loop.step(0)
    assert loop.drain()
    loop.close()
    head = archive.refresh()
    check_tiling(head)
    rows = set(head.index.logs[("hcal", 0)].rows["offset"].tolist())
    letters = {int(path.stem) for path in (tmp_path / "letters").rglob("*.json")}
    refused_by_uint16 = {"above_uint16", "not_whole"} if dtype == "float32" else set()
    for offset, one in enumerate(sent):
        expected = "row" if one.kind in refused_by_uint16 else one.fate
        became = "row" if offset in rows else "dead" if offset in letters else "neither"
        assert expected in (became, "either") or (became == "neither" and expected in ("control", "duplicate")), one.kind
    assert rows & letters == set()
    assert (loop.counts.rows, loop.counts.dead) == (len(rows), len(letters))


def send(bootstrap: str, topic: str, messages: Sequence[Sent]) -> None:
    sender = KafkaSender(bootstrap, topic)
    for message in messages:
        sender.send(message.key, message.value, message.headers)
    sender.flush()
    sender.close()


def check_letters(bootstrap: str, topic: str, messages: Sequence[Sent], dead: set[int]) -> None:
    """Each dead message, and no other, is whole in the dead-letter topic, with its place and its reason."""
    found = set()
    for letter in read_letters(bootstrap, f"{topic}.deadletter"):
        sent = messages[letter.offset]
        found.add(letter.offset)
        assert (letter.topic, letter.partition, letter.cut) == (topic, 0, ())
        assert letter.timestamp_ms > 0 and letter.reason
        assert (letter.original_key, letter.value, letter.headers) == (sent.key, sent.value, tuple(sent.headers)), sent.kind
    assert found == dead


def good_contents(messages: Sequence[Sent]) -> Counter[tuple[int, int, int]]:
    """(run, lumisection, content) of each good message, computed again from its index."""
    found: Counter[tuple[int, int, int]] = Counter()
    for index in range(0, len(messages), GOOD_EVERY):
        draw = Draw(np.random.default_rng(0), index)
        record = Lumisection(draw.run, draw.number, draw.counts, n_events=EVENTS)
        row = make_row(record, index, GEOMETRY, DTYPE)
        found[row.run, row.lumisection, row.content] += 1
    return found


@pytest.mark.kafka
@pytest.mark.timeout(1800 if SOAK else 300)
def test_every_good_message_is_stored_once_among_hostile_ones(bootstrap: str, topic: str, tmp_path: Path) -> None:
    began = time.monotonic()
    messages = list(corpus(7, SIZE, GOOD_EVERY))
    create_topic(bootstrap, topic, 1, {"max.message.bytes": str(2**22)})
    send(bootstrap, topic, messages)
    sent_s = time.monotonic() - began
    archive = Archive.create(tmp_path / "A", dtype="uint16", source=SOURCE)
    feed = KafkaFeed(bootstrap, topic, "group")
    letters = KafkaDeadLetters(bootstrap, f"{topic}.deadletter")
    loop = Ingest(feed, ArchiveWriter(archive), letters, topic=topic)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    while loop.counts.messages < SIZE:
        loop.step(0.2)
    assert loop.drain()
    loop.close()
    feed.close()
    letters.close()
    filed_s = time.monotonic() - began
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024

    head = archive.refresh()
    check_tiling(head)
    ((name, offsets),) = head.offsets().items()
    assert offsets == {0: (0, SIZE)}
    control = head.control(name, 0)
    became = {int(offset): "row" for offset in head.index.logs[(name, 0)].rows["offset"]}
    fates = {
        ControlKind.DEAD: "dead",
        ControlKind.DUPLICATE: "duplicate",
        ControlKind.START: "control",
        ControlKind.STOP: "control",
    }
    became |= {
        int(o): fates[ControlKind(int(k))] for o, k in zip(control["offset"].values, control["kind"].values, strict=True)
    }
    wrong = [
        (offset, sent.kind, became[offset])
        for offset, sent in enumerate(messages)
        if sent.fate not in ("either", became[offset])
    ]
    assert wrong == []
    assert all(
        reason
        for reason, kind in zip(control["reason"].values, control["kind"].values, strict=True)
        if kind == ControlKind.DEAD
    )
    tally = Counter(became.values())
    counts = loop.counts
    assert (counts.rows, counts.dead, counts.duplicates) == (tally["row"], tally["dead"], tally["duplicate"])
    rows = head.index.logs[(name, 0)].rows
    stored = Counter(zip(rows["run"].tolist(), rows["lumisection"].tolist(), rows["content"].tolist(), strict=True))
    assert good_contents(messages) <= stored and set(stored.values()) == {1}
    with xr.open_zarr(head.store, group=feed_path(name, 0), consolidated=False) as log:  # as others read it
        assert np.fmin.reduce(log["time"].values) > np.datetime64("1970")  # of those that are known
        assert log["occupancy"][-1].values.max() > 0
    check_letters(bootstrap, topic, messages, {offset for offset, what in became.items() if what == "dead"})
    assert Witness.unpickled == 0
    assert grown_mb < 1024
    if SOAK:
        print(
            f"\n{SIZE} messages: made and sent {sent_s:.1f} s, filed {filed_s:.1f} s, memory +{grown_mb:.0f} MB",
            file=sys.stderr,
        )
        for name_of_kind, count in sorted(Counter((sent.kind, became[k]) for k, sent in enumerate(messages)).items()):
            print(f"  {name_of_kind[0]:28s} {name_of_kind[1]:10s} {count}", file=sys.stderr)
