"""The append-only log: a batch is filed once and whole, or refused."""

from __future__ import annotations

import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from dqmstream.lumisection import Geometry
from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control, make_row
from dqmstream.storage.layout import ControlKind, Quality
from dqmstream.storage.writer import ArchiveWriter, OffsetConflict, SourceConflict
from tests.maps import SOURCE, check_tiling, lumisection, row, rows

FEED = "hcal@cluster.topic"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "A")


def test_rows_come_back_as_they_were_filed(archive: Archive) -> None:
    written = rows(archive, 355456, range(1, 101), 0)
    ArchiveWriter(archive).append(FEED, 0, written, 0, 100)
    view = archive.refresh().run(355456)
    assert view.sizes == {"lumisection": 100, "depth": 1, "ieta": 64, "iphi": 72}
    np.testing.assert_array_equal(view["lumisection"], np.arange(1, 101))
    np.testing.assert_array_equal(view["occupancy"], np.stack([entry.occupancy for entry in written]))
    np.testing.assert_array_equal(view["n_events"], 1500.0)
    assert np.isnan(view["pileup"]).all()
    assert view["time"].values[0] == np.datetime64(1_650_000_000_000_000_001, "ns")
    assert archive.refresh().source == SOURCE
    check_tiling(archive.refresh())


def test_a_batch_that_does_not_start_where_the_archive_ends_is_refused(archive: Archive) -> None:
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, rows(archive, 1, range(1, 11), 0), 0, 10)
    before = archive.refresh().snapshot
    for start in (5, 20):
        with pytest.raises(OffsetConflict) as refused:
            ArchiveWriter(archive).append(FEED, 0, rows(archive, 1, range(50, 55), start), start, start + 5)
        assert refused.value.stored == 10
    assert archive.refresh().snapshot == before


def test_entries_must_tile_their_offsets(archive: Archive) -> None:
    writer = ArchiveWriter(archive)
    with pytest.raises(ValueError, match="offset 1 lies in no entry"):
        writer.append(FEED, 0, [row(archive, 1, 1, 0), row(archive, 1, 2, 2)], 0, 3)
    with pytest.raises(ValueError, match="the batch at 5"):
        writer.append(FEED, 0, [row(archive, 1, 1, 0)], 0, 5)
    assert archive.refresh().offsets() == {}


def test_the_same_content_is_a_duplicate_and_another_a_revision(archive: Archive) -> None:
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, [row(archive, 7, 1, 0), row(archive, 7, 1, 1), row(archive, 7, 2, 2)], 0, 3)
    # a fresh writer, and another partition: what decides is the archive, not what a process remembers
    filed = ArchiveWriter(archive).append(FEED, 1, [row(archive, 7, 2, 0), row(archive, 7, 2, 1, seed=1)], 0, 2)
    assert (filed.rows, filed.duplicates, filed.revisions) == (1, 1, 1)
    head = archive.refresh()
    view = head.run(7)
    np.testing.assert_array_equal(view["revision"], [0, 1])
    np.testing.assert_array_equal(view["occupancy"][1, 0], lumisection(7, 2, seed=1).occupancy)
    assert view["quality"].values.tolist() == [Quality.GOOD, Quality.REVISION]
    assert [(s.run, s.lumisections, s.rows, s.duplicates, s.revisions) for s in head.runs()] == [(7, 2, 3, 2, 1)]
    check_tiling(head)


def test_a_run_whose_rows_lie_far_apart_is_read_in_order(archive: Archive) -> None:
    entries = [row(archive, 7, 9, 0), *rows(archive, 8, range(1, 61), 1), row(archive, 7, 3, 61), row(archive, 7, 5, 62)]
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, entries, 0, 63)
    for view in (archive.refresh().run(7), _with_another_partition(archive, writer)):
        for number in (3, 5, 9):
            found = view.sel(lumisection=number)
            np.testing.assert_array_equal(found["occupancy"][0], lumisection(7, number).occupancy)
            assert found["time"].values == np.datetime64(1_650_000_000_000_000_000 + number, "ns")


def _with_another_partition(archive: Archive, writer: ArchiveWriter) -> xr.Dataset:
    writer.append(FEED, 1, [row(archive, 7, 4, 0)], 0, 1)
    view = archive.refresh().run(7)
    assert view["lumisection"].values.tolist() == [3, 4, 5, 9]
    return view


def test_order_is_that_of_filing_though_the_clock_is_set_back(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    ArchiveWriter(archive).append(FEED, 0, [row(archive, 7, 1, 0)], 0, 1)
    monkeypatch.setattr("dqmstream.storage.writer.time.time_ns", lambda: 1_000)
    ArchiveWriter(archive).append(FEED, 1, [row(archive, 7, 1, 0, seed=1)], 0, 1)
    view = archive.refresh().run(7)
    assert view["revision"].values.tolist() == [1]
    np.testing.assert_array_equal(view["occupancy"][0, 0], lumisection(7, 1, seed=1).occupancy)


def test_a_time_that_no_clock_shows_is_unknown(archive: Archive) -> None:
    for offset, produced_ns in enumerate((0, -1, 2**63, 5)):
        entry = make_row(lumisection(7, offset + 1), offset, archive.geometry, archive.dtype, produced_ns=produced_ns)
        ArchiveWriter(archive).append(FEED, 0, [entry], offset, offset + 1)
    assert np.isnat(archive.refresh().run(7)["produced"].values).tolist() == [True, True, True, False]


def test_control_entries_keep_their_reason(archive: Archive) -> None:
    entries = [
        Control(10, 11, ControlKind.START, 9),
        row(archive, 9, 1, 11),
        Control(12, 13, ControlKind.DEAD, reason="the value is empty — µ"),
        Control(13, 17, ControlKind.HOLE, reason="the feed has no message here"),
        Control(17, 18, ControlKind.STOP, 9),
    ]
    ArchiveWriter(archive).append(FEED, 3, entries, 10, 18)
    head = archive.refresh()
    control = head.control(FEED, 3)
    assert control["kind"].values.tolist() == [ControlKind.START, ControlKind.DEAD, ControlKind.HOLE, ControlKind.STOP]
    assert control["reason"].values.tolist()[1] == "the value is empty — µ"
    assert head.offsets() == {FEED: {3: (10, 18)}}
    assert head.runs()[0].complete == "stop"
    check_tiling(head)


def test_a_run_is_complete_when_a_later_one_begins_in_its_partition(archive: Archive) -> None:
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, rows(archive, 5, range(1, 4), 0), 0, 3)
    writer.append(FEED, 1, rows(archive, 6, range(1, 4), 0), 0, 3)
    assert [s.complete for s in archive.refresh().runs()] == ["", ""]
    writer.append(FEED, 0, [Control(3, 4, ControlKind.START, 8)], 3, 4)
    assert {s.run: s.complete for s in archive.refresh().runs()} == {5: "next_run", 6: ""}


def test_a_late_row_of_an_older_run_ends_nothing(archive: Archive) -> None:
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, [*rows(archive, 5, range(1, 4), 0), *rows(archive, 6, range(1, 4), 3)], 0, 6)
    writer.append(FEED, 0, [row(archive, 5, 4, 6), Control(7, 8, ControlKind.START, 5)], 6, 8)
    assert {s.run: s.complete for s in archive.refresh().runs()} == {5: "next_run", 6: ""}


def test_another_source_is_refused(archive: Archive) -> None:
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, [row(archive, 1, 1, 0)], 0, 1)
    other = make_row(lumisection(1, 2, source="/Muon#Other"), 1, archive.geometry, archive.dtype)
    with pytest.raises(SourceConflict):
        ArchiveWriter(archive).append(FEED, 0, [other], 1, 2)
    assert archive.refresh().next_offset(FEED, 0) == 1


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (np.full((64, 72), np.nan), "NaN"),
        (np.full((64, 72), np.inf), "infinity"),
        (np.full((64, 72), -1.0), "negative"),
        (np.full((64, 72), 0.5), "not whole"),
        (np.full((64, 72), 70000), "above"),
        (np.zeros((64, 71)), "shape"),
        (np.zeros((2, 64, 72)), "shape"),
        (np.zeros((64, 72), complex), "not a real number"),
    ],
)
def test_what_a_uint16_archive_cannot_hold_is_refused(tmp_path: Path, counts: np.ndarray, reason: str) -> None:
    archive = Archive.create(tmp_path / "U", dtype="uint16")
    record = lumisection(1, 1)
    with pytest.raises(ValueError, match=reason):
        make_row(type(record)(1, 1, counts), 0, archive.geometry, archive.dtype)


def test_a_uint16_archive_of_seven_depths(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "U", geometry=Geometry(7), dtype="uint16", source="/a#b")
    counts = np.random.default_rng(0).integers(0, 65536, (7, 64, 72))
    record = type(lumisection(1, 1))(1, 1, counts)
    ArchiveWriter(archive).append(FEED, 0, [make_row(record, 0, archive.geometry, archive.dtype)], 0, 1)
    view = Archive.open(tmp_path / "U").run(1)
    assert view["occupancy"].dtype == np.uint16
    np.testing.assert_array_equal(view["occupancy"][0], counts)


def _append_many(path: Path, partition: int, batches: int) -> None:
    archive = Archive.open(path)
    writer = ArchiveWriter(archive)
    for batch in range(batches):
        start = 4 * batch
        writer.append(FEED, partition, rows(archive, 100 + partition, range(start + 1, start + 5), start), start, start + 4)


def test_processes_that_write_at_once_lose_nothing(archive: Archive) -> None:
    """Without the lock, Icechunk loses 8 to 25 % of such commits on a local disk."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_append_many, args=(archive.path, partition, 12)) for partition in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    head = archive.refresh()
    assert {s.run: s.lumisections for s in head.runs()} == {100: 48, 101: 48, 102: 48}
    check_tiling(head)


def test_chunks_are_what_zarr_itself_would_write(archive: Archive) -> None:
    """Byte for byte, whether a batch ends within a chunk or not."""
    written = rows(archive, 1, range(1, 231), 0)
    writer = ArchiveWriter(archive)
    bounds = (0, 30, 64, 194, 200, 230)  # up to a chunk's end, two whole ones and more, within one
    for start, stop in itertools.pairwise(bounds):
        writer.append(FEED, 0, written[start:stop], start, stop)
    head = archive.refresh()
    zarrs = MemoryStore()
    log = layout.make_log(zarr.create_group(zarrs), FEED, 0, 0, archive.geometry, "float32")
    for name, ours in head.root[layout.feed_path(FEED, 0)].arrays():
        array = log[name].with_config({"write_empty_chunks": True})
        for start, stop in itertools.pairwise(bounds):
            array.resize((stop, *array.shape[1:]))
            array[start:stop] = ours[start:stop]
        for place in range(-(-len(written) // ours.chunks[0])):
            key = f"{ours.path}/{ours.metadata.encode_chunk_key((place, *(0 for _ in ours.shape[1:])))}"
            found, expected = (sync(store.get(key, default_buffer_prototype())) for store in (head.store, zarrs))
            assert found is not None and expected is not None, key
            assert found.to_bytes() == expected.to_bytes(), key
