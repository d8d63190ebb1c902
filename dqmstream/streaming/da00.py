"""Reading da00 buffers: the hot path of ingest, by the schema itself and without copies.

ess-streaming-data-types writes them, and reads them in 250 us, most of it in generated Python accessors; this takes 20. The
schema (FlatBuffers, little-endian; the number is the field's slot):

    table da00_DataArray { 0 source_name: string; 1 timestamp: int64; 2 data: [da00_Variable] }
    table da00_Variable { 0 name: string; 1 unit: string; 2 label: string; 3 source: string; 4 data_type: int8;
                          5 axes: [string]; 6 shape: [int64]; 7 data: [uint8] }

Nothing that a damaged buffer claims is believed before it is seen to lie within it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from struct import Struct
from struct import error as StructError

import numpy as np

_U16, _U32, _I32, _I64, _I8 = (Struct(f"<{code}").unpack_from for code in "HIiqb")
_OFFSETS = tuple(Struct(f"<{n}H").unpack_from for n in range(9))
_FIELDS_OF_ARRAY, _FIELDS_OF_VARIABLE = 3, 8
_MOST_DIMENSIONS = 32
_NAMES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "S1")
_DTYPES = {code: np.dtype(name).newbyteorder("<") for code, name in enumerate(_NAMES, start=1)}


class Damaged(ValueError):
    """The buffer is no da00, or not whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """One array of the buffer. data: a read-only view of it, shaped as its axes say; without axes as long as it is.

    A text (dtype c_string) comes as its bytes.
    """

    name: str
    unit: str
    axes: list[str]
    data: np.ndarray


def read(value: bytes) -> tuple[str, int, dict[str, Variable]]:
    """Source name, timestamp in nanoseconds, and the variables by name. Raises Damaged, or another ValueError."""
    try:
        name, timestamp, data = _fields(value, _U32(value, 0)[0], _FIELDS_OF_ARRAY)
        variables = (_variable(value, place) for place in _vector(value, data)) if data else ()
        return (
            _string(value, name) if name else "",
            _I64(value, timestamp)[0] if timestamp else 0,
            {variable.name: variable for variable in variables},
        )
    except StructError as error:
        raise Damaged(f"the buffer ends early: {error}") from error


def _fields(value: bytes, table: int, count: int) -> list[int]:
    """Where the first `count` fields of a table lie; 0 for one that is left out."""
    vtable = table - _I32(value, table)[0]
    if vtable < 0:
        raise Damaged(f"a table at {table} begins before the buffer")
    known = min(max(_U16(value, vtable)[0] // 2 - 2, 0), count)
    places = [offset and table + offset for offset in _OFFSETS[known](value, vtable + 4)]
    return places + [0] * (count - known)


def _vector(value: bytes, field: int) -> range:
    """Places of the offsets that a vector of tables or strings holds."""
    start = field + _U32(value, field)[0]
    length = _U32(value, start)[0]
    if start + 4 + 4 * length > len(value):
        raise Damaged(f"a list of {length} at {start} does not fit into {len(value)} bytes")
    return range(start + 4, start + 4 + 4 * length, 4)


def _string(value: bytes, field: int) -> str:
    start = field + _U32(value, field)[0]
    length = _U32(value, start)[0]
    text = value[start + 4 : start + 4 + length]
    if len(text) != length:
        raise Damaged(f"a text of {length} bytes at {start} does not fit into {len(value)}")
    return text.decode()


def _variable(value: bytes, place: int) -> Variable:
    name, unit, _, _, data_type, axes, shape, data = _fields(value, place + _U32(value, place)[0], _FIELDS_OF_VARIABLE)
    dtype = _DTYPES.get(_I8(value, data_type)[0]) if data_type else None
    if not name or not data or dtype is None:
        raise Damaged("a variable without a name, a dtype or data")
    start = data + _U32(value, data)[0]
    length = _U32(value, start)[0]
    if length % dtype.itemsize:
        raise Damaged(f"{length} bytes are no array of {dtype}")
    array = np.frombuffer(value, dtype, length // dtype.itemsize, start + 4) if length else np.empty(0, dtype)
    names = [_string(value, axis) for axis in _vector(value, axes)] if axes else []
    if names:
        array = array.reshape(_shape(value, shape, array.size))
    return Variable(_string(value, name), _string(value, unit) if unit else "", names, array)


def _shape(value: bytes, field: int, size: int) -> tuple[int, ...]:
    start = field + _U32(value, field)[0] if field else 0
    length = _U32(value, start)[0] if field else 0
    if length > _MOST_DIMENSIONS:
        raise Damaged(f"an array of {length} dimensions")
    shape = tuple(_I64(value, start + 4 + 8 * i)[0] for i in range(length))
    if min(shape, default=0) < 0 or prod(shape) != size:
        raise Damaged(f"{size} values have not the shape {shape}")
    return shape
