"""Golden lumisections and luminosity: filters at import, and labels whose older versions stay readable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from dqmstream.errors import ArchiveError, InputError
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files
from dqmstream.storage.labels.filing import file_golden, file_luminosity
from dqmstream.storage.labels.golden import read_golden
from dqmstream.storage.labels.luminosity import read_luminosity
from dqmstream.storage.maintenance.verify import verify
from tests.commandline import dqmstream, result, told
from tests.maps import counts, write_run


def golden_json(path: Path, ranges: object) -> Path:
    path.write_text(ranges if isinstance(ranges, str) else json.dumps(ranges))
    return path


def test_a_golden_json_is_read_whatever_its_order(tmp_path: Path) -> None:
    one = read_golden(golden_json(tmp_path / "g.json", {"7": [[5, 9], [1, 2], [3, 3], [8, 12]], "3": [[4, 4]], "9": []}))
    assert one.ranges.tolist() == [[3, 4, 4], [7, 1, 3], [7, 5, 12]]
    assert one.is_good(7, np.array([0, 1, 3, 4, 5, 12, 13])).tolist() == [False, True, True, False, True, True, False]
    assert not one.is_good(8, np.arange(1, 4)).any()
    assert not one.is_good(9, np.arange(1, 4)).any()
    same = {"9": [], "3": [[4, 4]], "7": [[1, 3], [5, 12]]}
    assert read_golden(golden_json(tmp_path / "h.json", same)).sha256 == one.sha256
    del same["9"]
    assert read_golden(golden_json(tmp_path / "i.json", same)).sha256 != one.sha256


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"7": [[1, 2], [9, 5]]}, r"run 7: the range \[9, 5\] is reversed"),
        ({"7": [[0, 5]]}, r"\[0, 5\] is not in"),
        ({"7": [[1]]}, r"\[1\] is no range"),
        ({"7": [[1, 2.0]]}, r"\[1, 2.0\] is no range"),
        ({"7": [[True, 2]]}, "no range"),
        ({"7": 5}, "run 7: 5 is no list"),
        ({"x": [[1, 2]]}, "'x' is no run number"),
        ({"0": [[1, 2]]}, "'0' is no run number"),
        ({}, "is no golden JSON"),
        ([1], "is no golden JSON"),
        ('{"7": [[1, 2]], "7": [[3, 4]]}', "names 7 twice"),
        ('{"7": [[1, 2]', "cannot be read as JSON"),
        ("\x80\x04K\x01.", "cannot be read as JSON|is no golden JSON"),
        ("", "cannot be read as JSON"),
    ],
)
def test_what_is_no_golden_json_is_refused_by_name_and_reason(tmp_path: Path, text: object, reason: str) -> None:
    with pytest.raises(InputError, match=f"g.json.*({reason})"):
        read_golden(golden_json(tmp_path / "g.json", text))


def test_golden_labels_are_versions_and_an_older_one_is_read_by_snapshot(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    numbers = np.arange(1, 6)
    assert archive.labels.golden_of(7, numbers).tolist() == [-1] * 5
    first = read_golden(golden_json(tmp_path / "2022.json", {"7": [[1, 3]], "9": [[1, 9]]}))
    assert file_golden(archive, first).new and not file_golden(archive, first).new
    old = archive.refresh()
    old.tag("taught")
    file_golden(archive, read_golden(golden_json(tmp_path / "newer.json", {"7": [[2, 5]]})))
    label = file_golden(archive, read_golden(golden_json(tmp_path / "2023.json", {"20": [[1, 1]]})))
    assert (label.version, label.new) == (3, True)
    labels = archive.refresh().labels
    assert labels.golden_of(7, numbers).tolist() == [0, 1, 1, 1, 1]
    assert labels.golden_of(9, numbers).tolist() == [1] * 5  # of which the newer ones do not speak
    assert labels.golden_of(8, numbers).tolist() == [0] * 5
    assert labels.golden_of(20, numbers).tolist() == [1, 0, 0, 0, 0]
    assert labels.golden_of(21, numbers).tolist() == [-1] * 5
    assert labels.golden_of(7, numbers, version=1).tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(ArchiveError, match="no version 4"):
        labels.golden_of(7, numbers, version=4)
    archive.refresh().expire(0)
    assert Archive.open(archive.path, "taught").labels.golden_of(7, numbers).tolist() == [1, 1, 1, 0, 0]
    assert verify(archive.refresh()) == []


def test_a_run_that_is_named_with_an_empty_list_is_bad_in_all_its_lumisections(tmp_path: Path) -> None:
    """Whatever an older version says, wherever the run is among those named, and for --golden-only as well."""
    archive = Archive.create(tmp_path / "A")
    numbers = np.arange(1, 4)
    file_golden(archive, read_golden(golden_json(tmp_path / "old.json", {"7": [[1, 3]], "9": [[1, 3]], "10": [[1, 3]]})))
    for run, bad in ((10, {"7": [[1, 2]], "10": []}), (7, {"7": [], "9": [[1, 1]]}), (9, {"9": []})):
        golden = read_golden(golden_json(tmp_path / "new.json", bad))
        assert file_golden(archive, golden).new and not file_golden(archive, golden).new
        labels = archive.refresh().labels
        assert labels.golden_of(run, numbers).tolist() == golden.is_good(run, numbers).astype(int).tolist() == [0, 0, 0]
    assert labels.golden_of(11, numbers).tolist() == [-1, -1, -1]
    assert labels.golden_of(10, numbers, version=1).tolist() == [1, 1, 1]
    assert verify(archive.refresh()) == []


def test_damaged_labels_are_found(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    file_golden(archive, read_golden(golden_json(tmp_path / "g.json", {"7": [[1, 3]]})))
    session = archive.refresh().writable_session()
    group = zarr.open_group(session.store, mode="r+")["labels/golden"]
    group["last"][0], group["version"][0] = 0, 2
    session.commit("a hand behind the API")
    found = [(finding.where, finding.what) for finding in verify(archive.refresh())]
    assert found == [
        ("labels/golden", "its lines are not of the versions 1 to 1, in order"),
        ("labels/golden", "it holds a reversed range"),
    ]


TABLE = {
    "run_number": [7, 7, 7],
    "lumisection_number": [1, 2, 4],
    "pileup": [30.0, None, 28.5],
    "delivered_lumi": [0.5, 0.4, 0.3],
    "recorded_lumi": [0.45, 0.4, 0.0],
}
LINES = [dict(zip(TABLE, line, strict=True)) for line in zip(*TABLE.values(), strict=True)]


def test_luminosity_tables_are_read_in_every_format(tmp_path: Path) -> None:
    head = "run_number,lumisection_number,pileup,delivered_lumi,recorded_lumi,fill"
    lines = ["7,1,30,0.5,0.45,8000", "7,4,28.5,0.3,0,8000", *["7,2,,0.4,0.4,8000"] * 2]
    (tmp_path / "a.csv").write_text("\n".join([head, *lines]) + "\n")
    (tmp_path / "b.json").write_text(json.dumps(LINES))
    (tmp_path / "c.json").write_text(json.dumps(TABLE))
    (tmp_path / "d.json").write_text(json.dumps({"data": [{"type": "lumisections", "attributes": line} for line in LINES]}))
    pq.write_table(pa.table(TABLE), tmp_path / "e.parquet")
    tables = [read_luminosity(path) for path in sorted(tmp_path.iterdir())]
    assert len({table.sha256 for table in tables}) == 1
    assert (tables[0].repeats, tables[0].ignored) == (1, ("fill",))
    found = tables[0].of(7, np.array([4, 3, 2]))
    np.testing.assert_array_equal(found["pileup"], [28.5, np.nan, np.nan])
    np.testing.assert_array_equal(found["recorded_lumi"], [0.0, np.nan, 0.4])
    assert np.isnan(tables[0].of(8, np.array([1]))["pileup"]).all()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.csv", "ls,pileup\n1,2\n1,3\n", "names lumisection 1 twice, with pileup 2.0 and 3.0"),
        ("t.csv", "ls,pileup\n1,-2\n", "line 1 of data: pileup is -2.0"),
        ("t.csv", "ls,pileup\n1,many\n", "line 1 of data: pileup is 'many', no number"),
        ("t.csv", "ls,pileup\n1.5,2\n", "lumisection is 1.5"),
        ("t.csv", "ls,pileup\n,2\n", "lumisection is nan"),
        ("t.csv", "ls,pileup\n1\n", "line 2 does not have the 2 columns"),
        ("t.csv", "ls,fill\n1,2\n", "none of the columns pileup"),
        ("t.csv", "fill,pileup\n1,2\n", "no column lumisection_number"),
        ("t.csv", "ls,pileup\n", "holds no line"),
        ("t.csv", "", "no column lumisection_number"),
        ("t.csv", b"\xff\xfe\x00", "cannot be read as CSV"),
        ("t.json", "[1, 2]", "is no table"),
        ("t.json", "{", "cannot be read as JSON"),
        ("t.json", '{"ls": [1, 2], "pileup": [1]}', "not equally long"),
        ("t.parquet", "x", "cannot be read as Parquet"),
        ("t.txt", "x", "give .csv, .json or .parquet"),
    ],
)
def test_bad_tables_are_refused_by_name_line_and_reason(tmp_path: Path, name: str, text: str | bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"{name}.*{reason}"):
        read_luminosity(tmp_path / name)


def test_luminosity_labels_say_the_newest_of_each_lumisection(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    (tmp_path / "a.json").write_text(json.dumps(LINES))
    (tmp_path / "b.json").write_text(json.dumps([{**LINES[0], "recorded_lumi": 0.6}]))
    for name in ("a.json", "b.json"):
        file_luminosity(archive, read_luminosity(tmp_path / name))
    said = archive.refresh().labels.luminosity_of(7, np.array([1, 2, 3]))
    np.testing.assert_array_equal(said["recorded_lumi"], [0.6, 0.4, np.nan])
    (tmp_path / "c.csv").write_text("ls,pileup\n1,2\n")
    with pytest.raises(ArchiveError, match="names no run"):
        file_luminosity(archive, read_luminosity(tmp_path / "c.csv"))


def test_labels_of_one_lumisection_come_from_several_tables_and_twice_is_once(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    (tmp_path / "oms.csv").write_text("run,ls,pileup,recorded_lumi\n7,1,30,.5\n7,2,31,.6\n")
    (tmp_path / "hlt.csv").write_text("run,ls,events,pileup\n7,1,1200,\n")
    tables = [read_luminosity(tmp_path / name) for name in ("oms.csv", "hlt.csv")]
    assert [file_luminosity(archive, table).version for table in tables] == [1, 2]
    said = archive.refresh().labels.luminosity_of(7, np.array([1, 2]))
    np.testing.assert_array_equal(said["n_events"], [1200, np.nan])
    np.testing.assert_array_equal(said["pileup"], [30, 31])
    again = [file_luminosity(archive, table) for table in tables]
    assert [(label.version, label.new) for label in again] == [(1, False), (2, False)]
    (tmp_path / "newer.csv").write_text("run,ls,pileup\n7,1,29\n")
    assert file_luminosity(archive, read_luminosity(tmp_path / "newer.csv")).new
    assert archive.refresh().labels.luminosity_of(7, np.array([1]))["pileup"] == 29
    assert file_luminosity(archive, tables[0]).new  # it says otherwise than the newest


def test_interpolated_rows_have_no_labels_of_lumisections(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    for run, interpolated in ((7, True), (8, False)):
        path = write_run(tmp_path, run, counts(run, 3), sidecars=False)
        import_files([path], lambda: archive, dtype=archive.dtype, depths=1, interpolated=interpolated)
    (tmp_path / "oms.csv").write_text("run,ls,pileup,recorded_lumi\n7,1,30,.5\n8,1,31,.6\n")
    file_luminosity(archive, read_luminosity(tmp_path / "oms.csv"))
    file_golden(archive, read_golden(golden_json(tmp_path / "g.json", {"7": [[1, 2]], "8": [[1, 2]]})))
    views = [archive.refresh().run(run, maps=False) for run in (7, 8)]
    assert [view["golden"].values.tolist() for view in views] == [[-1, -1, -1], [1, 1, 0]]
    assert np.isnan(views[0]["recorded_lumi"]).all() and views[1]["recorded_lumi"][0] == 0.6


def test_import_filters_and_labels_as_flags_ask(tmp_path: Path) -> None:
    archive = tmp_path / "A"
    path = write_run(tmp_path / "data", 7, counts(7, 6), sidecars=False)
    golden = golden_json(tmp_path / "g.json", {"7": [[2, 3], [5, 9]]})
    table = tmp_path / "oms.csv"
    table.write_text("ls_number,pileup,recorded_lumi,events\n1,9,.5,900\n2,8,.4,800\n5,7,.3,700\n")
    asked = ("import", path, "--archive", archive, "--golden", golden, "--golden-only", "--lumi", table)
    done = result(*asked)
    (file,) = done["files"]  # type: ignore[misc]
    assert file["rows"] == 4 and file["dropped"] == [{"reason": "not good in g.json", "count": 2, "what": "lumisections"}]  # type: ignore[index]
    assert file["notes"] == ["oms.csv: conditions of 3 of 6 lumisections"]  # type: ignore[index]
    view = Archive.open(archive).run(7)
    assert view["lumisection"].values.tolist() == [2, 3, 5, 6] and view["golden"].values.tolist() == [1, 1, 1, 1]
    np.testing.assert_array_equal(view["pileup"], [8, np.nan, 7, np.nan])
    np.testing.assert_array_equal(view["n_events"], [800, np.nan, 700, np.nan])
    np.testing.assert_array_equal(view["recorded_lumi"], [0.4, np.nan, 0.3, np.nan])
    assert verify(Archive.open(archive)) == []
    snapshot = Archive.open(archive).snapshot
    assert "golden: g.json is version 1, as before" in dqmstream(*asked).stdout
    assert Archive.open(archive).snapshot == snapshot
    newer = golden_json(tmp_path / "newer.json", {"7": [[6, 6]]})
    assert result("import", "--archive", archive, "--golden", newer)["labels"] == [
        {"kind": "golden", "version": 2, "name": "newer.json", "new": True}
    ]
    assert Archive.open(archive).run(7)["golden"].values.tolist() == [0, 0, 0, 1]
    assert Archive.open(archive, snapshot).run(7)["golden"].values.tolist() == [1, 1, 1, 1]
    whole = result("import", path, "--archive", archive, "--lumi", table)["files"][0]  # type: ignore[index]
    assert (whole["rows"], whole["duplicates"], whole["revisions"]) == (2, 4, 0)
    assert result("status", "--archive", archive)["labels"][1]["name"] == "newer.json"  # type: ignore[index]


def test_flags_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "data", 7, counts(7, 2), sidecars=False)
    other = write_run(tmp_path / "data", 8, counts(8, 2), sidecars=False)
    (tmp_path / "t.csv").write_text("ls,pileup\n1,2\n")
    golden = golden_json(tmp_path / "g.json", {"7": [[1, 2]]})
    cases = (
        (("--golden-only", path), 3, "give --golden FILE too"),
        (("--lumi", tmp_path / "t.csv", path, other), 3, "several runs are imported: add that column"),
        (("--golden", golden), 5, "is no archive"),
        (("--lumi", tmp_path / "t.csv", path, "--interpolated"), 3, "leave out --lumi or --interpolated"),
        (("--golden", golden, "--golden-only", path, "--interpolated"), 3, "leave out --golden-only or --interpolated"),
        (("--hlt-path", "HLT_Physics", path), 3, "--hlt-path is for a table of HLT rates"),
        ((path, golden), 3, "a golden JSON is given by --golden"),
    )
    for words, code, says in cases:
        assert says in told(dqmstream("import", "--archive", tmp_path / "A", *words), code)
        assert not (tmp_path / "A").exists()
