"""The wire: records come back as they were sent, and damaged messages are refused with a reason."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from streaming_data_types.dataarray_da00 import Variable, deserialise_da00, serialise_da00
from streaming_data_types.run_start_pl72 import serialise_pl72
from streaming_data_types.run_stop_6s4t import serialise_6s4t

from dqmstream.lumisection import Lumisection, RunStart, RunStop
from dqmstream.streaming.message import Message
from dqmstream.streaming.wire import Undecodable, check_decoders, checksum, decode, encode, run_control
from dqmstream.streaming.wire import da00 as da00_format
from tests.maps import SOURCE, lumisection


def message(record: object) -> Message:
    key, value, headers = encode(record)  # type: ignore[arg-type]
    return Message(0, 0, key, value, headers)


def signed(value: bytes, key: bytes | None = None, **headers: bytes) -> Message:
    """A message with the right checksum of its value, which may be anything."""
    return Message(0, 0, key, value, [("crc32c", checksum(value)), *headers.items()])


@settings(max_examples=50, deadline=None)
@given(
    run=st.integers(1, 2**31 - 1),
    number=st.integers(1, 2**31 - 1),
    time_ns=st.integers(0, 2**62),
    n_events=st.none() | st.floats(0, 1e9),
    occupancy=st.sampled_from([np.float32, np.float64, np.uint16, np.int32]).flatmap(
        lambda dtype: arrays(dtype, st.sampled_from([(64, 72), (7, 64, 72)]), elements=st.integers(0, 1000), fill=st.just(0))
    ),
)
def test_a_lumisection_survives_the_wire(
    run: int, number: int, time_ns: int, n_events: float | None, occupancy: np.ndarray
) -> None:
    sent = Lumisection(run, number, occupancy, time_ns, np.nan if n_events is None else n_events, source=SOURCE)
    got = decode(message(sent))
    assert isinstance(got, Lumisection)
    assert (got.run, got.lumisection, got.time_ns, got.source) == (run, number, time_ns, SOURCE)
    np.testing.assert_array_equal(got.occupancy, occupancy)
    assert got.occupancy.dtype == occupancy.dtype
    np.testing.assert_array_equal([got.n_events, got.pileup], [np.nan if n_events is None else n_events, np.nan])


def test_the_library_of_the_schema_reads_what_is_sent() -> None:
    key, value, headers = encode(lumisection(355456, 17))
    array = deserialise_da00(value)
    variables = {variable.name: variable for variable in array.data}
    assert key == b"355456"
    assert headers == [("crc32c", checksum(value))]
    assert array.source_name == SOURCE
    assert variables["occupancy"].axes == ["ieta", "iphi"]
    assert variables["occupancy"].unit == "count"
    assert (variables["run"].data, variables["lumisection"].data, variables["n_events"].data) == (355456, 17, 1500.0)
    assert "pileup" not in variables


def test_run_starts_and_stops_survive_the_wire() -> None:
    for record in (RunStart(355456, 1_650_000_000_123_000_000), RunStop(355456, 1_650_000_000_123_000_000)):
        assert decode(message(record)) == record


def test_npy_bytes_are_the_second_format() -> None:
    buffer = io.BytesIO()
    counts = np.arange(64 * 72, dtype=np.float64).reshape(64, 72)
    np.save(buffer, counts)
    got = decode(signed(buffer.getvalue(), run=b"12", lumisection=b"3", n_events=b"1500"))
    assert isinstance(got, Lumisection)
    assert (got.run, got.lumisection, got.n_events) == (12, 3, 1500.0)
    np.testing.assert_array_equal(got.occupancy, counts)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def da00(time_ns: int = 0, **changes: Variable | None) -> bytes:
    variables = {
        "occupancy": Variable("occupancy", np.zeros((64, 72), np.float32), axes=["ieta", "iphi"], unit="count"),
        "run": Variable("run", np.array(5)),
        "lumisection": Variable("lumisection", np.array(6)),
        **changes,
    }
    return serialise_da00(SOURCE, time_ns, [variable for variable in variables.values() if variable is not None])


def start(name: str) -> bytes:
    return serialise_pl72(job_id="", filename="", run_name=name, start_time=0, stop_time=0)


GOOD = da00()

BAD = {
    "empty": (Message(0, 0, None, b""), "empty"),
    "no value": (Message(0, 0, None, None), "empty"),
    "no checksum": (Message(0, 0, None, GOOD), "no header crc32c"),
    "wrong checksum": (Message(0, 0, None, GOOD, [("crc32c", b"00000000")]), "header crc32c is"),
    "upper-case checksum": (Message(0, 0, None, GOOD, [("crc32c", checksum(GOOD).upper())]), "header crc32c is"),
    "unknown format": (signed(b"\x00" * 40), "no known format"),
    "truncated": (signed(GOOD[:200]), "^the value is damaged, it cannot be read as da00: "),
    "key of another run": (signed(GOOD, key=b"6"), "the key is"),
    "no run": (signed(da00(run=None)), "no variable run"),
    "no map": (signed(da00(occupancy=None)), "no variable occupancy"),
    "run as a float": (signed(da00(run=Variable("run", np.array(5.0)))), "whole number"),
    "run as an array": (signed(da00(run=Variable("run", np.arange(3)))), "whole number"),
    "run zero": (signed(da00(run=Variable("run", np.array(0)))), "^run 0 is not in 1..2147483647$"),
    "lumisection beyond int32": (
        signed(da00(lumisection=Variable("lumisection", np.array(2**31)))),
        "^lumisection 2147483648 is not in",
    ),
    "run start below zero": (signed(start("-3")), "^run_name is b'-3', not a whole number$"),
    "run start of run zero": (signed(start("0")), "^run 0 is not in"),
    "run start beyond int32": (signed(start("9999999999")), "^run 9999999999 is not in"),
    "no run name": (signed(serialise_6s4t(job_id="", run_name="", stop_time=0)), "^run_name is b'', not a whole number"),
    "stop after all time": (signed(serialise_6s4t(job_id="", run_name="7", stop_time=2**63)), "^the time .* is not in 0"),
    "time below zero": (signed(da00(time_ns=-1)), "^the time -1 ns since 1970 is not in 0"),
    "source that is no text": (
        signed(npy(np.zeros((64, 72))), run=b"1", lumisection=b"1", source=b"\xff"),
        "^header source is .* not UTF-8$",
    ),
    "npy of lumisection zero": (signed(npy(np.zeros((64, 72))), run=b"1", lumisection=b"0"), "^lumisection 0 is not in"),
    "events as text": (signed(da00(n_events=Variable("n_events", "many"))), "float64"),
    "wrong axes": (
        signed(da00(occupancy=Variable("occupancy", np.zeros((72, 64), np.float32), axes=["iphi", "ieta"], unit="count"))),
        "axes",
    ),
    "wrong unit": (
        signed(da00(occupancy=Variable("occupancy", np.zeros((64, 72), np.float32), axes=["ieta", "iphi"], unit="mm"))),
        "unit",
    ),
    "pickled npy": (signed(npy(np.array([{}], dtype=object)), run=b"1", lumisection=b"1"), "no occupancy map"),
    "npy that claims more than it holds": (signed(npy(np.zeros((64, 72)))[:-8], run=b"1", lumisection=b"1"), "bytes follow"),
    "npy without headers": (signed(npy(np.zeros((64, 72)))), "no header"),
    "npy with a word for a run": (signed(npy(np.zeros((64, 72))), run=b"one", lumisection=b"1"), "not a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_message_is_refused_with_its_reason(case: str) -> None:
    bad, reason = BAD[case]
    with pytest.raises(Undecodable, match=reason):
        decode(bad)


def test_the_checksum_may_be_made_optional_but_never_ignored() -> None:
    assert isinstance(decode(Message(0, 0, None, GOOD), crc_required=False), Lumisection)
    with pytest.raises(Undecodable, match="header crc32c is"):
        decode(Message(0, 0, None, GOOD, [("crc32c", b"00000000")]), crc_required=False)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(GOOD) * 8 - 1))
def test_no_flipped_bit_gets_through(place: int) -> None:
    damaged = bytearray(GOOD)
    damaged[place // 8] ^= 1 << place % 8
    sent = message(lumisection(1, 1))
    with pytest.raises(Undecodable):
        decode(dataclasses.replace(sent, key=None, value=bytes(damaged), headers=[("crc32c", checksum(GOOD))]))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", b"da00", b"pl72", b"6s4t", b"\x93NUMPY"]))
def test_random_bytes_raise_undecodable_and_nothing_else(noise: bytes, magic: bytes) -> None:
    value = noise[:4] + magic + noise[4:] if magic[:1] != b"\x93" else magic + noise
    with pytest.raises(Undecodable):
        decode(signed(value, run=b"1", lumisection=b"1"))


@pytest.mark.parametrize("error", [MemoryError("none left"), ImportError("a library"), RuntimeError("a bug")])
def test_what_is_no_fault_of_the_message_is_raised_as_it_is(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(da00_format.READER, "read", raising(error))
    with pytest.raises(type(error), match=str(error)):
        decode(signed(GOOD))


@pytest.mark.parametrize("name", ["deserialise_pl72", "deserialise_6s4t"])
def test_a_library_that_reads_nothing_any_more_is_found_before_a_message_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_decoders()
    monkeypatch.setattr(run_control, name, raising(AttributeError("module 'numpy' has no attribute 'gone'")))
    with pytest.raises(RuntimeError, match=r"is broken: .* no attribute 'gone'"):
        check_decoders()


def raising(error: Exception) -> Callable[[bytes], None]:
    def read(value: bytes) -> None:
        raise error

    return read
