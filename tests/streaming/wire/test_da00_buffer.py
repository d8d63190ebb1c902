"""The reader of da00 buffers compared with the library that writes them, on whole and damaged buffers."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from streaming_data_types.dataarray_da00 import Variable, deserialise_da00, serialise_da00

from dqmstream.streaming.wire import da00_buffer

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


@st.composite
def variables(draw: st.DrawFn) -> Variable:
    axes = draw(st.none() | st.lists(st.text(max_size=5), min_size=1, max_size=3))
    # The library cannot read an array without elements back.
    shape = draw(st_numpy.array_shapes(min_dims=len(axes or ()), max_dims=len(axes or ()), min_side=1, max_side=4))
    data = draw(st_numpy.arrays(draw(st.sampled_from(DTYPES)), shape))
    texts = {name: draw(st.none() | st.text(max_size=5)) for name in ("unit", "label", "source")}
    return Variable(name=draw(st.text(max_size=8)), data=data, axes=axes, **texts)


def example() -> bytes:
    data = [
        Variable("occupancy", np.arange(4608, dtype=np.float32).reshape(64, 72), axes=["ieta", "iphi"], unit="count"),
        Variable("run", np.array(355456, np.int64)),
        Variable("note", "a text"),
    ]
    return serialise_da00("/ZeroBias#Occupancy", 1_650_000_000_000_000_000, data)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(variables(), min_size=1, max_size=5, unique_by=lambda variable: variable.name),
)
def test_what_the_library_writes_is_read_as_the_library_reads_it(source: str, time_ns: int, data: list[Variable]) -> None:
    buffer = serialise_da00(source, time_ns, data)
    theirs = deserialise_da00(buffer)
    name, timestamp, found = da00_buffer.BufferReader().read(buffer)
    assert (name, timestamp) == (theirs.source_name, theirs.timestamp_ns)
    expected = {variable.name: variable for variable in theirs.data}
    assert found.keys() == expected.keys()
    for key, variable in expected.items():
        ours = found[key]
        assert (ours.axes, ours.unit) == (variable.axes, variable.unit or "")
        np.testing.assert_array_equal(ours.data.reshape(np.shape(variable.data)), variable.data)
        if isinstance(variable.data, np.ndarray):
            assert ours.data.dtype == variable.data.dtype


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**40), st.floats(width=32, allow_nan=False)), min_size=2))
def test_what_was_read_before_changes_nothing(sent: list[tuple[int, int, float]]) -> None:
    """A reader that remembers layouts reads like a new one, also if buffers of other layouts are as long."""
    used = da00_buffer.BufferReader()
    for kind, number, real in sent:
        first, second = ("run", "n_events") if kind % 2 else ("n_events", "run")
        data = [
            Variable(first, np.array(number, np.int64) if kind < 2 else np.array(real)),
            Variable(second, np.array(real)),
            Variable("occupancy", np.full((2, 3), real, np.float32), axes=["ieta", "iphi"], unit="count"),
        ]
        buffer = serialise_da00("source", number, data)
        ours, fresh = used.read(buffer), da00_buffer.BufferReader().read(buffer)
        assert ours[:2] == fresh[:2]
        assert ours[2].keys() == fresh[2].keys()
        for name, variable in fresh[2].items():
            assert (ours[2][name].axes, ours[2][name].unit, ours[2][name].data.dtype) == (
                variable.axes,
                variable.unit,
                variable.data.dtype,
            )
            np.testing.assert_array_equal(ours[2][name].data, variable.data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_buffer_teaches_nothing_wrong(data: st.DataObject) -> None:
    """After damaged buffers a reader reads the next whole buffer like a new one."""
    whole = example()
    used = da00_buffer.BufferReader()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 300) | st.integers(len(whole) - 700, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        used.read(bytes(damaged))
    for buffer in (bytes(damaged), whole):
        try:
            expected = da00_buffer.BufferReader().read(buffer)
        except ValueError as error:
            with pytest.raises(type(error)):
                used.read(buffer)
            continue
        found = used.read(buffer)
        assert found[:2] == expected[:2]
        assert {n: v.data.tobytes() for n, v in found[2].items()} == {n: v.data.tobytes() for n, v in expected[2].items()}


def test_values_that_lie_over_the_tables_are_no_pattern_for_other_buffers() -> None:
    """The values of a variable overlap the tables: the buffer can be read, but its layout must not be remembered."""
    buffer = bytearray(example())
    layout = da00_buffer.find_layout(bytes(buffer))
    place = next(place for place in layout.places if place.name == "note")
    length_at = place.start - 4
    buffer[length_at : length_at + 4] = (len(buffer) - place.start).to_bytes(4, "little")
    reader = da00_buffer.BufferReader()
    assert reader.read(bytes(buffer))[2]["note"].data.size == len(buffer) - place.start
    assert reader.layout_of(bytes(buffer)) is None


def test_a_text_comes_as_its_bytes() -> None:
    assert da00_buffer.BufferReader().read(example())[2]["note"].data.tobytes() == b"a text"


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_damaged_buffer_is_refused_or_read_within_itself(data: st.DataObject) -> None:
    """For any bytes only ValueError is raised, and memory stays in proportion to the buffer."""
    damaged = bytearray(example())
    head = st.integers(0, 400) | st.integers(len(damaged) - 700, len(damaged) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(head)
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for buffer in (bytes(damaged), bytes(damaged[:cut])):
        tracemalloc.start()
        try:
            _, _, found = da00_buffer.BufferReader().read(buffer)
            assert all(variable.data.nbytes <= len(buffer) for variable in found.values())
        except ValueError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 10 * len(example())


@pytest.mark.parametrize("size", [0, 3, 4, 8, 11])
def test_a_buffer_that_ends_early_is_told(size: int) -> None:
    with pytest.raises(da00_buffer.Damaged):
        da00_buffer.BufferReader().read(example()[:size])
