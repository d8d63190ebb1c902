"""Messages that are sorted together become the same as one by one, in any mixture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming_data_types.dataarray_da00 import Variable

from dqmstream.lumisection import MAX_EVENTS, Geometry
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Row
from dqmstream.storage.layout import Quality
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming import sorting
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.filer import Filer
from dqmstream.streaming.message import Message, Slice
from dqmstream.streaming.sorting import Sorter
from dqmstream.streaming.wire import Undecodable
from tests.hostile import Draw, corpus, signed
from tests.hostile.draw import SOURCE, Headers, Made, occupancy, plain
from tests.maps import check_tiling

FEED = "hcal@cluster.topic"
NAN_WITH_A_PAYLOAD = np.frombuffer(b"\1\0\0\0\0\0\xf8\xff", np.float64)[0]


def with_number(name: str, number: int) -> Callable[[Draw], Made]:
    return lambda draw: plain(draw, draw.da00(**{name: Variable(name, np.array(number))}))


def with_events(number: float) -> Callable[[Draw], Made]:
    return lambda draw: plain(draw, draw.da00(n_events=Variable("n_events", np.array(number))))


def with_count(count: float) -> Callable[[Draw], Made]:
    def make(draw: Draw) -> Made:
        counts = draw.counts
        counts[draw.rng.integers(64), draw.rng.integers(72)] = count
        return plain(draw, draw.da00(occupancy=occupancy(counts)))

    return make


def with_events_and_count(n_events: float, count: float) -> Callable[[Draw], Made]:
    """A largest count that these events can, or cannot, give."""

    def make(draw: Draw) -> Made:
        counts = np.minimum(draw.counts, np.float32(count))
        counts[draw.rng.integers(64), draw.rng.integers(72)] = count
        return plain(draw, draw.da00(occupancy=occupancy(counts), n_events=Variable("n_events", np.array(n_events))))

    return make


def with_shares(n_events: float, divided_by: float) -> Callable[[Draw], Made]:
    """Counts divided by a number of events; the events of the message may be others, or unknown."""

    def make(draw: Draw) -> Made:
        shares = np.minimum(np.rint(draw.counts), divided_by) / np.float32(divided_by)
        events = None if np.isnan(n_events) else Variable("n_events", np.array(n_events))
        return plain(draw, draw.da00(occupancy=occupancy(shares.astype(np.float32)), n_events=events))

    return make


def with_time(time_ns: int) -> Callable[[Draw], Made]:
    return lambda draw: plain(draw, draw.da00(time_ns=time_ns))


def with_envelope(key: bytes | None, headers: Headers | None = None) -> Callable[[Draw], Made]:
    def make(draw: Draw) -> Made:
        value = draw.da00()
        return key, value, signed(value) if headers is None else headers

    return make


def with_a_byte_flipped(draw: Draw) -> Made:
    value = bytearray(draw.da00())
    value[draw.rng.integers(len(value))] ^= 1 << int(draw.rng.integers(8))
    return plain(draw, bytes(value))


def traced(draw: Draw) -> Made:
    value = draw.da00()
    return draw.key, value, signed(value, ("trace", b"1"))


OF_ONE_LAYOUT: list[Callable[[Draw], Made]] = [
    *(with_number(name, number) for name in ("run", "lumisection") for number in (0, -1, 2**31 - 1, 2**31, 2**40)),
    *map(with_events, (0.0, -0.0, -1.0, np.inf, -np.inf, np.nan, NAN_WITH_A_PAYLOAD, 5e-324, 900.0, 3e6, 3e6 + 1, 1e300)),
    *map(with_events_and_count, (900.0, 900.0, 1.5e6, np.nan, np.nan), (901.0, 902.0, 1.4e6, 3e6, 3_000_001.0)),
    *map(with_shares, (1500.0, 1499.6, 1500.0, np.nan, 0.0, np.inf), (1500.0, 1500.0, 1412.0, 1500.0, 1500.0, 1500.0)),
    *map(with_count, (np.nan, np.inf, -np.inf, -1.0, -0.0, 0.5, 65535.0, 65536.0, 3e38)),
    *map(with_time, (0, 1, -1, 2**62, 2**62 + 1, -(2**63))),
    *map(with_envelope, (None, b"", b"x", b" 1", b"0001")),
    *(with_envelope(None, headers) for headers in ([], [("crc32c", b"00000000")], [("crc32c", b"")])),
    with_a_byte_flipped,
    traced,
]  # fmt: skip
"""Messages of one length and layout, which differ in values and envelopes; some are valid and some are not."""


def mixture(seed: int, size: int) -> list[Message]:
    """Good messages, others of the same layout, and hostile ones of every kind."""
    rng = np.random.default_rng(seed)
    hostile = iter(corpus(seed, size, 3))
    found = []
    for index in range(size):
        draw = Draw(np.random.default_rng((seed, index)), index)
        choice = rng.random()
        if choice < 0.2:
            sent = next(hostile)
            key, value, headers = sent.key, sent.value, sent.headers
        elif choice < 0.5:
            key, value, headers = OF_ONE_LAYOUT[int(rng.integers(len(OF_ONE_LAYOUT)))](draw)
        else:
            key, value, headers = plain(draw, draw.da00())
        timestamp_ms = int(rng.choice([0, 1_650_000_000_123, -5, 2**62]))
        found.append(Message(0, index, key, value, headers, timestamp_ms))
    found[size // 2] = Message(0, size // 2, None, None, error="the client cannot read it")
    return found


def alone(sorter: Sorter, message: Message) -> Any:
    try:
        return sorter.entry(message)
    except (Undecodable, ValueError):
        return None


def told(row: Row) -> tuple[object, ...]:
    """All fields of a row, bit for bit."""
    values = (getattr(row, field.name) for field in dataclasses.fields(row))
    return tuple(_bits(value) for value in values)


def _bits(value: Any) -> object:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return (type(value), np.float64(value).tobytes()) if isinstance(value, float) else (type(value), value)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_shares_of_events_on_the_wire_become_counts_or_a_dead_letter_with_the_reason(dtype: str, tmp_path: Path) -> None:
    sorter = Sorter(Archive.create(tmp_path / "A", dtype=dtype), crc_required=True)
    draws = [Draw(np.random.default_rng(index), index) for index in range(4)]
    made = [with_shares(1500.0, 1500.0), with_shares(1499.6, 1500.0), with_shares(1500.0, 1412.0), with_shares(np.nan, 1500.0)]
    messages = [Message(0, draw.index, *make(draw), 0) for make, draw in zip(made, draws, strict=True)]
    for message, draw in zip(messages[:2], draws[:2], strict=True):
        row = sorter.entry(message)
        assert isinstance(row, Row) and row.quality == Quality.FROM_SHARES
        again = Draw(np.random.default_rng(draw.index), draw.index)
        np.testing.assert_array_equal(row.occupancy[0], np.minimum(np.rint(again.counts), 1500))
    with pytest.raises(ValueError, match=r"1500 events do not make them whole counts.*but 1412 events do"):
        sorter.entry(messages[2])
    with pytest.raises(ValueError, match="its number of events is unknown: give counts, or the events"):
        sorter.entry(messages[3])


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_messages_of_one_layout_become_the_same_together_and_alone(dtype: str, tmp_path: Path) -> None:
    sorter = Sorter(Archive.create(tmp_path / "A", dtype=dtype), crc_required=True)
    for make in OF_ONE_LAYOUT:
        draws = [Draw(np.random.default_rng(index), index) for index in range(3 * sorting.FEWEST_IN_TABLE)]
        made = [make(draw) if draw.index % 5 == 2 else plain(draw, draw.da00()) for draw in draws]
        messages = [Message(0, offset, *one, 1_650_000_000_123) for offset, one in enumerate(made)]
        together = sorter.rows(messages)
        by_itself = {m.offset: row for m in messages if isinstance(row := alone(sorter, m), Row)}
        # Shares of events are multiplied back one by one.
        expected = {offset: told(row) for offset, row in by_itself.items() if row.quality != Quality.FROM_SHARES}
        assert {offset: told(row) for offset, row in together.items()} == expected, "taken together and alone differ"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("crc_required", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_in_any_mixture_a_row_is_the_row_that_it_is_alone(
    dtype: str, crc_required: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sorter = Sorter(Archive.create(tmp_path_factory.mktemp("mixed") / "A", dtype=dtype), crc_required=crc_required)
    messages = mixture(seed, 60)
    for offset, row in sorter.rows(messages).items():
        assert told(row) == told(alone(sorter, messages[offset]))


@pytest.mark.parametrize("max_events", [MAX_EVENTS, 5000])
@pytest.mark.parametrize(("few", "dtype"), [(True, "float32"), (False, "float32"), (False, "uint16")])
def test_values_that_no_lumisection_has_become_no_row_and_all_others_do(
    few: bool, dtype: str, max_events: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same together and one by one; float64 maps are rounded."""
    monkeypatch.setattr(sorting, "FEWEST_IN_TABLE", 10**9 if few else 2)
    sorter = Sorter(Archive.create(tmp_path / "A", dtype=dtype), crc_required=True, max_events=max_events)
    most = min(float(max_events), np.inf if dtype == "float32" else 65535.0)
    cases = [  # n_events, pileup, largest count, whether it can be
        (1000.0, 30.0, 1000.0, True),
        (1000.0, 30.0, 1001.0, True),  # rates are rounded
        (1000.0, 30.0, 1002.0, False),
        (np.nan, np.nan, most, True),
        (np.nan, np.nan, float(np.nextafter(np.float32(most), np.float32(np.inf))), False),
        (np.nan, np.nan, 3e38, False),
        (0.0, 0.0, 0.0, True),
        (0.0, 0.0, 2.0, False),
        (float(max_events), 1000.0, 100.0, True),
        (max_events + 1.0, 62.0, 100.0, False),
        (1000.0, 1000.5, 100.0, False),
    ]
    made = []
    for index, (n_events, pileup, largest, _) in enumerate(cases):
        draw = Draw(np.random.default_rng(index), index)
        counts = np.zeros((64, 72))
        counts[9, 8] = largest
        variables = {name: Variable(name, np.array(value)) for name, value in (("n_events", n_events), ("pileup", pileup))}
        made.append(Message(0, index, *plain(draw, draw.da00(occupancy=occupancy(counts), **variables))))
    rows = sorter.rows(made)
    assert len(rows) == (0 if few else sum(fine for *_, fine in cases))
    taken = [isinstance(rows.get(m.offset) or alone(sorter, m), Row) for m in made]
    assert taken == [fine for *_, fine in cases]


def test_float64_maps_of_several_depths_are_taken_together_too(tmp_path: Path) -> None:
    sorter = Sorter(Archive.create(tmp_path / "A", geometry=Geometry(3)), crc_required=True)
    rng = np.random.default_rng(0)
    made = []
    for index in range(20):
        maps = rng.random((3, 64, 72)) * 1000
        value = Draw(rng, index).da00(occupancy=occupancy(maps, ["depth", "ieta", "iphi"]))
        made.append(Message(0, index, None, value, signed(value)))
    rows = sorter.rows(made)
    assert sorted(rows) == list(range(20))
    assert [told(rows[m.offset]) for m in made] == [told(alone(sorter, m)) for m in made]


@pytest.mark.parametrize("make", [lambda draw: plain(draw, draw.da00()), with_count(-1.0)], ids=["right", "wrong counts"])
def test_a_message_of_another_source_is_refused_for_that_before_its_counts_are_looked_at(
    make: Callable[[Draw], Made], tmp_path: Path
) -> None:
    sorter = Sorter(Archive.create(tmp_path / "A"), crc_required=True)
    draws = [Draw(np.random.default_rng(index), index) for index in range(2 * sorting.FEWEST_IN_TABLE)]
    messages = [Message(0, draw.index, *make(draw)) for draw in draws]
    assert sorter.rows(messages, "/Muon/Online#Other") == {}
    for message in messages:
        with pytest.raises(Undecodable, match=f"^the source is {SOURCE}, the archive holds /Muon/Online#Other$"):
            sorter.entry(message, "/Muon/Online#Other")


def test_few_messages_and_those_of_another_layout_are_left_to_be_sorted_alone(tmp_path: Path) -> None:
    sorter = Sorter(Archive.create(tmp_path / "A"), crc_required=True)
    draws = [Draw(np.random.default_rng(index), index) for index in range(40)]
    messages = [Message(0, draw.index, *plain(draw, draw.da00())) for draw in draws]
    assert sorter.rows(messages[: sorting.FEWEST_IN_TABLE - 1]) == {}
    other = Message(0, 7, *plain(draws[7], draws[7].da00(source=SOURCE[:-1] + "2")))
    rows = sorter.rows([*messages[:7], other, *messages[8:]])
    assert sorted(rows) == [offset for offset in range(40) if offset != 7]


def filed(folder: Path, messages: Sequence[Message], dtype: str) -> tuple[object, ...]:
    """What the messages became: rows, control entries, dead letters, counts."""
    archive = Archive.create(folder / "A", dtype=dtype, source=SOURCE)
    letters = FolderDeadLetters(folder / "letters")
    files = Filer(
        FEED, ArchiveWriter(archive), letters, topic="hcal", max_rows=1024, flush_s=1.0, crc_required=True
    )  # fmt: skip
    files.begin(0, 0)
    for at in range(0, len(messages), 100):
        part = messages[at : at + 100]
        files.take(Slice(0, at, at + len(part), part))
        files.file_all()
    head = archive.refresh()
    check_tiling(head)
    log = head.root["feeds"][FEED]["0"]
    columns = {name: array[:].tobytes() for name, array in log.arrays() if name != "committed"}
    control = {name: array[:].tolist() for name, array in log["control"].arrays()}
    kept = {path.name: json.loads(path.read_text()) for path in (folder / "letters").rglob("*.json")}
    return columns, control, kept, dataclasses.asdict(files.counts)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("seed", range(3))
def test_the_archive_is_the_same_whether_messages_are_sorted_together_or_alone(
    seed: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = mixture(seed, 500)
    together = filed(tmp_path / "together", messages, dtype)
    monkeypatch.setattr(sorting, "FEWEST_IN_TABLE", 10**9)
    assert filed(tmp_path / "alone", messages, dtype) == together
