"""`dqmstream archive` through the real command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import make_row
from dqmstream.storage.imports.importer import import_files
from dqmstream.storage.writer import ArchiveWriter
from tests.commandline import dqmstream, result, told
from tests.maps import counts, lumisection, write_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An archive of runs 3 and 4, the first filed in two imports."""
    archive = Archive.create(tmp_path / "A")
    maps = counts(3, 70)
    for files in (
        [write_run(tmp_path / "first", 3, maps)],
        [write_run(tmp_path / "second", 3, maps + (np.arange(70) == 2)[:, None, None]), write_run(tmp_path, 4, counts(4, 5))],
    ):
        import_files(files, lambda: archive, dtype=archive.dtype, depths=1)
    return archive.path


def test_verify_expire_and_compact(path: Path) -> None:
    assert "is whole: 76 rows read" in dqmstream("archive", "verify", "--archive", path).stdout
    assert result("archive", "expire", "--archive", path)["snapshots"] == 0
    assert result("archive", "expire", "--keep-s", 0, "--archive", path)["snapshots"] == 3
    done = result("archive", "compact", "--keep-s", 0, "--archive", path)
    assert done["snapshots"] == 1 and done["bytes"] > 0
    session = Archive.open(path).writable_session()
    zarr.open_group(session.store, mode="r+")["feeds/import/0/n_events"][4] = 3.0
    session.commit("a hand behind the API")
    found = dqmstream("archive", "verify", "--archive", path)
    assert found.returncode == 5
    assert "import/0 row 4 (run 3, lumisection 5)" in found.stdout and "Traceback" not in found.stderr
    found = dqmstream("archive", "verify", "--archive", path, "--json")
    assert found.returncode == 5
    assert '"whole": false, "findings": [{"where": "import/0 row 4' in found.stdout.splitlines()[-1]


def test_rows_that_would_be_refused_today_are_listed_and_are_no_damage(tmp_path: Path) -> None:
    """An archive of before such values were refused."""
    archive = Archive.create(tmp_path / "A")
    records = [lumisection(3, number, n_events=1500.0) for number in (1, 2, 3)]
    records[1].occupancy[5, 6] = 3e38
    rows = [make_row(one, k, archive.geometry, archive.dtype, max_events=np.inf) for k, one in enumerate(records) if k != 1]
    old = replace(records[1], n_events=np.nan)
    rows.insert(1, make_row(old, 1, archive.geometry, archive.dtype, max_events=np.inf))
    ArchiveWriter(archive).append("hcal@cluster.topic", 0, rows, 0, 3)
    found = result("archive", "verify", "--archive", archive.path)
    assert found["whole"] is True and found["findings"] == []
    (row,) = found["implausible"]  # type: ignore[misc]
    assert row["where"] == "hcal@cluster.topic/0 row 1 (run 3, lumisection 2)"
    assert row["what"].startswith("occupancy holds 3.00000001e+38, above the 3000000 events")
    shown = dqmstream("archive", "verify", "--archive", archive.path)
    assert shown.returncode == 0 and "1 rows hold counts that would be refused today" in shown.stdout


def test_export(path: Path, tmp_path: Path) -> None:
    assert result("archive", "export", tmp_path / "x.zarr", "--run", 4, "--run", 3, "--archive", path)["rows"] == 75
    table = xr.open_zarr(tmp_path / "x.zarr")
    assert table["run"].values.tolist() == [3] * 70 + [4] * 5
    assert "exists already" in told(dqmstream("archive", "export", tmp_path / "x.zarr", "--archive", path), 3)
    assert "no lumisection of run 9" in told(
        dqmstream("archive", "export", tmp_path / "y.zarr", "--run", 9, "--archive", path), 3
    )
    assert not (tmp_path / "y.zarr").exists()
