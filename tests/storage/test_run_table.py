"""The table of runs is a list of summaries, and prints what they hold."""

from __future__ import annotations

from pathlib import Path

from dqmstream.storage.archive import Archive
from dqmstream.storage.row_index import RunSummary
from dqmstream.storage.run_table import RunTable
from dqmstream.storage.writer import ArchiveWriter
from tests.maps import row, rows


def test_runs_of_an_archive_are_a_list_that_prints_as_a_table(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    assert archive.runs() == [] and repr(archive.runs()).startswith("<RunTable of 0 runs>")
    writer = ArchiveWriter(archive)
    writer.append("f", 0, [*rows(archive, 7, range(1, 5), 0), *rows(archive, 9, range(2, 4), 4)], 0, 6)
    writer.append("f", 0, [row(archive, 7, 2, 6, seed=3), row(archive, 9, 3, 7)], 6, 8)
    found = archive.refresh().runs()
    assert [summary.run for summary in found] == [7, 9]
    assert [line.split() for line in repr(found).splitlines()[1:]] == [
        ["run", "lumisections", "first", "last", "missing", "revisions", "duplicates", "complete"],
        ["7", "4", "1", "4", "0", "1", "0", "next_run"],
        ["9", "2", "2", "3", "0", "0", "1", "no"],
    ]
    assert "<tr><td>9</td><td>2</td><td>2</td>" in found._repr_html_()


def test_of_many_runs_the_first_and_the_last_are_printed() -> None:
    table = RunTable(RunSummary(run, 1, 1, 1, 1, 0, "stop", (0, "f", 0, run), 0) for run in range(1000))
    lines = repr(table).splitlines()
    assert len(lines) == 63 and lines[1 + 30].split()[0] == "29" and lines[-1].split()[0] == "999"
    assert lines[1 + 31].split() == ["..."] * 8
    assert table._repr_html_().count("<tr>") == 62
