"""Files of tables as named columns: CSV, JSON or Parquet, the first two also compressed (.gz)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

from dqmstream.errors import InputError
from dqmstream.storage.labels.csv_tables import read_csv
from dqmstream.storage.labels.json_tables import read_json
from dqmstream.storage.labels.pages import FileTable

MAX_BYTES = 1 << 29
"""Most bytes of a decompressed table; a year of lumisections takes half of it."""

MAX_LINES = 1 << 22
"""Most lines of a table in Parquet: 4 million, since a few kilobytes can claim any number. A year has 1.4 million."""


def read_table_file(path: Path) -> FileTable:
    """The table at path, by its suffix. Raises InputError, with file and reason, for a file that cannot be used."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    readers = {".csv": read_csv, ".json": read_json, ".jsonl": read_json}
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet(path)
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in readers:
        raise InputError(f"{path} is no table: give .csv, .json or .parquet, the first two also as .gz")
    return readers[suffix](path, _bytes(path))


def _bytes(path: Path) -> bytes:
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path) as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as plain:
                data = plain.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} holds more than {MAX_BYTES >> 20} MiB: give it in parts")
    return data


def _parquet(path: Path) -> FileTable:
    """The table in a Parquet file. Nested columns are not read: each of their values is the name of their type."""
    import pyarrow as pa

    from dqmstream.storage.imports.nested_lists import batches, open_parquet

    schema = open_parquet(path).schema_arrow
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    file = open_parquet(path, coded=texts)
    if file.metadata.num_rows > MAX_LINES:
        raise InputError(f"{path} has {file.metadata.num_rows} lines, and no more than {MAX_LINES} are taken: give it in parts")
    flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
    values: dict[str, list[Any]] = {name: [] for name in flat}
    for batch in batches(path, file, flat, 1 << 16):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_dictionary(column.type):  # a text in many lines is in memory once
                told = [*column.dictionary.to_pylist(), None]
                values[name] += [told[place] for place in column.indices.fill_null(len(told) - 1).to_pylist()]
            else:
                values[name] += column.to_pylist()
    nested = {name: [str(schema.field(name).type)] * file.metadata.num_rows for name in schema.names if name not in values}
    return FileTable(path, {name: values[name] if name in values else nested[name] for name in schema.names})
