"""The archive as readers see it: snapshots, tags, other programs, and what is refused."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from structlog.testing import capture_logs

from dqmstream.errors import ArchiveError
from dqmstream.lumisection import Geometry
from dqmstream.settings import load_settings
from dqmstream.storage.archive import Archive
from dqmstream.storage.locks import filesystem_kind
from dqmstream.storage.maintenance.verify import verify
from dqmstream.storage.repository import UNTRUSTED_FILESYSTEMS
from dqmstream.storage.writer import ArchiveWriter
from tests.commandline import forks
from tests.disks import SmallDisk
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


def test_a_run_is_shown_as_it_was_when_so_many_of_its_rows_had_been_filed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a later snapshot, after revisions, from two partitions, and where the clock was set back within one."""
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    pinned = []
    now = time.time_ns()
    for partition, numbers, at, clock in (
        (0, (1, 2, 3), 0, 0),
        (1, (5, 2), 0, 1),
        (0, (3, 4), 3, 2),
        (1, (9, 5), 2, 3),
        (1, (1,), 4, 1),
    ):
        monkeypatch.setattr(time, "time_ns", lambda shift=clock: now + shift * 1_000_000)
        entries = [row(archive, 1, number, at + k, seed=len(pinned)) for k, number in enumerate(numbers)]
        writer.append(FEED, partition, entries, at, at + len(entries))
        pinned.append(archive.refresh())
    head, filed = Archive.open(tmp_path / "A"), 0
    for then, size in zip(pinned, (3, 2, 2, 2, 1), strict=True):
        filed += size
        assert head.run(1, filed=filed).drop_attrs().identical(then.run(1).drop_attrs())
        upto = then.run(1).sel(lumisection=slice(None, 3)).drop_attrs()
        rows_upto = int(upto.sizes["lumisection"] + upto["revision"].sum())
        assert head.run(1, filed=rows_upto, last=3).drop_attrs().identical(upto)
    with pytest.raises(ArchiveError, match="no lumisection of run 2"):
        head.run(2, filed=3)


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
    as_it_was = before.run(1).load().drop_attrs()
    done = before.compact(3600)
    assert done.snapshots == 0 and done.files >= done.files_before
    done = Archive.open(archive.path).compact(0)
    assert done.snapshots >= 20
    assert done.files < done.files_before / 4 and done.bytes < done.bytes_before
    assert done.files == sum(file.is_file() for file in archive.path.rglob("*"))
    head = Archive.open(archive.path)
    assert head.run(1).drop_attrs().identical(as_it_was)
    assert head.at("trained").run(1).sizes["lumisection"] == 10
    assert verify(head) == verify(head.at("trained")) == []
    writer.append(FEED, 0, [row(archive, 1, 21, 20)], 20, 21)  # a writer that was open goes on
    assert head.refresh().run(1).sizes["lumisection"] == 21
    assert Archive.create(tmp_path / "empty").compact(0).snapshots == 1, "that in which it was made"


def test_an_archive_shows_what_it_holds_as_text_and_as_html(tmp_path: Path) -> None:
    made = Archive.create(str(tmp_path / "A<b>"), geometry=Geometry(1), source="")
    assert "runs          0\n  lumisections  0\n" in repr(made)
    records = [*rows(made, 7, range(1, 4), 0, source="<script>#x"), *rows(made, 9, range(2, 4), 3, source="<script>#x")]
    ArchiveWriter(made).append(FEED, 0, records, 0, 5)
    with Archive.open(str(made.path)) as archive:
        lines = repr(archive).splitlines()
        page = archive._repr_html_()
    assert lines[0] == f"<dqmstream.Archive {made.path}>"
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        ["runs", "2 (7 to 9)"],
        ["lumisections", "5"],
        ["snapshot", archive.snapshot],
        ["maps", "1 x 64 x 72 (depth, ieta, iphi), float32"],
        ["source", "<script>#x"],
    ]
    assert "<script>" not in page and "<b>" not in page, "what files say is no HTML"
    assert "&lt;script&gt;#x" in page and archive.snapshot in page and "2 (7 to 9)" in page
    assert archive.run(7).sizes["lumisection"] == 3, "a reader may be used after its block"


def test_an_archive_whose_rows_cannot_be_read_says_so_when_it_is_shown(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    ArchiveWriter(archive).append(FEED, 0, rows(archive, 1, range(1, 4), 0), 0, 3)
    head = archive.refresh()
    for file in (archive.path / "manifests").iterdir():
        file.write_bytes(b"damage")
    shown = repr(Archive.open(archive.path))
    assert "cannot be read" in shown and head.snapshot in shown


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
        "39 21 0:34 / /lustre rw - lustre 10.0.0.1@tcp:/scratch rw,flock,lazystatfs\n"
        "40 21 0:35 / /lustre/local rw - lustre 10.0.0.1@tcp:/scratch rw,localflock,lazystatfs\n"
        f"41 21 0:36 / {tmp_path}/far rw - nfs4 server:/far rw\n"
        f"42 21 0:37 / {tmp_path}/unnamed rw - ceph  rw\n"
    )
    assert filesystem_kind(Path("/data/A"), table) == "ext4"
    assert filesystem_kind(Path("/home/me/A"), table) == "nfs4"
    assert filesystem_kind(Path("/home/my disk/A"), table) == "xfs"
    assert filesystem_kind(Path("/eos/cms/A"), table) == "fuse.eosxd"
    assert filesystem_kind(Path("/lustre/A"), table) == "lustre"
    assert filesystem_kind(Path("/lustre/local/A"), table) == "lustre without flock"
    assert filesystem_kind(tmp_path / "unnamed" / "A", table) == "ceph"
    (tmp_path / "near").symlink_to(tmp_path / "far")
    for path in ("near/A", "x/../far/A", "near/../far/A"):  # a link, or "..", does not hide it
        assert filesystem_kind(tmp_path / path, table) == "nfs4"
    (tmp_path / "near").unlink()
    assert filesystem_kind(tmp_path) not in UNTRUSTED_FILESYSTEMS
    monkeypatch.setattr("dqmstream.storage.repository.filesystem_kind", lambda path: "nfs4")
    with pytest.raises(ArchiveError, match=r"network filesystem \(nfs4\), whose locks cannot be trusted"):
        Archive.create(tmp_path / "A")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["gpfs", "9p", "virtiofs", "fuse.rclone", "beegfs"])
def test_a_filesystem_of_which_nothing_is_known_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("dqmstream.storage.repository.filesystem_kind", lambda path: kind)
    with capture_logs() as told:
        archive = Archive.create(tmp_path / "A")
        for k in range(2):
            ArchiveWriter(archive).append(FEED, 0, [row(archive, 1, k + 1, k)], k, k + 1)
    assert [line["filesystem"] for line in told] == [kind]
    assert "one machine" in told[0]["event"]
    for known in ("ext4", "xfs", "overlay", "tmpfs", "ceph", "lustre", ""):
        monkeypatch.setattr("dqmstream.storage.repository.filesystem_kind", lambda path, known=known: known)
        with capture_logs() as told:
            Archive.create(tmp_path / f"B{known}")
        assert not told


def test_an_archive_is_made_through_a_link_and_is_one_by_either_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    for link, target in (("to", "real"), ("to-none", "missing/yet")):
        (tmp_path / link).symlink_to(tmp_path / target)
        made = Archive.create(tmp_path / link)
        assert made.path == tmp_path / target
        assert Archive.open(tmp_path / target).archive_id == made.archive_id
        assert {load_settings(archive=tmp_path / name).state_path for name in (link, target)} == {tmp_path / f"{target}.state"}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for act in (Archive.create, Archive.open, Archive.open_or_create):
        with pytest.raises(ArchiveError, match="is a link to itself"):
            act(tmp_path / "loop")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Archive.open_or_create(Path()).path == tmp_path / "here"
    assert load_settings(archive=Path()).state_path == tmp_path / "here.state"
    assert Archive.open(Path("../here")).runs() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "loop", "missing", "real", "to", "to-none"]


def test_a_state_beside_a_link_where_older_versions_made_it_is_used_on(tmp_path: Path) -> None:
    Archive.create(tmp_path / "A")
    (tmp_path / "link").symlink_to(tmp_path / "A")
    (tmp_path / "link.state").mkdir()
    assert load_settings(archive=tmp_path / "link").state_path == tmp_path / "link.state"
    (tmp_path / "A.state").mkdir()
    assert load_settings(archive=tmp_path / "link").state_path == tmp_path / "A.state"


def _make_at_a_mount_point(folder: Path) -> None:
    if not SmallDisk(folder).is_mounted:
        raise SystemExit(77)
    (folder / "lost+found").mkdir(mode=0o700)
    archive = Archive.open_or_create(folder)
    ArchiveWriter(archive).append(FEED, 0, rows(archive, 1, range(1, 4), 0), 0, 3)
    assert Archive.open(folder).run(1).sizes["lumisection"] == 3
    assert verify(archive.refresh()) == []
    assert ".partial" not in [path.name for path in folder.iterdir()]


def test_an_archive_is_made_at_a_mount_point(tmp_path: Path) -> None:
    """Every volume of a container is one."""
    process = forks().Process(target=_make_at_a_mount_point, args=(tmp_path / "volume",))
    process.start()
    process.join()
    if process.exitcode == 77:
        pytest.skip("this machine permits no mount")
    assert process.exitcode == 0


@pytest.mark.parametrize("moved", range(5))
def test_a_making_that_was_killed_while_it_moved_its_parts_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    real, done = Path.rename, 0

    class Death(BaseException):
        pass

    def rename(path: Path, target: Path) -> Path:
        nonlocal done
        if done == moved:
            raise Death
        done += 1
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr("dqmstream.storage.repository.shutil.rmtree", lambda *_, **__: None)  # which a kill leaves out too
    with pytest.raises(Death):
        Archive.create(tmp_path / "A")
    monkeypatch.undo()
    assert not Archive.exists(tmp_path / "A") and (tmp_path / "A" / ".partial").exists()
    archive = Archive.open_or_create(tmp_path / "A")
    assert archive.runs() == [] and not (tmp_path / "A" / ".partial").exists()
    (tmp_path / "B" / ".partial").mkdir(parents=True)
    (tmp_path / "B" / "notes.txt").write_text("mine")
    with pytest.raises(ArchiveError, match="not empty"):
        Archive.create(tmp_path / "B")
    assert (tmp_path / "B" / "notes.txt").read_text() == "mine"


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
    """Icechunk makes a repository before its first commit; a reader must never see it in between."""

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
