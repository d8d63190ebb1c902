"""Reading da00 buffers without copies: the hot path of ingest.

ess-streaming-data-types writes and reads them too; its generated accessors take ten times as long. A buffer that differs from
an earlier one in its values alone is read by the earlier one's layout. The schema (FlatBuffers, little-endian; the number is
the field's slot):

    table da00_DataArray { 0 source_name: string; 1 timestamp: int64; 2 data: [da00_Variable] }
    table da00_Variable { 0 name: string; 1 unit: string; 2 label: string; 3 source: string; 4 data_type: int8;
                          5 axes: [string]; 6 shape: [int64]; 7 data: [uint8] }

Every place that a buffer names is checked to lie within it before it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from struct import Struct
from struct import error as StructError

import numpy as np

_U16, _U32, _I32, _I64, _I8 = (Struct(f"<{code}").unpack_from for code in "HIiqb")
_OFFSETS = tuple(Struct(f"<{n}H").unpack_from for n in range(9))
_FIELDS_OF_ARRAY, _FIELDS_OF_VARIABLE = 3, 8
_MOST_DIMENSIONS = 32
_MOST_VARIABLES = 256
_LONGEST_TEXT = 1024
"""Bytes. Lists and texts may share bytes: without bounds a buffer of a megabyte could describe terabytes."""
_MOST_FIXED = 64 * 2**10
"""Bytes of its buffer that a remembered layout keeps at most."""
_NAMES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "S1")
_INT64 = 1 + _NAMES.index("int64")
_DTYPES = {code: np.dtype(name).newbyteorder("<") for code, name in enumerate(_NAMES, start=1)}


class Damaged(ValueError):
    """The buffer is not da00, or not whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """One array of the buffer. data: a read-only view of it, shaped by its axes; flat where it has none.

    A text (dtype c_string) comes as its bytes.
    """

    name: str
    unit: str
    axes: list[str]
    data: np.ndarray


@dataclass(frozen=True, slots=True)
class _Place:
    """A variable without its values, and where these lie: `count` of them from `start` on."""

    name: str
    unit: str
    axes: list[str]
    dtype: np.dtype
    count: int
    start: int
    shape: tuple[int, ...]

    def read(self, value: bytes) -> Variable:
        data = np.frombuffer(value, self.dtype, self.count, self.start) if self.count else np.empty(0, self.dtype)
        return Variable(self.name, self.unit, self.axes, data.reshape(self.shape) if self.axes else data)


class Layout:
    """Where the values of a buffer lie, and all other bytes of it.

    A buffer of the same length with the same other bytes has the same layout, since these bytes alone were followed to find
    the places. timestamp: its place, 0 if the buffer has none. fixed: the other bytes, each with start and stop.
    """

    def __init__(self, value: bytes, source: str, timestamp: int, places: list[_Place]) -> None:
        self.source, self.timestamp, self.places = source, timestamp, places
        self.fixed: list[tuple[int, int, bytes]] = []
        at = 0
        spans = [(place.start, place.start + place.count * place.dtype.itemsize) for place in places]
        for start, stop in sorted([*spans, (timestamp, timestamp + 8)] if timestamp else spans):
            if start > at:
                self.fixed.append((at, start, value[at:start]))
            at = max(stop, at)
        self.fixed.append((at, len(value), value[at:]))

    def is_sound(self, value: bytes) -> bool:
        """Whether the buffer with all bits of its values inverted has the same layout.

        It has not where values overlap bytes that lead to values. That is damage, and no layout for other buffers.
        """
        inverted = ~np.frombuffer(value, np.uint8)
        for start, stop, fixed in self.fixed:
            inverted[start:stop] = np.frombuffer(fixed, np.uint8)
        try:
            other = find_layout(inverted.tobytes())
        except (ValueError, StructError):
            return False
        return (other.source, other.timestamp, other.places) == (self.source, self.timestamp, self.places)

    def fixes(self, until: int) -> bool:
        """Whether no value lies before this place of the buffer."""
        start, stop, _ = self.fixed[0]
        return start == 0 and stop >= until

    def fits(self, value: bytes) -> bool:
        return all(value[start:stop] == bytes_ for start, stop, bytes_ in self.fixed)

    def read(self, value: bytes) -> tuple[str, int, dict[str, Variable]]:
        time_ns = _I64(value, self.timestamp)[0] if self.timestamp else 0
        return self.source, time_ns, {place.name: place.read(value) for place in self.places}


class Table:
    """Buffers of one length, read by one layout as a table with a row each.

    alike: which rows have this layout, bool, shape (n,); columns hold nothing meaningful of the others.
    """

    def __init__(self, layout: Layout, values: Sequence[bytes]) -> None:
        self._size, self._count = len(values[0]), len(values)
        self._buffer = b"".join(values)
        self._places = {place.name: place for place in layout.places}
        self._timestamp = layout.timestamp
        whole = np.frombuffer(self._buffer, np.uint8).reshape(self._count, self._size)
        self.alike = np.ones(self._count, bool)
        for start, stop, fixed in layout.fixed:
            self.alike &= (whole[:, start:stop] == np.frombuffer(fixed, np.uint8)).all(axis=1)

    @property
    def timestamps(self) -> np.ndarray:
        """Nanoseconds since 1970, int64, shape (n,); 0 where the layout has none."""
        if not self._timestamp:
            return np.zeros(self._count, np.int64)
        return self._column(_DTYPES[_INT64], 1, self._timestamp)[:, 0]

    def has(self, name: str) -> bool:
        return name in self._places

    def column(self, name: str) -> np.ndarray:
        """A variable's values, shape (n, values), a read-only view."""
        place = self._places[name]
        return self._column(place.dtype, place.count, place.start)

    def _column(self, dtype: np.dtype, count: int, start: int) -> np.ndarray:
        return np.ndarray((self._count, count), dtype, self._buffer, start, (self._size, dtype.itemsize))


class BufferReader:
    """Reads buffers, and remembers their layouts."""

    MOST_LAYOUTS = 16

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}

    def read(self, value: bytes) -> tuple[str, int, dict[str, Variable]]:
        """Source name, timestamp in nanoseconds, and the variables by name. Raises Damaged, or another ValueError."""
        known = self._layouts.get(len(value))
        if known is not None and known.fits(value):
            return known.read(value)
        try:
            layout = find_layout(value)
            found = layout.read(value)
        except StructError as error:
            raise Damaged(f"the buffer ends early: {error}") from error
        if sum(len(bytes_) for _, _, bytes_ in layout.fixed) <= _MOST_FIXED and layout.is_sound(value):
            if len(self._layouts) >= self.MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[len(value)] = layout
        return found

    def layout_of(self, value: bytes) -> Layout | None:
        """The buffer's layout, None where it is not remembered."""
        known = self._layouts.get(len(value))
        return known if known is not None and known.fits(value) else None


def find_layout(value: bytes) -> Layout:
    """The buffer's layout, found by following its tables. Raises Damaged, struct.error, or another ValueError."""
    name, timestamp, data = _fields(value, _U32(value, 0)[0], _FIELDS_OF_ARRAY)
    places = [_place(value, place) for place in _vector(value, data, _MOST_VARIABLES)] if data else []
    if len({place.name for place in places}) < len(places):
        raise Damaged("two variables have the same name")
    return Layout(value, _string(value, name) if name else "", timestamp, places)


def _fields(value: bytes, table: int, count: int) -> list[int]:
    """Where the first `count` fields of a table lie; 0 for a missing one."""
    vtable = table - _I32(value, table)[0]
    if vtable < 0:
        raise Damaged(f"a table at {table} begins before the buffer")
    known = min(max(_U16(value, vtable)[0] // 2 - 2, 0), count)
    places = [offset and table + offset for offset in _OFFSETS[known](value, vtable + 4)]
    return places + [0] * (count - known)


def _vector(value: bytes, field: int, most: int) -> range:
    """Places of the offsets in a vector of tables or strings."""
    start = field + _U32(value, field)[0]
    length = _U32(value, start)[0]
    if length > most or start + 4 + 4 * length > len(value):
        raise Damaged(f"a list of {length} at {start} is too long for {len(value)} bytes, or for what it lists")
    return range(start + 4, start + 4 + 4 * length, 4)


def _string(value: bytes, field: int) -> str:
    start = field + _U32(value, field)[0]
    length = _U32(value, start)[0]
    text = value[start + 4 : start + 4 + min(length, _LONGEST_TEXT)]
    if len(text) != length:
        raise Damaged(f"a text of {length} bytes at {start} is too long, or does not fit into {len(value)}")
    return text.decode()


def _place(value: bytes, place: int) -> _Place:
    name, unit, _, _, data_type, axes, shape, data = _fields(value, place + _U32(value, place)[0], _FIELDS_OF_VARIABLE)
    dtype = _DTYPES.get(_I8(value, data_type)[0]) if data_type else None
    if not name or not data or dtype is None:
        raise Damaged("a variable without a name, a dtype or data")
    start = data + _U32(value, data)[0]
    length = _U32(value, start)[0]
    if length % dtype.itemsize or start + 4 + length > len(value):
        raise Damaged(f"{length} bytes at {start} are no array of {dtype} in a buffer of {len(value)}")
    count = length // dtype.itemsize
    names = [_string(value, axis) for axis in _vector(value, axes, _MOST_DIMENSIONS)] if axes else []
    return _Place(
        name=_string(value, name),
        unit=_string(value, unit) if unit else "",
        axes=names,
        dtype=dtype,
        count=count,
        start=start + 4,
        shape=_shape(value, shape, count) if names else (),
    )


def _shape(value: bytes, field: int, size: int) -> tuple[int, ...]:
    start = field + _U32(value, field)[0] if field else 0
    length = _U32(value, start)[0] if field else 0
    if length > _MOST_DIMENSIONS:
        raise Damaged(f"an array of {length} dimensions")
    shape = tuple(_I64(value, start + 4 + 8 * i)[0] for i in range(length))
    if min(shape, default=0) < 0 or prod(shape) != size:
        raise Damaged(f"{size} values have not the shape {shape}")
    return shape
