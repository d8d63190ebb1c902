"""How the archive lies on disk: its groups, its columns and its version.

    /                       layout_version, archive_id, depths, dtype, source; arrays ieta (64), iphi (72)
    feeds/<feed>/<partition>/
        occupancy           (row, depth, ieta, iphi), archive dtype, chunks of 64 rows
        run lumisection time n_events pileup offset content quality produced committed   (row,)
        control/            offset until kind run lumisection reason               (entry,)
        attributes          first_offset, next_offset
    imports/                sha256 run name rows offset                            (file,)
    labels/                 golden lumisections and luminosity, see storage.labels

Rows and control entries together tile [first_offset, next_offset) of their partition: each offset is a row, or lies in
exactly one control entry [offset, until).

Version 2 brought `produced`; `storage.migrate` has the step from 1, and what reads an older snapshot takes it for unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Any

import icechunk
import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from dqmstream.errors import ArchiveError
from dqmstream.lumisection import IETA, IPHI, Geometry, utf8
from dqmstream.storage.failures import decoding, reading

LAYOUT_VERSION = 2
ROWS_PER_CHUNK = 64
SCALARS_PER_CHUNK = 1024
MANIFEST_SPLIT = 128
"""Chunks of an array in one manifest. A commit writes the last manifest of each array again, and names all of them."""
NAT = int(np.iinfo(np.int64).min)
"""How an unknown time is stored; xarray reads it as NaT by the CF attributes beside it."""

IMPORT_FEED = "import"


class ControlKind(IntEnum):
    """Why an offset holds no row."""

    START = 0
    STOP = 1
    DUPLICATE = 2
    DEAD = 3
    HOLE = 4
    GAP = 5


class Quality(IntFlag):
    """What is to be known of a stored row."""

    GOOD = 0
    INTERPOLATED = 1
    REVISION = 2


_SINCE_1970: Mapping[str, Any] = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}

ROW_COLUMNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "run": ("int64", {}),
    "lumisection": ("int64", {}),
    "time": ("int64", {**_SINCE_1970, "_FillValue": NAT}),
    "n_events": ("float64", {"long_name": "events in the lumisection, nan where unknown"}),
    "pileup": ("float64", {"long_name": "mean pileup, nan where unknown"}),
    "offset": ("int64", {"long_name": "offset in the feed's partition"}),
    "content": ("uint64", {"long_name": "first 8 bytes of the SHA-256 of row, n_events and pileup"}),
    "quality": ("uint8", {"flag_masks": [1, 2], "flag_meanings": "interpolated revision"}),
    "produced": ("int64", {"long_name": "when the broker took the message", **_SINCE_1970, "_FillValue": NAT}),
    "committed": ("int64", {"long_name": "when the row was filed", **_SINCE_1970}),
}

SINCE_VERSION: Mapping[str, int] = {"produced": 2}
"""Layout version that brought a column; the others were there from the first."""

TIMES = ("time", "produced", "committed")
"""Columns that hold nanoseconds since 1970."""

CONTROL_COLUMNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "offset": ("int64", {}),
    "until": ("int64", {"long_name": "first offset past the entry"}),
    "kind": (
        "uint8",
        {"flag_values": [k.value for k in ControlKind], "flag_meanings": " ".join(k.name.lower() for k in ControlKind)},
    ),
    "run": ("int64", {"long_name": "run, -1 where none is known"}),
    "lumisection": ("int64", {"long_name": "lumisection, -1 where none is known"}),
    "reason": ("str", {}),
}

IMPORT_COLUMNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sha256": ("str", {"long_name": "of all that was read: the counts, the sidecars and the flags"}),
    "run": ("int64", {}),
    "name": ("str", {"long_name": "name of the file"}),
    "rows": ("int64", {"long_name": "rows in the file"}),
    "offset": ("int64", {"long_name": "offset of the file's first entry in the import feed"}),
}


Column = np.ndarray | Sequence[np.ndarray]
"""Values for an array's first axis: in one piece, or each by itself."""


def repository_config() -> icechunk.RepositoryConfig:
    """Manifests split, and none loaded before it is asked for: both keep the cost of a commit flat as rows grow.

    Icechunk would load manifests of arrays with names like `time` whenever a session begins.
    """
    config = icechunk.RepositoryConfig.default()
    config.manifest = icechunk.ManifestConfig(
        preload=icechunk.ManifestPreloadConfig(max_total_refs=0, preload_if=icechunk.ManifestPreloadCondition.false()),
        splitting=icechunk.ManifestSplittingConfig.from_dict(
            {icechunk.ManifestSplitCondition.AnyArray(): {icechunk.ManifestSplitDimCondition.Axis(0): MANIFEST_SPLIT}}
        ),
    )
    return config


def check_version(root: zarr.Group, place: Any) -> int:
    """Layout version of the archive at place. Raises ArchiveError for one that this dqmstream does not know."""
    if root.attrs.get("kind") == "images":
        raise ArchiveError(f"{place} is an archive of images, which holds no lumisections: give another --archive")
    version = root.attrs.get("layout_version")
    if not isinstance(version, int) or version < 1:
        raise ArchiveError(f"{place} cannot be read as an archive: its layout version is {version!r}")
    if version > LAYOUT_VERSION:
        raise ArchiveError(f"{place} has layout version {version}, this dqmstream reads {LAYOUT_VERSION}: upgrade dqmstream")
    return version


def feed_path(feed: str, partition: int) -> str:
    return f"feeds/{feed}/{partition}"


def write_root(store: Any, *, archive_id: str, geometry: Geometry, dtype: str, source: str) -> None:
    """Lay an empty archive: the root group, its attributes and the coordinates."""
    root = zarr.create_group(
        store,
        zarr_format=3,
        attributes={
            "layout_version": LAYOUT_VERSION,
            "archive_id": archive_id,
            "depths": geometry.depths,
            "dtype": dtype,
            "source": source,
        },
    )
    for name, values in (("ieta", IETA), ("iphi", IPHI)):
        array = root.create_array(name, shape=values.shape, dtype="int64", dimension_names=(name,))
        array[:] = values
    root.create_group("feeds")
    make_table(root, "imports", "file", IMPORT_COLUMNS)


def make_log(root: zarr.Group, feed: str, partition: int, first_offset: int, geometry: Geometry, dtype: str) -> zarr.Group:
    """Lay an empty log for a partition that begins at first_offset."""
    log = make_table(root, feed_path(feed, partition), "row", ROW_COLUMNS)
    log.attrs.update({"first_offset": first_offset, "next_offset": first_offset})
    log.create_array(
        "occupancy",
        shape=(0, *geometry.shape),
        chunks=(ROWS_PER_CHUNK, *geometry.shape),
        dtype=dtype,
        compressors=BloscCodec(cname="lz4", shuffle="bitshuffle"),
        dimension_names=("row", "depth", "ieta", "iphi"),
        attributes={"units": "count", "long_name": "events with charge above the cut"},
    )
    make_table(log, "control", "entry", CONTROL_COLUMNS)
    return log


def make_table(
    parent: zarr.Group, path: str, dimension: str, columns: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> zarr.Group:
    """A group of equally long one-dimensional arrays, all of length 0."""
    group = parent.create_group(path)
    for name in columns:
        make_column(group, name, dimension, columns)
    return group


def make_column(
    group: zarr.Group, name: str, dimension: str, columns: Mapping[str, tuple[str, Mapping[str, Any]]], length: int = 0
) -> None:
    """One of a table's arrays, of fill values alone: its chunks are not written."""
    dtype, attributes = columns[name]
    group.create_array(
        name,
        shape=(length,),
        chunks=(SCALARS_PER_CHUNK,),
        dtype=str if dtype == "str" else dtype,
        # Nothing else would tell that a number was damaged; of maps, `content` does.
        compressors=ZstdCodec(level=0, checksum=True),
        fill_value=attributes.get("_FillValue"),
        dimension_names=(dimension,),
        attributes=dict(attributes),
    )


def append_columns(group: zarr.Group, columns: Mapping[str, Column]) -> None:
    """Append equally long columns to the arrays of those names, all at once: zarr takes a millisecond to wait for each.

    A column is an array, or its rows one by one, which need not lie together. Raises ArchiveError where the arrays are not
    equally long before, Unreadable where the last chunk of one cannot be read.
    """

    async def append(folder: zarr.AsyncGroup, name: str, values: Column) -> int:
        # Zarr would look through every chunk for one of fill values alone, which no map is: 20 us of 55 a row.
        array = (await folder.getitem(name)).with_config({"write_empty_chunks": True})
        start, length = int(array.shape[0]), int(array.chunks[0])
        stop = start + len(values)
        await array.resize((stop, *array.shape[1:]))
        # Whole chunks need not be merged with what was there before, for which zarr copies each row twice.
        first_whole = min(-(-start // length) * length, stop)
        behind_whole = max(stop // length * length, first_whole)
        chunks = [
            _write_chunk(array, at // length, values[at - start : at - start + length])
            for at in range(first_whole, behind_whole, length)
        ]
        pieces = [
            array.setitem(slice(at, until), _in_one(values[at - start : until - start]))
            for at, until in ((start, first_whole), (behind_whole, stop))
            if until > at
        ]
        await asyncio.gather(*chunks, *pieces)
        return start

    async def append_all() -> list[int]:
        folder = await zarr.AsyncGroup.open(group.store_path, zarr_format=3, use_consolidated=False)
        return await asyncio.gather(*(append(folder, name, values) for name, values in columns.items()))

    with decoding(group.path, (RuntimeError,)):  # the last chunk of an array is read, and written again with what is added
        starts = sync(append_all())
    if len(set(starts)) > 1:
        raise ArchiveError(f"{group.path} has columns of different lengths: see `dqmstream archive verify`")


def append_line(group: zarr.Group, columns: Mapping[str, tuple[str, Mapping[str, Any]]], line: Mapping[str, str | int]) -> None:
    """Append one line to a table of these columns; text with escapes for what UTF-8 has no bytes for."""
    told = {name: utf8(value) if isinstance(value, str) else value for name, value in line.items()}
    values = {name: np.array([told[name]], dtype=object if dtype == "str" else dtype) for name, (dtype, _) in columns.items()}
    append_columns(group, values)


def _in_one(values: Column) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else np.stack(values)


async def _write_chunk(array: zarr.AsyncArray[Any], place: int, values: Column) -> None:
    """Write a whole chunk, the place-th along the first axis: the bytes, and under the name, that zarr itself would choose."""
    coordinates = (place, *(0 for _ in array.shape[1:]))
    spec = array.metadata.get_chunk_spec(coordinates, array.config, default_buffer_prototype())
    buffer = spec.prototype.nd_buffer.from_numpy_array(_in_one(values))
    (encoded,) = await array.codec_pipeline.encode([(buffer, spec)])
    await (array.store_path / array.metadata.encode_chunk_key(coordinates)).set(encoded)


def read_rows(group: zarr.Group, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of columns, all at once; a column that is not there (of a later layout) is left out. rows: ascending or not.

    Raises Unreadable where they cannot be read.

    A run lies almost in one piece: the span is read and picked from, not row by row.
    """
    start, stop = int(rows.min()), int(rows.max()) + 1
    sorted_rows, places = np.unique(rows, return_inverse=True)

    async def read(folder: zarr.AsyncGroup, name: str) -> np.ndarray | None:
        try:
            array = await folder.getitem(name)
        except KeyError:
            return None
        if stop - start > 4 * len(rows):
            return np.asarray(await array.oindex.getitem(sorted_rows))[places]
        span = np.asarray(await array.getitem(slice(start, stop)))
        return span if np.array_equal(rows, np.arange(start, stop)) else span[rows - start]

    async def read_all() -> list[np.ndarray | None]:
        folder = await zarr.AsyncGroup.open(group.store_path, zarr_format=3, use_consolidated=False)
        return await asyncio.gather(*(read(folder, name) for name in names))

    with reading(group.path):
        found = sync(read_all())
    return {name: values for name, values in zip(names, found, strict=True) if values is not None}


def read_column(group: zarr.Group, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Entries start to stop of a column. Raises Unreadable where they cannot be read."""
    with reading(f"{group.path}/{name}"):
        return np.asarray(group[name][start:stop])
