"""An archive of layout 1 can be read, and the first write migrates it to layout 2."""

from __future__ import annotations

import tarfile
from pathlib import Path

import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.storage import layout, migrate
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import make_row
from dqmstream.storage.writer import ArchiveWriter, OffsetConflict
from tests.maps import check_tiling, lumisection, row

FEED = "hcal@cluster.topic"


@pytest.fixture
def old(tmp_path: Path) -> Archive:
    """What a dqmstream of layout 1 wrote: runs 7 and 8 in two partitions, with a revision, a duplicate, a dead letter and a
    hole, the import of run 9, and the tags `first` (run 7 only) and `second` (no import yet)."""
    with tarfile.open(Path(__file__).parent / "data" / "layout1.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    return Archive.open(tmp_path / "layout1")


def views(archive: Archive) -> dict[int, xr.Dataset]:
    return {summary.run: archive.run(summary.run).drop_attrs() for summary in archive.runs()}


def same(found: dict[int, xr.Dataset], expected: dict[int, xr.Dataset]) -> bool:
    return found.keys() == expected.keys() and all(found[run].identical(expected[run]) for run in found)


def commits(archive: Archive) -> list[str]:
    """Messages of the commits behind the head, the newest first."""
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(archive.path)))
    return [snapshot.message for snapshot in repository.ancestry(branch="main")]


def test_layout_1_is_read_as_it_is(old: Archive) -> None:
    before = old.snapshot
    assert old.layout_version == 1
    assert [(s.run, s.lumisections, s.revisions, s.duplicates, s.complete) for s in old.runs()] == [
        (7, 5, 1, 1, "stop"),
        (8, 3, 0, 0, "next_run"),
        (9, 4, 0, 0, "stop"),
    ]
    view = old.run(7)
    assert np.isnat(view["produced"].values).all()
    assert not np.isnat(view["committed"].values).any()
    assert {tag: [s.run for s in old.at(tag).runs()] for tag in old.tags()} == {"first": [7], "second": [7, 8]}
    check_tiling(old)
    assert old.refresh().snapshot == before


def test_the_first_write_migrates_and_old_snapshots_stay(old: Archive) -> None:
    before, tagged = views(old), views(old.at("first"))
    entry = make_row(lumisection(7, 6), 111, old.geometry, old.dtype, produced_ns=1_700_000_000_000_000_000)
    writer = ArchiveWriter(old)
    writer.append(FEED, 0, [entry], 111, 112)
    assert [message.partition(" [")[0] for message in commits(old)[:2]] == [f"{FEED}/0", "layout 1 to 2"]
    head = old.refresh()
    assert head.layout_version == 2
    assert same({run: view for run, view in views(head).items() if run != 7}, {run: before[run] for run in (8, 9)})
    assert head.run(7).drop_attrs().isel(lumisection=slice(5)).identical(before[7])
    assert head.run(7)["produced"].values[5] == np.datetime64(1_700_000_000, "s")
    check_tiling(head)
    # what the tags name is what it was
    assert head.at("first").layout_version == Archive.open(old.path, "second").layout_version == 1
    assert same(views(head.at("first")), tagged)
    # logs, old and new, take rows as ever, and nothing is migrated twice
    writer.append(FEED, 1, [row(old, 8, 4, 5)], 5, 6)
    writer.append(FEED, 2, [row(old, 10, 1, 0)], 0, 1)
    assert [message for message in commits(old) if message.startswith("layout")] == ["layout 1 to 2"]
    final = old.refresh()
    assert {s.run: s.lumisections for s in final.runs()} == {7: 6, 8: 4, 9: 4, 10: 1}
    log = xr.open_zarr(final.store, group=f"feeds/{FEED}/0", consolidated=False)
    assert log["produced"].dtype == log["time"].dtype == np.dtype("datetime64[ns]")
    assert (log["committed"] - log["produced"]).notnull().sum() == 1
    check_tiling(final)


def test_a_batch_that_is_refused_leaves_the_rows_as_they_were(old: Archive) -> None:
    before = views(old)
    with pytest.raises(OffsetConflict):
        ArchiveWriter(old).append(FEED, 0, [row(old, 7, 6, 5)], 5, 6)
    assert same(views(old.refresh()), before)


def test_no_chunk_is_written_by_the_migration(old: Archive) -> None:
    chunks = set((old.path / "chunks").iterdir())
    with pytest.raises(OffsetConflict):
        ArchiveWriter(old).append(FEED, 0, [row(old, 7, 6, 5)], 5, 6)
    assert old.refresh().layout_version == 2
    assert set((old.path / "chunks").iterdir()) == chunks


def test_a_migration_that_is_cut_off_leaves_layout_1_whole(old: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    class Death(BaseException):
        pass

    def die_after(root: zarr.Group) -> int:
        migrate.migrate(root)
        raise Death

    before = views(old)
    monkeypatch.setattr("dqmstream.storage.writer.migrate", die_after)
    with pytest.raises(Death):
        ArchiveWriter(old).append(FEED, 0, [row(old, 7, 6, 111)], 111, 112)
    monkeypatch.undo()
    again = Archive.open(old.path)
    assert (again.snapshot, again.layout_version) == (old.snapshot, 1)
    assert same(views(again), before)
    ArchiveWriter(again).append(FEED, 0, [row(old, 7, 6, 111)], 111, 112)
    assert again.refresh().layout_version == 2


def test_a_migration_whose_commit_fails_is_told_and_writes_nothing(old: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise icechunk.IcechunkError("the disk is full")

    monkeypatch.setattr(icechunk.Session, "commit", fail)
    with pytest.raises(ArchiveError, match=r"commit failed, nothing was filed.*disk is full"):
        ArchiveWriter(old).append(FEED, 0, [row(old, 7, 6, 111)], 111, 112)
    assert Archive.open(old.path).layout_version == 1


def test_every_version_has_a_step() -> None:
    assert list(migrate.STEPS) == list(range(1, layout.LAYOUT_VERSION))


def test_a_newer_layout_is_refused_by_reader_and_writer(tmp_path: Path) -> None:
    """Also by those that were open when a newer dqmstream migrated the archive."""
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    session = archive.writable_session()
    zarr.open_group(session.store, mode="r+").attrs["layout_version"] = layout.LAYOUT_VERSION + 1
    session.commit("a layout from the future")
    for act in (
        lambda: Archive.open(archive.path),
        archive.refresh,
        lambda: writer.append(FEED, 0, [row(archive, 1, 1, 0)], 0, 1),
    ):
        with pytest.raises(ArchiveError, match=r"layout version 3.*reads 2: upgrade"):
            act()
