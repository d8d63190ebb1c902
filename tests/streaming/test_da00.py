"""Our reader of da00 buffers against the library that writes them, on whole and on damaged buffers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from streaming_data_types.dataarray_da00 import Variable, deserialise_da00, serialise_da00

from dqmstream.streaming import da00

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
@given(st.text(max_size=20), st.integers(-(2**63), 2**63 - 1), st.lists(variables(), min_size=1, max_size=5))
def test_what_the_library_writes_is_read_as_the_library_reads_it(source: str, time_ns: int, data: list[Variable]) -> None:
    buffer = serialise_da00(source, time_ns, data)
    theirs = deserialise_da00(buffer)
    name, timestamp, found = da00.read(buffer)
    assert (name, timestamp) == (theirs.source_name, theirs.timestamp_ns)
    expected = {variable.name: variable for variable in theirs.data}
    assert found.keys() == expected.keys()
    for key, variable in expected.items():
        ours = found[key]
        assert (ours.axes, ours.unit) == (variable.axes, variable.unit or "")
        np.testing.assert_array_equal(ours.data.reshape(np.shape(variable.data)), variable.data)
        if isinstance(variable.data, np.ndarray):
            assert ours.data.dtype == variable.data.dtype


def test_a_text_comes_as_its_bytes() -> None:
    assert da00.read(example())[2]["note"].data.tobytes() == b"a text"


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_damaged_buffer_is_refused_or_read_within_itself(data: st.DataObject) -> None:
    """Whatever the bytes are, only ValueError is raised and no more memory is taken than the buffer is long."""
    damaged = bytearray(example())
    head = st.integers(0, 400) | st.integers(len(damaged) - 700, len(damaged) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(head)
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for buffer in (bytes(damaged), bytes(damaged[:cut])):
        tracemalloc.start()
        try:
            _, _, found = da00.read(buffer)
            assert all(variable.data.nbytes <= len(buffer) for variable in found.values())
        except ValueError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 10 * len(example())


@pytest.mark.parametrize("size", [0, 3, 4, 8, 11])
def test_a_buffer_that_ends_early_is_told(size: int) -> None:
    with pytest.raises(da00.Damaged):
        da00.read(example()[:size])
