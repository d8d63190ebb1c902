"""Groups and arrays of Zarr with their types checked, and columns: arrays of one group that are read and extended together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from dqmstream.errors import ArchiveError
from dqmstream.lumisection import utf8
from dqmstream.storage.failures import decoding, reading

Columns = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Columns of a table: dtype ("str" for text) and attributes, by name."""

Column = np.ndarray | Sequence[np.ndarray]
"""Values along an array's first axis: one array, or a sequence of rows."""


def array(group: zarr.Group, path: str) -> zarr.Array[Any]:
    """The array at a path below the group. Raises KeyError where nothing is there, ArchiveError where a group is."""
    found = group[path]
    if not isinstance(found, zarr.Array):
        raise ArchiveError(f"{group.path}/{path} is a group, not an array")
    return found


def subgroup(group: zarr.Group, path: str) -> zarr.Group:
    """The group at a path below the group. Raises KeyError where nothing is there, ArchiveError where an array is."""
    found = group[path]
    if not isinstance(found, zarr.Group):
        raise ArchiveError(f"{group.path}/{path} is an array, not a group")
    return found


def length_of(group: zarr.Group, path: str) -> int:
    """Length of the array at a path below the group, along its first axis. Raises as `array` does."""
    return int(array(group, path).shape[0])


def number(group: zarr.Group, attribute: str) -> int:
    """A whole number among the group's attributes. Raises KeyError without it, ArchiveError where it is something else."""
    found = group.attrs[attribute]
    if not isinstance(found, int):
        raise ArchiveError(
            f"{group.path or 'the root group'} has the attribute {attribute} {found!r}, which is no whole number"
        )
    return found


def append_columns(group: zarr.Group, columns: Mapping[str, Column]) -> None:
    """Append equally long columns to the arrays of those names, concurrently: zarr waits about a millisecond for each.

    Raises ArchiveError if the arrays were not equally long before, Unreadable if the last chunk of one cannot be read.
    """

    async def append(folder: zarr.AsyncGroup, name: str, values: Column) -> int:
        # Zarr would search every chunk for one of fill values only, which no map is: 20 us of 55 a row.
        found = (await _array(folder, name)).with_config({"write_empty_chunks": True})
        start, length = int(found.shape[0]), int(found.chunks[0])
        stop = start + len(values)
        await found.resize((stop, *found.shape[1:]))
        # Whole chunks are written directly: zarr would merge them with what was there before, copying each row twice.
        first_whole = min(-(-start // length) * length, stop)
        behind_whole = max(stop // length * length, first_whole)
        chunks = [
            _write_chunk(found, at // length, values[at - start : at - start + length])
            for at in range(first_whole, behind_whole, length)
        ]
        pieces = [
            found.setitem(slice(at, until), _in_one(values[at - start : until - start]))
            for at, until in ((start, first_whole), (behind_whole, stop))
            if until > at
        ]
        await asyncio.gather(*chunks, *pieces)
        return start

    async def append_all() -> list[int]:
        folder = await zarr.AsyncGroup.open(group.store_path, zarr_format=3, use_consolidated=False)
        return await asyncio.gather(*(append(folder, name, values) for name, values in columns.items()))

    with decoding(group.path, (RuntimeError,)):  # the last chunk of an array is read, and written again with the new rows
        starts = sync(append_all())
    if len(set(starts)) > 1:
        raise ArchiveError(f"{group.path} has columns of different lengths: see `dqmstream archive verify`")


def append_line(group: zarr.Group, columns: Columns, line: Mapping[str, str | int]) -> None:
    """Append one line to a table of these columns. In text, bytes that are not UTF-8 are replaced by escapes."""
    told = {name: utf8(value) if isinstance(value, str) else value for name, value in line.items()}
    values = {name: np.array([told[name]], dtype=object if dtype == "str" else dtype) for name, (dtype, _) in columns.items()}
    append_columns(group, values)


def _in_one(values: Column) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else np.stack(values)


async def _array(folder: zarr.AsyncGroup, name: str) -> zarr.AsyncArray[Any]:
    found = await folder.getitem(name)
    if not isinstance(found, zarr.AsyncArray):
        raise ArchiveError(f"{folder.path}/{name} is a group, not an array")
    return found


async def _write_chunk(target: zarr.AsyncArray[Any], place: int, values: Column) -> None:
    """Write a whole chunk, the place-th along the first axis, with the bytes and the key that zarr itself would choose."""
    coordinates = (place, *(0 for _ in target.shape[1:]))
    spec = target.metadata.get_chunk_spec(coordinates, target.config, default_buffer_prototype())
    buffer = spec.prototype.nd_buffer.from_numpy_array(_in_one(values))
    (encoded,) = await target.codec_pipeline.encode([(buffer, spec)])
    await (target.store_path / target.metadata.encode_chunk_key(coordinates)).set(encoded)


def read_rows(group: zarr.Group, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """These rows of columns, read concurrently. Columns that are missing, as in an older layout, are left out.

    rows: in any order. Raises Unreadable for rows that cannot be read. A run's rows lie almost together, so one span with all
    of them is read rather than row by row.
    """
    start, stop = int(rows.min()), int(rows.max()) + 1
    sorted_rows, places = np.unique(rows, return_inverse=True)

    async def read(folder: zarr.AsyncGroup, name: str) -> np.ndarray | None:
        try:
            found = await _array(folder, name)
        except KeyError:
            return None
        if stop - start > 4 * len(rows):
            return np.asarray(await found.oindex.getitem(sorted_rows))[places]
        span = np.asarray(await found.getitem(slice(start, stop)))
        return span if np.array_equal(rows, np.arange(start, stop)) else span[rows - start]

    async def read_all() -> list[np.ndarray | None]:
        folder = await zarr.AsyncGroup.open(group.store_path, zarr_format=3, use_consolidated=False)
        return await asyncio.gather(*(read(folder, name) for name in names))

    with reading(group.path):
        found = sync(read_all())
    return {name: values for name, values in zip(names, found, strict=True) if values is not None}


def read_column(group: zarr.Group, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Entries start to stop of the column at a path below the group. Raises Unreadable if they cannot be read."""
    with reading(f"{group.path}/{name}".lstrip("/")):
        return np.asarray(array(group, name)[start:stop])
