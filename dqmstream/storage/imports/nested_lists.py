"""Nested lists of Parquet as arrays. Lists of one level must be equally long; a row whose lists are not is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dqmstream.errors import InputError

BUFFER_BYTES = 1 << 20

MAX_ROWS = 1 << 25
"""Most rows of a file: 33 million, three times the maps of a year at seven depths."""


class Ragged(ValueError):
    """Lists that do not make an array. row: the first such row of the column."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row = row


def dense(column: Any, levels: int, shape: Sequence[int] | None = None) -> np.ndarray:
    """A column of lists nested `levels` deep as an array (rows, *shape), in the dtype of its numbers.

    column: a pyarrow Array. shape: of a row; None: that of the first row. Raises Ragged for a row of another shape, for nulls,
    and for values that are no numbers.
    """
    sizes: list[int] = []
    values = column
    for level in range(levels):
        here = int(np.prod(sizes, dtype=np.int64))
        lengths = _lengths(values, here, level)
        size = int(shape[level]) if shape is not None else int(lengths[0]) if len(lengths) else 0
        if (other := lengths != size).any():
            place = int(np.argmax(other))
            wanted = "x".join(map(str, shape)) if shape is not None else f"{size} as the first row has"
            raise Ragged(place // here, f"a list of level {level + 1} holds {int(lengths[place])} entries, not {wanted}")
        sizes.append(size)
        values = values.flatten()
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise Ragged(0, f"it holds {values.type}, no numbers")
    if values.null_count:
        place = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise Ragged(place // max(int(np.prod(sizes)), 1), "it holds a null among its numbers")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(column), *sizes)


def _lengths(values: Any, per_row: int, level: int) -> np.ndarray:
    if values.null_count:
        place = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise Ragged(place // per_row, f"a list of level {level + 1} is null")
    kind = values.type
    if pa.types.is_fixed_size_list(kind):
        return np.full(len(values), kind.list_size)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise Ragged(0, f"level {level + 1} is {kind}, no list")
    return np.asarray(pc.list_value_length(values))


def open_parquet(path: Path, metadata: Any = None, coded: Sequence[str] = ()) -> Any:
    """A pyarrow ParquetFile that reads batch by batch, not whole row groups ahead.

    metadata: of the file, if it was read before. coded: text columns to read as dictionaries, so that memory holds a long text
    once even if all rows have it. Raises InputError for a file that is no Parquet, and for more than MAX_ROWS rows, which a few
    kilobytes can claim.
    """
    settings: dict[str, Any] = {"pre_buffer": False, "buffer_size": BUFFER_BYTES}
    try:
        file = pq.ParquetFile(path, metadata=metadata, **settings)
        if there := [name for name in coded if name in file.schema_arrow.names]:
            file = pq.ParquetFile(path, metadata=file.metadata, read_dictionary=there, **settings)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {_line(error)}") from error
    if file.metadata.num_rows > MAX_ROWS:
        raise InputError(f"{path} has {file.metadata.num_rows} rows, and no more than {MAX_ROWS} are taken: split the file")
    return file


def check_lists(path: Path, file: Any, column: str, most: int) -> None:
    """Raise InputError where a column of lists holds more than `most` values a row, by the file's own metadata.

    Lists of one repeated value compress so well that a kilobyte can unpack to gigabytes.
    """
    for group in range(file.metadata.num_row_groups):
        told = file.metadata.row_group(group)
        for leaf in range(told.num_columns):
            values = told.column(leaf)
            if values.path_in_schema.split(".")[0] == column and values.num_values > most * told.num_rows:
                raise InputError(
                    f"{path}, row group {group}: {column} holds {values.num_values} values in {told.num_rows} rows, "
                    f"and no more than {most} a row are taken"
                )


def has_rows(path: Path) -> bool:
    """Whether a Parquet file holds any row. Raises InputError for a file that is no Parquet."""
    return bool(open_parquet(path).metadata.num_rows)


def column_names(path: Path) -> list[str]:
    """Names of a Parquet file's columns. Raises InputError for a file that is no Parquet."""
    return list(open_parquet(path).schema_arrow.names)


def batches(path: Path, file: Any, columns: Sequence[str], size: int, row_groups: Sequence[int] | None = None) -> Iterator[Any]:
    """Record batches of at most `size` rows, one after another. Raises InputError where the file is damaged."""
    try:
        yield from file.iter_batches(size, row_groups=row_groups, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
