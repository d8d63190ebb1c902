"""Files that may come from anybody: nothing outside of them is read, and a claimed size allocates nothing."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqmstream.errors import InputError
from dqmstream.settings import read_table, recipe_flags
from dqmstream.storage.images.archive import import_images
from dqmstream.storage.images.files import open_jets
from dqmstream.storage.imports import nested_lists as parquet
from dqmstream.storage.imports.readers.arrays import load_array
from dqmstream.storage.imports.readers.dials import read_dials
from dqmstream.storage.imports.readers.groups import read_group
from dqmstream.storage.labels import table_files
from dqmstream.storage.labels.golden import read_golden
from dqmstream.storage.labels.luminosity import read_luminosity
from tests.layouts import ELEMENT, depth_maps, dials_rows, images, nested, write_dials, write_group, write_jets

X = images(4, (4, 4, 2))
SHAPE = X.shape
Make = Callable[[h5py.File, Path], object]


def claimed(shape: tuple[int, ...], chunks: tuple[int, ...] | None, name: str = "X") -> Make:
    """A data set that claims a shape and stores no value."""
    unlimited = None if chunks is None else (None, *shape[1:])
    return lambda file, _: file.create_dataset(name, shape=shape, dtype="f4", chunks=chunks, maxshape=unlimited)


def partly(file: h5py.File, _: Path) -> None:
    file.create_dataset("X", shape=(100, 4, 4, 2), dtype="f4", chunks=(4, 4, 4, 2))[:4] = X


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource(str(other), "X", SHAPE)
    file.create_virtual_dataset("X", layout)


def through_a_group(file: h5py.File, other: Path) -> None:
    file["linked"] = h5py.ExternalLink(str(other), "/")
    file["X"] = h5py.SoftLink("/linked/X")


def foreign_filter(file: h5py.File, _: Path) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(SHAPE)
    settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(file.id, b"X", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(SHAPE), settings)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda file, other: file.create_dataset("X", SHAPE, "u1", external=[(str(other), 0, X.size)]),
            "values of X lie in other files",
        ),
        (virtual, "values of X lie in other files"),
        (lambda file, other: file.update(X=h5py.ExternalLink(str(other), "X")), "X is a link to another place of .*other.h5"),
        (lambda file, _: file.update(X=h5py.ExternalLink("/dev/zero", "X")), "X is a link to another place of /dev/zero"),
        (through_a_group, r"X is a link to another place \(/linked/X\)"),
        (claimed((4, 4, 4, 2), (1, 4, 4, 2)), "not there whole: 0 of 4 chunks"),
        (claimed((4, 4, 4, 2), None), "not there whole: 0 of 512 bytes"),
        (partly, "not there whole: 1 of 25 chunks"),
        (claimed((2_000_000_000, 4, 4, 2), (1024, 4, 4, 2)), "X has 2000000000 rows"),
        (claimed((4, 4, 4, 2), (20_000_000, 4, 4, 2)), "chunks of 2441 MiB"),
        (foreign_filter, "packed by filter 32015"),
        (lambda file, _: file.create_group("X"), "X is a group"),
        (lambda file, _: file.create_dataset("X", SHAPE, h5py.ref_dtype), "must be numbers"),
        (
            lambda file, _: file.create_dataset("X", data=np.zeros((4, 2048, 2049, 1), "u1"), compression="gzip"),
            "no more than 4194304 are taken",
        ),
    ],
)
def test_hdf5_reads_no_other_file_and_believes_no_claim(tmp_path: Path, make: Make, reason: str) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["X"], other["y"] = X, np.zeros(4)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        make(file, tmp_path / "other.h5")
        file["y"] = np.zeros(4)
    with pytest.raises(InputError, match=f"bad.h5: .*{reason}"):
        import_images([tmp_path / "bad.h5"], tmp_path / "A")
    assert not (tmp_path / "A").exists()


def test_labels_of_another_file_are_not_read_either(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["y"] = np.zeros(4)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["X"], file["y"] = X, h5py.ExternalLink("other.h5", "y")
    with pytest.raises(InputError, match=r"y is a link to another place of other.h5"):
        import_images([tmp_path / "bad.h5"], tmp_path / "A")


def test_labels_that_are_only_claimed_are_not_made(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["X"] = X
        claimed((2_000_000_000,), (1024,), "y")(file, tmp_path)
    with pytest.raises(InputError, match="y has 2000000000 rows"):
        import_images([tmp_path / "bad.h5"], tmp_path / "A")


def npy(header: bytes, body: bytes = b"") -> bytes:
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + body


def header(dtype: bytes, shape: bytes) -> bytes:
    return b"{'descr': " + dtype + b", 'fortran_order': False, 'shape': " + shape + b"}"


@pytest.mark.parametrize(
    "content",
    [
        npy(b"(" * 5000),
        npy(b"-" * 9000 + b"1"),
        npy(b"1+" * 3000 + b"1"),
        npy(header(b"'<f8'", b"(" + b"-" * 8000 + b"1,)")),
        npy(header(b"[" * 150 + b"('a','<f8')" + b"]" * 150, b"(3,)")),
        npy(header(b"'<f8'", b"(%d,)" % 2**70)),
        npy(header(b"'<f8'", b"(%d,)" % 10**16)),
        npy(header(b"'<f8'", b"(True, True)"), b"0" * 24),
        npy(header(b"'<f8'", b"(-3,)"), b"0" * 24),
        npy(b"{[]: 2}"),
        b"PK\3\4 damaged",
    ],
    ids=range(11),
)
def test_headers_of_npy_that_nest_or_claim_are_refused_in_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "Run1_Dataset_x.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"Run1_Dataset_x.npy (cannot be read as a NumPy array: .|is an archive of arrays)"):
        load_array(path)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("golden.json", read_golden),
        ("lumi.json", read_luminosity),
        ("settings.json", read_table),
        ("Run1/meta_data.json", lambda path: read_group(write_group(path.parents[1], 1, depth_maps(1, 2, 1)), False)),
    ],
)
def test_json_that_nests_deep_is_refused_in_a_line(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(DEEP)
    with pytest.raises(InputError, match=f"{path.name} cannot be read as JSON: "):
        read(path)


def test_other_texts_that_nest_or_go_on_are_refused_or_taken_as_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f"a = {DEEP}")
    with pytest.raises(InputError, match=r"x.toml cannot be read as TOML"):
        read_table(tmp_path / "x.toml")
    assert recipe_flags(None, [f"steps={DEEP}"]) == {"steps": DEEP}
    (tmp_path / "golden.json").write_text(json.dumps({"9" * 5000: [[1, 2]]}))
    with pytest.raises(InputError, match=r"golden.json"):
        read_golden(tmp_path / "golden.json")


def one_map(data: pa.Array) -> pa.Table:
    return pa.table({"run_number": [1], "ls_number": [1], "me": [ELEMENT.format(1)], "data": data})


def test_parquet_whose_lists_unpack_to_more_than_any_map_is_refused(tmp_path: Path) -> None:
    zeros = pa.ListArray.from_arrays(pa.array([0, 5_000_000], pa.int32()), pa.array(np.zeros(5_000_000, np.int8)))
    once = pa.array([0, 1], pa.int32())
    wrapped = pa.ListArray.from_arrays(once, zeros)
    pq.write_table(one_map(wrapped), tmp_path / "maps.parquet")
    assert (tmp_path / "maps.parquet").stat().st_size < 10_000
    with pytest.raises(InputError, match=r"maps.parquet, row group 0: data holds 5000000 values in 1 rows"):
        read_dials([tmp_path / "maps.parquet"], 1)
    table = pa.table({"X_jets": pa.ListArray.from_arrays(once, wrapped), "y": [1.0]})
    pq.write_table(table, tmp_path / "jets.parquet")
    with pytest.raises(InputError, match=r"jets.parquet, row group 0: X_jets holds 5000000 values in 1 rows"):
        open_jets(tmp_path / "jets.parquet")
    kind: pa.DataType = pa.float64()
    for _ in range(200):
        kind = pa.list_(kind)
    pq.write_table(one_map(pa.nulls(1, kind)), tmp_path / "deep.parquet")
    with pytest.raises(InputError, match=r"deep.parquet cannot be read as Parquet: .*nested"):
        read_dials([tmp_path / "deep.parquet"], 1)


def test_more_rows_than_any_data_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROWS", 5)
    with pytest.raises(InputError, match=r"maps.parquet has 6 rows, and no more than 5"):
        read_dials([write_dials(tmp_path / "maps.parquet", dials_rows(1, depth_maps(1, 6, 1)))], 1)
    write_jets(tmp_path / "jets.parquet", 6)
    with pytest.raises(InputError, match=r"jets.parquet has 6 rows"):
        open_jets(tmp_path / "jets.parquet")


def test_tables_in_parquet_are_bounded_and_long_texts_in_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = 100_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(lines, np.int32)), pa.array(["x" * 20_000]))
    columns = {"ls": np.arange(lines) + 1, "pileup": np.full(lines, 30.0), "fill": text, "bx": nested(np.ones((lines, 1)))}
    pq.write_table(pa.table(columns), tmp_path / "lumi.parquet")  # 2 GB, were the text in each line
    tracemalloc.start()
    try:
        table = read_luminosity(tmp_path / "lumi.parquet")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(table.of(1, np.array([1, 77, lines + 1]))["pileup"], [30, 30, np.nan])
    assert peak < 64 << 20
    monkeypatch.setattr(table_files, "MAX_LINES", 5)
    with pytest.raises(InputError, match=r"lumi.parquet has 100000 lines, and no more than 5 are taken"):
        read_luminosity(tmp_path / "lumi.parquet")


def test_one_long_text_in_all_rows_is_held_once_and_is_no_name(tmp_path: Path) -> None:
    rows = 20_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 100_000]))
    columns = {"run_number": np.ones(rows, int), "ls_number": np.arange(rows) + 1, "data": nested(np.zeros((rows, 1, 1)))}
    pq.write_table(pa.table({**columns, "me": text}), tmp_path / "long.parquet")  # 2 GB, were it in each row
    pool, before = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(InputError, match=r"long.parquet: me holds 'x+'..., 100000 characters long, which is no name"):
            read_dials([tmp_path / "long.parquet"], 1)
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < 32 << 20
