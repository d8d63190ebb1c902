"""The archive as readers see it: snapshots, tags, other programs, and what is refused."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.lumisection import Geometry
from dqmstream.storage.archive import Archive
from dqmstream.storage.locks import filesystem_kind
from dqmstream.storage.log import ArchiveWriter
from dqmstream.storage.repository import UNTRUSTED_FILESYSTEMS
from dqmstream.storage.verify import verify
from tests.maps import check_tiling, row, rows

FEED = "f"


def test_a_reader_stays_at_its_snapshot_and_follows_by_refresh(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, rows(archive, 1, range(1, 6), 0), 0, 5)
    pinned = archive.refresh()
    writer.append(FEED, 0, [row(archive, 1, 2, 5, seed=9), *rows(archive, 1, range(6, 9), 6)], 5, 9)
    assert pinned.run(1).sizes["lumisection"] == 5
    head = pinned.refresh()
    assert head.run(1).sizes["lumisection"] == 8
    assert head.run(1)["revision"].values.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    # the index of the newer reader serves the older one, cut to what the older snapshot holds
    again = head.at(pinned.snapshot)
    assert again.run(1).identical(pinned.run(1))


def test_a_tag_names_a_snapshot(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, rows(archive, 1, range(1, 6), 0), 0, 5)
    first = archive.refresh()
    first.tag("trained")
    first.tag("trained")
    writer.append(FEED, 0, rows(archive, 1, range(6, 9), 5), 5, 8)
    assert Archive.open(tmp_path / "A", "trained").run(1).sizes["lumisection"] == 5
    with pytest.raises(ArchiveError, match="another snapshot"):
        first.refresh().tag("trained")


def test_expiry_drops_what_nothing_names_and_keeps_the_rest(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    for k in range(30):
        writer.append(FEED, 0, [row(archive, 1, k + 1, k)], k, k + 1)
        if k == 9:
            archive.refresh().tag("trained")
    before = archive.refresh()
    files = len(list(archive.path.rglob("*")))
    assert before.expire(3600) == 0
    assert before.expire(0) > 25
    assert len(list(archive.path.rglob("*"))) < files / 4
    head = Archive.open(archive.path)
    assert head.snapshot == before.snapshot
    assert head.run(1).identical(before.run(1))
    assert head.at("trained").run(1).sizes["lumisection"] == 10
    check_tiling(head)
    writer.append(FEED, 0, [row(archive, 1, 31, 30)], 30, 31)
    assert head.refresh().run(1).sizes["lumisection"] == 31


def test_compaction_leaves_rows_and_tags_and_few_files(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    for k in range(20):
        writer.append(FEED, 0, [row(archive, 1, k + 1, k)], k, k + 1)
        if k == 9:
            archive.refresh().tag("trained")
    before = archive.refresh()
    done = before.compact(3600)
    assert done.snapshots == 0 and done.files >= done.files_before
    done = Archive.open(archive.path).compact(0)
    assert done.snapshots >= 20
    assert done.files < done.files_before / 4 and done.bytes < done.bytes_before
    assert done.files == sum(file.is_file() for file in archive.path.rglob("*"))
    head = Archive.open(archive.path)
    assert head.run(1).drop_attrs().identical(before.run(1).drop_attrs())
    assert head.at("trained").run(1).sizes["lumisection"] == 10
    assert verify(head) == verify(head.at("trained")) == []
    writer.append(FEED, 0, [row(archive, 1, 21, 20)], 20, 21)  # a writer that was open goes on
    assert head.refresh().run(1).sizes["lumisection"] == 21
    assert Archive.create(tmp_path / "empty").compact(0).snapshots >= 0


def test_zarr_and_xarray_open_the_store(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    ArchiveWriter(archive).append(FEED, 0, rows(archive, 1, range(1, 6), 0), 0, 5)
    store = archive.refresh().store
    assert zarr.open_group(store, mode="r")["feeds/f/0/occupancy"].shape == (5, 1, 64, 72)
    log = xr.open_zarr(store, group="feeds/f/0", consolidated=False)
    assert log["occupancy"].dims == ("row", "depth", "ieta", "iphi")
    assert log["time"].dtype == np.dtype("datetime64[ns]")
    np.testing.assert_array_equal(log["offset"], np.arange(5))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is no archive"):
        Archive.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArchiveError, match="is a file"):
        Archive.open(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    with pytest.raises(ArchiveError, match="not empty"):
        Archive.create(tmp_path / "full")
    with pytest.raises(ArchiveError, match="address"):
        Archive.open(Path("s3://bucket/archive"))


def test_an_archive_on_a_network_filesystem_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "36 21 0:31 / /eos/cms rw - fuse.eosxd eosxd rw\n"
        "37 21 0:32 / /home rw shared:2 - nfs4 server:/home rw\n"
        "38 37 0:33 / /home/my\\040disk rw - xfs /dev/sdb rw\n"
    )
    assert filesystem_kind(Path("/data/A"), table) == "ext4"
    assert filesystem_kind(Path("/home/me/A"), table) == "nfs4"
    assert filesystem_kind(Path("/home/my disk/A"), table) == "xfs"
    assert filesystem_kind(Path("/eos/cms/A"), table) == "fuse.eosxd"
    assert filesystem_kind(tmp_path) not in UNTRUSTED_FILESYSTEMS
    monkeypatch.setattr("dqmstream.storage.repository.filesystem_kind", lambda path: "nfs4")
    with pytest.raises(ArchiveError, match=r"network filesystem \(nfs4\), whose locks cannot be trusted"):
        Archive.create(tmp_path / "A")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_in_one_line() -> None:
    for path in (Path("/proc/x/A"), Path("/dev/null/A")):
        with pytest.raises(ArchiveError, match="cannot be made"):
            Archive.open_or_create(path)


def test_another_geometry_dtype_or_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "A"
    made = Archive.open_or_create(path, geometry=Geometry(2), dtype="uint16", source="/a#b")
    assert Archive.open_or_create(path).archive_id == made.archive_id
    for flags in ({"geometry": Geometry(1)}, {"dtype": "float32"}, {"source": "/c#d"}):
        with pytest.raises(ArchiveError, match="was made with"):
            Archive.open_or_create(path, **flags)  # type: ignore[arg-type]
    with pytest.raises(ArchiveError, match="float32 or uint16"):
        Archive.create(tmp_path / "B", dtype="float64")


def test_a_damaged_archive_is_told_in_one_line(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    for file in (archive.path / "snapshots").iterdir():
        file.write_bytes(b"damage")
    with pytest.raises(ArchiveError, match="cannot be read as an archive") as told:
        Archive.open(archive.path)
    assert "\n" not in str(told.value)


def _make(path: Path, ids: multiprocessing.Queue[str]) -> None:
    ids.put(Archive.open_or_create(path).archive_id)


def test_processes_that_make_an_archive_at_once_make_one(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ids = spawn.Queue()
    workers = [spawn.Process(target=_make, args=(tmp_path / "A", ids)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = {ids.get() for _ in workers}
    for worker in workers:
        worker.join()
    assert found == {Archive.open(tmp_path / "A").archive_id}
    assert [entry.name for entry in tmp_path.iterdir()] == ["A"]


def test_an_archive_that_was_being_made_when_the_process_died_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Icechunk makes a repository before its first commit: a reader must never see it without."""

    class Death(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Death

    monkeypatch.setattr("dqmstream.storage.layout.write_root", die)
    with pytest.raises(Death):
        Archive.create(tmp_path / "A")
    monkeypatch.undo()
    assert not Archive.exists(tmp_path / "A")
    assert Archive.open_or_create(tmp_path / "A").runs() == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["A"]
