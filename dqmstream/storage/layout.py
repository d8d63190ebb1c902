"""Groups, arrays and version of an archive on disk, and how they are read and written.

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

Version 2 added `produced`. `storage.migrate` has the step from version 1; readers of an older snapshot take it as unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from dqmstream.errors import ArchiveError
from dqmstream.lumisection import IETA, IPHI, Geometry
from dqmstream.storage.columns import Columns, subgroup

LAYOUT_VERSION = 2
ROWS_PER_CHUNK = 64
SCALARS_PER_CHUNK = 1024
NAT = int(np.iinfo(np.int64).min)
"""Stored value of an unknown time. xarray reads it as NaT, by the CF attributes of the array."""

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
    """Flags of a stored row.

    INTERPOLATED: it lies between lumisections. REVISION: the lumisection was filed before. FROM_SHARES: it came as shares of
    events, and was multiplied by these (`storage.scale`). NOT_WHOLE: values that are not whole, not marked as interpolated.
    """

    GOOD = 0
    INTERPOLATED = 1
    REVISION = 2
    FROM_SHARES = 4
    NOT_WHOLE = 8


ANY_QUALITY = Quality.INTERPOLATED | Quality.REVISION | Quality.FROM_SHARES | Quality.NOT_WHOLE


_SINCE_1970: Mapping[str, Any] = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}

ROW_COLUMNS: Columns = {
    "run": ("int64", {}),
    "lumisection": ("int64", {}),
    "time": ("int64", {**_SINCE_1970, "_FillValue": NAT}),
    "n_events": ("float64", {"long_name": "events in the lumisection, nan where unknown"}),
    "pileup": ("float64", {"long_name": "mean pileup, nan where unknown"}),
    "offset": ("int64", {"long_name": "offset in the feed's partition"}),
    "content": ("uint64", {"long_name": "first 8 bytes of the SHA-256 of row, n_events and pileup"}),
    "quality": ("uint8", {"flag_masks": [1, 2, 4, 8], "flag_meanings": "interpolated revision from_shares not_whole"}),
    "produced": ("int64", {"long_name": "when the broker took the message", **_SINCE_1970, "_FillValue": NAT}),
    "committed": ("int64", {"long_name": "when the row was filed", **_SINCE_1970}),
}

SINCE_VERSION: Mapping[str, int] = {"produced": 2}
"""Layout version that added a column; the others are in every version."""

TIMES = ("time", "produced", "committed")
"""Columns that hold nanoseconds since 1970."""

CONTROL_COLUMNS: Columns = {
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

IMPORT_COLUMNS: Columns = {
    "sha256": ("str", {"long_name": "of all that was read: the counts, the sidecars and the flags"}),
    "run": ("int64", {}),
    "name": ("str", {"long_name": "name of the file"}),
    "rows": ("int64", {"long_name": "rows in the file"}),
    "offset": ("int64", {"long_name": "offset of the file's first entry in the import feed"}),
}


def check_version(root: zarr.Group, place: Any) -> int:
    """Layout version of the archive with this root group. Raises ArchiveError for one that this dqmstream does not know.

    place: the archive's path, for messages.
    """
    if root.attrs.get("kind") == "images":
        raise ArchiveError(f"{place} is an archive of images, which holds no lumisections: give another --archive")
    version = root.attrs.get("layout_version")
    if not isinstance(version, int) or version < 1:
        raise ArchiveError(f"{place} cannot be read as an archive: its layout version is {version!r}")
    if version > LAYOUT_VERSION:
        raise ArchiveError(f"{place} has layout version {version}, this dqmstream reads {LAYOUT_VERSION}: upgrade dqmstream")
    return version


def feed_path(feed: str, partition: int) -> str:
    """Path of a partition's log below the root group."""
    return f"feeds/{feed}/{partition}"


def logs(root: zarr.Group) -> Iterator[tuple[str, int, zarr.Group]]:
    """Feed, partition and group of each log, in any order."""
    for feed, partitions in subgroup(root, "feeds").groups():
        for partition, log in partitions.groups():
            yield feed, int(partition), log


def write_root(store: Any, *, archive_id: str, geometry: Geometry, dtype: str, source: str) -> None:
    """Write an empty archive: the root group with its attributes, the coordinates and the empty tables."""
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
        coordinate = root.create_array(name, shape=values.shape, dtype="int64", dimension_names=(name,))
        coordinate[:] = values
    root.create_group("feeds")
    make_table(root, "imports", "file", IMPORT_COLUMNS)


def make_log(root: zarr.Group, feed: str, partition: int, first_offset: int, geometry: Geometry, dtype: str) -> zarr.Group:
    """Make an empty log for a partition that begins at first_offset."""
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


def make_table(parent: zarr.Group, path: str, dimension: str, columns: Columns) -> zarr.Group:
    """Make a table: a group of one-dimensional arrays of length 0, one for each column."""
    group = parent.create_group(path)
    for name in columns:
        make_column(group, name, dimension, columns)
    return group


def make_column(group: zarr.Group, name: str, dimension: str, columns: Columns, length: int = 0) -> None:
    """Make a column of a table, filled with fill values: no chunk is written."""
    dtype, attributes = columns[name]
    group.create_array(
        name,
        shape=(length,),
        chunks=(SCALARS_PER_CHUNK,),
        dtype=str if dtype == "str" else dtype,
        # Detects damaged numbers; damaged maps are detected by `content`.
        compressors=ZstdCodec(level=0, checksum=True),
        fill_value=attributes.get("_FillValue"),
        dimension_names=(dimension,),
        attributes=dict(attributes),
    )
