"""Folders as users have them: data are found, other files are left out and noted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dqmstream.errors import InputError
from dqmstream.storage.archive import Archive
from dqmstream.storage.images.source import image_files, images_among, left_out
from dqmstream.storage.imports.find import find_files
from dqmstream.storage.imports.importer import import_runs
from dqmstream.storage.imports.rules import ImportRules
from tests.layouts import depth_maps, dials_rows, write_dials, write_hdf5
from tests.maps import counts, write_run

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"


def write_empty(path: Path, like: Path) -> Path:
    pq.write_table(pq.read_table(like).slice(0, 0), path)
    return path


def test_stray_files_of_a_folder_are_left_out_and_told_and_the_rest_is_filed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_run(data, 355400, counts(7, 2)).rename(data / "Run355400_Dataset_x.NPY")
    for name in ("._Run355400_Dataset_x.npy", "._Run355400_events.npy", ".hidden.npy", "._depth1.parquet"):
        (data / name).write_bytes(APPLE_DOUBLE)
    np.save(data / "norms.npy", np.arange(3))
    (data / ".DS_Store").write_bytes(b"x")
    (data / "README.txt").write_text("mine")
    dials = write_dials(data / "b.parquet", dials_rows(355401, depth_maps(1, 2, 1)))
    write_empty(data / "a.parquet", dials)
    assert images_among([data]) == []
    archive = Archive.create(tmp_path / "A")
    done, _ = import_runs([data], lambda: archive, ImportRules(np.dtype("float32"), 1))
    assert [(one.run, one.rows) for one in done] == [(355400, 2), (355401, 2)]
    assert (archive.refresh().run(355400, maps=False)["n_events"] == 1500).all()
    assert done[0].notes == (
        f"{data / '._Run355400_Dataset_x.npy'} is a hidden file: left out",
        f"{data / '._Run355400_events.npy'} is a hidden file: left out",
        f"{data / '._depth1.parquet'} is a hidden file: left out",
        f"{data / '.hidden.npy'} is a hidden file: left out",
        f"{data / 'a.parquet'} holds no row: left out",
        f"{data / 'norms.npy'} left out: its name tells no run",
    )


def test_where_nothing_but_stray_files_is_given_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "._Run1_Dataset_x.npy").write_bytes(APPLE_DOUBLE)
    for given in (tmp_path, tmp_path / "._Run1_Dataset_x.npy"):
        with pytest.raises(InputError, match=r"no file with occupancy maps.*_x.npy is a hidden file"):
            find_files([given])
    np.save(tmp_path / "mine.npy", counts(7, 2))
    assert find_files([tmp_path]).files == [tmp_path / "mine.npy"]  # whose run --run may name


def test_a_partitioned_data_set_is_read_and_one_that_hides_a_column_is_refused(tmp_path: Path) -> None:
    rows = dials_rows(7, depth_maps(1, 2, 1))
    path = write_dials(tmp_path / "data" / "year=2024" / "month=5" / "part-0.PARQUET", rows)
    write_empty(tmp_path / "data" / "year=2024" / "part-1.parquet", path)
    found = find_files([tmp_path / "data"])
    assert found.files == [path] and len(found.notes) == 1
    whole = write_dials(tmp_path / "data" / "run_number=7" / "part-0.parquet", rows)
    assert find_files([tmp_path / "data"]).count == 2
    pq.write_table(pq.read_table(whole, partitioning=None).drop_columns("run_number"), whole)
    with pytest.raises(InputError, match=r"part-0.parquet has no column run_number, which is in the name of its folder alone"):
        find_files([tmp_path / "data"])


def test_images_are_found_beside_what_is_none(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "x.HDF5", 4)
    (tmp_path / "._x.hdf5").write_bytes(APPLE_DOUBLE)
    (tmp_path / "notes.txt").write_text("mine")
    assert images_among([tmp_path]) == image_files(tmp_path) == [tmp_path / "x.HDF5"]
    assert left_out([tmp_path]) == [f"{tmp_path / '._x.hdf5'} is a hidden file: left out"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("a.CSV", "by --lumi"), ("a.csv.gz", "by --lumi"), ("a.JSON", "by --golden"), ("Run1_Dataset_x.npy.gz", "unpack it")],
)
def test_what_holds_no_maps_is_refused_in_words_that_fit(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name}.*{says}"):
        find_files([tmp_path / name])
