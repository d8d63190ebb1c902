"""An export is plain Zarr: opened by its path, sorted, with the newest revision of each lumisection, complete or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from dqmstream.errors import InputError
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import make_row
from dqmstream.storage.maintenance.export import export
from dqmstream.storage.writer import ArchiveWriter
from tests.maps import lumisection, row, rows

PRODUCED_NS = 1_700_000_000_123_000_000


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Run 9 before run 7, in two partitions; lumisection 2 of run 7 is revised, lumisection 3 came out of order."""
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    writer.append("f", 0, rows(archive, 9, range(1, 101), 0), 0, 100)
    told = make_row(lumisection(7, 3), 0, archive.geometry, archive.dtype, produced_ns=PRODUCED_NS)
    writer.append("f", 1, [told, row(archive, 7, 1, 1), row(archive, 7, 2, 2), row(archive, 7, 2, 3, seed=1)], 0, 4)
    return archive.refresh()


def test_an_export_opens_by_its_path(archive: Archive, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    out = tmp_path / "deeper" / "x.zarr"
    seen: list[tuple[int, int]] = []
    assert export(archive, out, progress=lambda done, total: seen.append((done, total))) == 103
    assert seen == [(3, 103), (103, 103)]
    group = zarr.open_group(out, mode="r")
    assert group.metadata.consolidated_metadata is not None
    assert group["occupancy"].shape == (103, 1, 64, 72)
    assert dict(group.attrs) == {
        "archive_id": archive.archive_id, "snapshot": archive.snapshot, "source": archive.source, "layout_version": 2,
    }  # fmt: skip
    table = xr.open_zarr(out)
    assert not [warning for warning in recwarn if "onsolidated" in str(warning.message)]
    assert set(table.variables) == {
        "occupancy", "run", "lumisection", "time", "n_events", "pileup", "content", "quality", "produced", "committed",
        "depth", "ieta", "iphi",
    }  # fmt: skip
    assert table["run"].values.tolist() == [7] * 3 + [9] * 100
    assert table["lumisection"].values.tolist() == [1, 2, 3, *range(1, 101)]
    for run, part in ((7, slice(0, 3)), (9, slice(3, None))):
        view = archive.run(run)
        for name in ("occupancy", "time", "n_events", "pileup", "content", "quality", "produced", "committed"):
            np.testing.assert_array_equal(table[name].values[part], view[name].values)
    np.testing.assert_array_equal(table["occupancy"].values[1, 0], lumisection(7, 2, seed=1).occupancy)
    assert table["produced"].values[2] == np.datetime64(PRODUCED_NS, "ns")
    assert np.isnat(table["produced"].values[[0, 1, 3]]).all()
    assert table["ieta"].values.tolist() == [*range(-32, 0), *range(1, 33)]
    assert [entry.name for entry in out.parent.iterdir()] == ["x.zarr"]


def test_some_runs_alone(archive: Archive, tmp_path: Path) -> None:
    assert export(archive, tmp_path / "x.zarr", [9, 9]) == 100
    assert set(xr.open_zarr(tmp_path / "x.zarr")["run"].values.tolist()) == {9}


def test_what_cannot_be_exported_is_refused(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, runs, says in (
        (tmp_path / "A", None, "exists already"),
        (tmp_path / "file", None, "exists already"),
        (tmp_path / "x.zarr", [9, 8], "no lumisection of run 8"),
        (tmp_path / "file" / "x.zarr", None, "cannot be written"),
    ):
        with pytest.raises(InputError, match=says):
            export(archive, path, runs)
    with pytest.raises(InputError, match="holds no run"):
        export(Archive.create(tmp_path / "empty"), tmp_path / "x.zarr")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["A", "empty", "file"]


def test_an_export_that_is_cut_off_leaves_nothing_at_its_path(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Archive.run

    def die_at_the_second(self: Archive, run: int) -> xr.Dataset:
        if run == 9:
            raise KeyboardInterrupt
        return real(self, run)

    monkeypatch.setattr(Archive, "run", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        export(archive, tmp_path / "x.zarr")
    assert [entry.name for entry in tmp_path.iterdir()] == ["A"]
    monkeypatch.undo()
    # what a killed process leaves is no obstacle
    (tmp_path / ".x.zarr.partial").mkdir()
    (tmp_path / ".x.zarr.partial" / "left").write_text("x")
    assert export(archive, tmp_path / "x.zarr") == 103
    assert not (tmp_path / "x.zarr" / "left").exists()
