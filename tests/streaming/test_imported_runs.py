"""Messages of an imported run: those of another data set never become its revisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqmstream.lumisection import Lumisection
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.writer import ArchiveWriter, DatasetConflict
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.message import Message
from dqmstream.streaming.wire import encode
from tests.maps import SOURCE, check_tiling, lumisection, row

FEED = "hcal@cluster.topic"
RUN = 355400
BLANK = 2
"""A lumisection without counts: its map is the same in all data sets."""


def sent(numbers: range, *, seed: int = 0, source: str = SOURCE, run: int = RUN) -> list[Lumisection]:
    """Lumisections that come as messages; with seed 0 they have the maps of the file."""
    records = [lumisection(run, number, seed=seed, source=source, n_events=np.nan) for number in numbers]
    return [replace(r, occupancy=np.zeros_like(r.occupancy)) if r.lumisection == BLANK else r for r in records]


def imported(folder: Path, dataset: str, source: str = SOURCE) -> Archive:
    """An archive into which lumisections 1 to 4 of the run were imported from a file of that data set."""
    folder.mkdir(exist_ok=True)
    np.save(path := folder / f"Run{RUN}_Dataset_{dataset}.npy", np.stack([r.occupancy for r in sent(range(1, 5))]))
    archive = Archive.open_or_create(folder / "A", source=source)
    import_files([path], lambda: archive, dtype=archive.dtype, depths=1)
    return archive.refresh()


def file(archive: Archive, records: Sequence[Lumisection], *, max_records: int = 500) -> tuple[Archive, Ingest]:
    """The archive after these messages, and the ingest that filed them."""
    messages = [Message(0, offset, *encode(record)) for offset, record in enumerate(records)]
    feed = InProcessFeed(FEED, lambda: iter(messages), max_records=max_records)
    loop = Ingest(feed, ArchiveWriter(archive), FolderDeadLetters(archive.path.parent / "L"), topic="hcal")
    filed = archive.next_offset(FEED, 0) or 0
    while loop.counts.messages < len(records) - filed:
        loop.step(0.05)
        assert loop.drain()
    loop.close()
    check_tiling(archive.refresh())
    return archive.refresh(), loop


@pytest.mark.parametrize("max_records", [1, 500], ids=["one by one", "together"])
def test_messages_of_another_data_set_than_the_file_s_are_dead_letters_with_a_reason(tmp_path: Path, max_records: int) -> None:
    archive = imported(tmp_path / "j", "JetHT")
    before = archive.run(RUN)
    records = sent(range(1, 7), seed=1) + sent(range(1, 3), run=RUN + 1)
    after, loop = file(archive, records, max_records=max_records)
    assert after.run(RUN)["occupancy"].equals(before["occupancy"]) and not after.run(RUN)["revision"].any()
    assert after.run(RUN + 1)["lumisection"].values.tolist() == [1, 2]  # another run is no concern of the file's
    assert (loop.counts.rows, loop.counts.revisions, loop.counts.dead, loop.counts.duplicates) == (2, 0, 5, 1)
    control = after.control(FEED, 0)
    reasons = set(control["reason"].values[control["kind"].values == ControlKind.DEAD].tolist())
    assert reasons == {
        f"the source is {SOURCE}, and the archive holds run {RUN} of JetHT, from Run{RUN}_Dataset_JetHT.npy: two data sets of "
        "a run belong into two archives"
    }


@pytest.mark.parametrize(
    ("dataset", "source"),
    [("ZeroBias", SOURCE), ("ZeroBias", "ZeroBias")],
    ids=["short for full", "identical"],
)
def test_messages_of_the_file_s_own_data_set_are_its_revisions(tmp_path: Path, dataset: str, source: str) -> None:
    archive = imported(tmp_path / "z", dataset, source)
    after, loop = file(archive, sent(range(1, 7), seed=1, source=source))
    assert (loop.counts.rows, loop.counts.revisions, loop.counts.dead, loop.counts.duplicates) == (5, 3, 0, 1)
    assert after.run(RUN)["revision"].values.tolist() == [1, 0, 1, 1, 0, 0]


def test_a_file_whose_maps_are_the_messages_own_is_of_their_data_set_whatever_its_name(tmp_path: Path) -> None:
    archive = imported(tmp_path / "x", "x")
    after, loop = file(archive, sent(range(1, 7)))
    assert (loop.counts.rows, loop.counts.revisions, loop.counts.dead, loop.counts.duplicates) == (2, 0, 0, 4)
    again, loop = file(after, sent(range(1, 7)) + sent(range(7, 9), seed=1) + sent(range(6, 7), seed=2))  # after a restart
    assert (loop.counts.rows, loop.counts.revisions, loop.counts.dead) == (3, 1, 0)
    assert again.run(RUN)["lumisection"].values.tolist() == list(range(1, 9))


def test_messages_that_name_no_source_are_taken_as_files_without_one_are(tmp_path: Path) -> None:
    _, loop = file(imported(tmp_path / "j", "JetHT"), sent(range(5, 8), source=""))
    assert (loop.counts.rows, loop.counts.dead) == (3, 0)


def test_a_run_that_is_imported_while_a_service_runs_is_asked_from_then_on(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    archive = Archive.create(tmp_path / "j" / "A", source=SOURCE)
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, [row(archive, RUN + 1, 1, 0)], 0, 1)
    imported(tmp_path / "j", "JetHT")
    with pytest.raises(DatasetConflict, match="of JetHT") as conflict:
        writer.append(FEED, 0, [row(archive, RUN + 1, 2, 1), row(archive, RUN, 9, 2)], 1, 3)
    assert list(conflict.value.reasons) == [2]
    assert archive.refresh().next_offset(FEED, 0) == 1
