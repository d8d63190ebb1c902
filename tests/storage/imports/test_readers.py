"""Lumisections in every layout that users have: read completely, dropped rows are noted, damaged files are refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqmstream.errors import InputError
from dqmstream.lumisection import Geometry
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import Imported, import_runs
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.imports.run_file import Dropped
from dqmstream.storage.maintenance.verify import verify
from tests.commandline import dqmstream, result, told
from tests.layouts import DATASET, ELEMENT, booked, depth_maps, dials_rows, nested, write_dials, write_group
from tests.maps import counts, write_run

HF_NOTE = "HF at |ieta| 30 to 32 was read one bin further out than HE, where cmssw books it"


def take(folder: Path, *paths: Path, depths: int | None = None, **asked: object) -> list[Imported]:
    """Import into an archive in that folder, which is made if it is missing."""
    path = folder / "A"
    standing = Archive.open(path) if Archive.exists(path) else None
    rules = ImportRules(
        np.dtype("float32"),
        depths,
        stored_source=standing.source if standing else "",
        **asked,  # type: ignore[arg-type]
    )

    def archive() -> Archive:
        return Archive.open_or_create(path, geometry=Geometry(depths) if depths else None)

    done, _ = import_runs(paths, archive, rules)
    assert verify(Archive.open(path)) == []
    return done


def wide(n: int, *, outside: float = 0.0) -> np.ndarray:
    maps = np.pad(counts(5, n), ((0, 0), (10, 10), (0, 0)))
    maps[1, 3, 7] = outside
    return maps


def test_the_middle_of_wider_maps_is_taken_and_what_lies_outside_is_told(tmp_path: Path) -> None:
    (done,) = take(tmp_path, write_run(tmp_path / "a", 5, wide(3)))
    assert (done.rows, done.notes) == (3, ())
    np.testing.assert_array_equal(Archive.open(tmp_path / "A").run(5)["occupancy"][:, 0], counts(5, 3))
    path = write_run(tmp_path / "b", 6, wide(3, outside=40))
    with pytest.raises(InputError, match=r"Run6_Dataset_x.npy, rows 0 to 2: 40 counts in 1 cells beyond \|ieta\| 32, .*--crop"):
        take(tmp_path, path)
    (done,) = take(tmp_path, path, crop=True)
    assert done.notes == ("cropped: 40 counts in 1 cells beyond |ieta| 32",)
    np.testing.assert_array_equal(Archive.open(tmp_path / "A").run(6)["occupancy"][:, 0], counts(5, 3))


@pytest.mark.parametrize("row_group", [2, 100])
def test_dials_rows_are_joined_whatever_their_order_and_files(tmp_path: Path, row_group: int) -> None:
    maps = {380000: depth_maps(1, 7, 3), 380001: depth_maps(2, 5, 3)}
    rows = [row for run, one in maps.items() for row in dials_rows(run, one)]
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    paths = [write_dials(tmp_path / f"{k}.parquet", rows[k::2], row_group) for k in range(2)]
    done = take(tmp_path, *paths, depths=3)
    assert [(one.run, one.rows, one.dropped) for one in done] == [(380000, 7, ()), (380001, 5, ())]
    archive = Archive.open(tmp_path / "A")
    for run, one in maps.items():
        np.testing.assert_array_equal(archive.run(run)["occupancy"], one)
    assert archive.source == f"{DATASET}#Hcal/DigiTask/Occupancy/depth"
    rows.sort(key=lambda row: (row["run_number"], row["me"], row["ls_number"]))
    again = take(tmp_path, write_dials(tmp_path / "sorted.parquet", rows), depths=3)
    assert all(one.known for one in again)  # the same contents in one file and another order


def test_what_dials_files_lack_or_hold_besides_is_dropped_with_the_reason(tmp_path: Path) -> None:
    maps = depth_maps(3, 6, 2)
    rows = dials_rows(381000, maps, first=11)
    rows += [dict(rows[4]), {**rows[0], "me": "Hcal/DigiTask/TDC/depth1"}]
    del rows[3]  # lumisection 12, depth 2
    rows += [{**row, "me": ELEMENT.format(5)} for row in rows[:2]]
    (done,) = take(tmp_path, write_dials(tmp_path / "x.parquet", rows), depths=2)
    assert done.rows == done.lumisections == 5
    assert done.dropped == (
        Dropped("depth 2 missing", 1),
        Dropped("of other depths than 1 to 2", 2, "rows"),
        Dropped("there before, with the same counts", 1, "rows"),
    )
    assert done.notes == ("entries count hits, not events: left out", HF_NOTE, "left out: 1 rows of Hcal/DigiTask/TDC/depth1")
    view = Archive.open(tmp_path / "A").run(381000)
    assert view["lumisection"].values.tolist() == [11, 13, 14, 15, 16]
    np.testing.assert_array_equal(view["occupancy"], maps[[0, 2, 3, 4, 5]])
    assert np.isnan(view["n_events"]).all()


def test_entries_are_events_only_where_they_can_be(tmp_path: Path) -> None:
    rows = dials_rows(382000, depth_maps(4, 4, 1))
    rows = [{**row, "entries": 1500.0 + int(str(row["ls_number"]))} for row in rows]
    (done,) = take(tmp_path, write_dials(tmp_path / "x.parquet", rows))
    assert done.notes == ("entries were taken for the number of events", HF_NOTE)
    assert Archive.open(tmp_path / "A").run(382000)["n_events"].values.tolist() == [1501, 1502, 1503, 1504]


def test_a_lone_depth_is_taken_and_several_must_be_asked_for(tmp_path: Path) -> None:
    rows = dials_rows(383000, depth_maps(5, 2, 3))
    with pytest.raises(InputError, match=r"holds the depths 1, 2, 3: give --depths 3"):
        take(tmp_path, write_dials(tmp_path / "x.parquet", rows))
    with pytest.raises(InputError, match="and not 4, the archive 7"):
        take(tmp_path, tmp_path / "x.parquet", depths=7)
    third = [row for row in rows if row["me"] == ELEMENT.format(3)]
    take(tmp_path, write_dials(tmp_path / "third.parquet", third))
    assert Archive.open(tmp_path / "A").source.endswith("depth3")


def test_data_sets_are_not_mixed_unless_one_name_is_given_for_all(tmp_path: Path) -> None:
    first = write_dials(tmp_path / "c.parquet", dials_rows(384000, depth_maps(6, 2, 1)))
    second = write_dials(tmp_path / "d.parquet", dials_rows(384500, depth_maps(7, 2, 1), dataset="/ZeroBias/Run2024D"))
    with pytest.raises(InputError, match=r"of /ZeroBias/Run2024D.*, run 384000.*give --source NAME"):
        take(tmp_path, first, second)
    done = take(tmp_path, first, second, source="ZeroBias 2024")
    assert [one.rows for one in done] == [2, 2] and Archive.open(tmp_path / "A").source == "ZeroBias 2024"
    with pytest.raises(InputError, match="the archive of ZeroBias 2024"):
        take(tmp_path, write_dials(tmp_path / "e.parquet", dials_rows(384600, depth_maps(7, 2, 1))))
    mixed = dials_rows(384700, depth_maps(6, 2, 1))
    mixed[1]["dataset"] = "other"
    with pytest.raises(InputError, match="run 384700: of the data sets"):
        take(tmp_path, write_dials(tmp_path / "f.parquet", mixed), source="ZeroBias 2024")


def broken(**changes: object) -> list[dict[str, object]]:
    """Three rows, with the second one changed."""
    rows = dials_rows(385000, depth_maps(8, 3, 1))
    rows[1] |= changes
    return rows


def without(*names: str) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in names} | {"mse": 1.0, "data": 0} for row in broken()]


BAD = booked(depth_maps(1, 1, 1)[0, 0]).T


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (broken(data=[[1.0] * 84] * 71), "row 1: data: a list of level 1 holds 71 entries"),
        (broken(data=[*[[1.0] * 84] * 71, [1.0] * 83]), "row 1: data: a list of level 2 holds 83 entries"),
        (broken(data=None), "row 1: data: a list of level 1 is null"),
        (broken(data=np.where(BAD > 0, np.nan, 0)), "lumisection 2: occupancy holds NaN"),
        (broken(data=-BAD), "lumisection 2: occupancy holds a negative count"),
        (broken(data=BAD + (np.arange(84) == 2)), r"lumisection 2, depth 1: 72 counts in 72 cells beyond \|ieta\| 32,"),
        (broken(ls_number=1), "lumisection 1, depth 1: there twice, with different counts"),
        (broken(ls_number=0), "ls_number 0 is not in"),
        (broken(run_number=None), "run_number"),
        ([{**row, "data": [[1.0] * 72] * 84} for row in broken()], "data is 84x72, not 72x84"),
        ([{**row, "data": 1.0} for row in broken()], "level 1 is double, no list"),
        (
            [{**row, "me": "Hcal/x"} for row in broken()],
            "holds no row of Hcal/DigiTask/Occupancy/depth/depth<n>; it has Hcal/x",
        ),
        (without("me"), "has no column me, which DIALS maps have .*mse"),
    ],
)
def test_bad_dials_files_are_refused_by_name_and_reason(tmp_path: Path, rows: list[dict[str, object]], reason: str) -> None:
    path = write_dials(tmp_path / "bad.parquet", rows)
    with pytest.raises(InputError, match=f"bad.parquet.*{reason}"):
        take(tmp_path, path)
    assert not (tmp_path / "A").exists()


def test_damaged_and_empty_parquet_is_refused(tmp_path: Path) -> None:
    path = write_dials(tmp_path / "bad.parquet", broken())
    whole = path.read_bytes()
    table = pq.read_table(path)
    for damaged in (whole[:-9], b"", b"\x80\x04K\x01.", whole[:200]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"bad.parquet cannot be read as Parquet"):
            take(tmp_path, path)
    pq.write_table(table.slice(0, 0), path)
    with pytest.raises(InputError, match=r"bad.parquet holds no row"):
        take(tmp_path, path)


def test_group_files_take_their_numbers_from_the_table_beside_them(tmp_path: Path) -> None:
    maps = depth_maps(9, 4, 7)
    table = np.zeros(4, [("run", "i8"), ("ls", "i8"), ("lumi", "f8"), ("pileup", "f4")])
    table["run"], table["ls"], table["lumi"], table["pileup"] = 356000, [7, 5, 6, 9], [0.5, 0.4, np.nan, 0.3], [30, 31, 32, 33]
    path = write_group(tmp_path, 356000, maps, table, json.dumps({"run": 356000, "dataset": "/ZeroBias/Run2022D"}))
    (done,) = take(tmp_path, path, depths=7)
    assert (done.rows, done.name) == (4, "Run356000/output__depth.npy")
    view = Archive.open(tmp_path / "A").run(356000)
    assert view["lumisection"].values.tolist() == [5, 6, 7, 9] and view.attrs["source"] == "/ZeroBias/Run2022D"
    np.testing.assert_array_equal(view["occupancy"], maps[[1, 2, 0, 3]])
    np.testing.assert_array_equal(view["pileup"], [31, 32, 30, 33])
    plain = np.stack([np.full(4, 356001), [1, 2, 2, 4], [0.1, 0.2, 0.2, 0.4]], axis=1)
    maps[2] = maps[1]
    write_group(tmp_path / "more", 356001, maps, plain)
    (done,) = take(tmp_path, tmp_path / "more", depths=7)
    assert done.dropped == (Dropped("there before, with the same counts", 1, "rows"),) and done.rows == 3
    (done,) = take(tmp_path, write_group(tmp_path / "bare", 356002, maps), depths=7)
    assert "row k was taken for lumisection k + 1" in done.notes[0]


def _table(**fields: object) -> np.ndarray:
    table = np.zeros(3, [(name, "f8") for name in fields])
    for name, value in fields.items():
        table[name] = value
    return table


@pytest.mark.parametrize(
    ("table", "meta", "reason"),
    [
        (np.array([{"run": 1}], object), None, "run_ls_lumi_df.npy.*never unpickled; save it as numbers"),
        (_table(run=3, ls=[1, 2, 3]), None, "speaks of run 3, and lies in the folder of run 356000"),
        (_table(ls=[1, 2, 2]), None, "lumisection 2 is there twice, with different counts"),
        (_table(ls=[1, 2, 2.5]), None, "lumisection is 2.5"),
        (_table(lumi=1), None, "has no column lumisection_number"),
        (_table(ls=[1, 2, 3], LS=1), None, "two columns for lumisection"),
        (np.zeros((2, 3)) + 356000, None, "has 2 lines, and there are 3 maps.* since row 0 is not empty"),
        (np.zeros((3, 4)), None, "three columns"),
        (None, '{"run": 4}', "meta_data.json speaks of run 4"),
        (None, "{", "meta_data.json cannot be read as JSON"),
    ],
)
def test_group_tables_that_cannot_be_trusted_are_refused(
    tmp_path: Path, table: np.ndarray | None, meta: str | None, reason: str
) -> None:
    path = write_group(tmp_path, 356000, depth_maps(1, 3, 7), table, meta)
    with pytest.raises(InputError, match=reason):
        take(tmp_path, path, depths=7)
    assert not (tmp_path / "A").exists()


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("Run1/output__depth.npy", np.zeros((3, 64, 72, 7)), r"shape \(3, 64, 72, 7\)"),
        ("Run1/output__depth.npy", np.zeros((3, 63, 72, 7, 1)), "must have"),
        ("Run1/output__depth.npy", np.zeros((3, 64, 72, 8, 1)), "8 depths"),
        ("Run1/output__depth.npy", np.zeros((3, 64, 72, 2, 1)), r"holds 2 depth\(s\), the archive 1.*--depths 2"),
        ("here/output__depth.npy", np.zeros((3, 64, 72, 1, 1)), "folder does not tell the run"),
        ("Run1/output__depth.npy", np.full((3, 64, 72, 1, 1), np.nan), "lumisection 1: occupancy holds NaN"),
        ("Run0/output__depth.npy", np.zeros((3, 64, 72, 1, 1)), "run 0"),
        ("Run1_Dataset_x.npy", np.zeros((3, 65, 72)), r"shape \(3, 65, 72\)"),
        ("x.npz", None, "save each as .npy"),
        ("lumi.csv", None, "by --lumi"),
        ("x.root", None, "is no .npy file"),
    ],
)
def test_other_files_are_refused_by_name_and_reason(tmp_path: Path, name: str, array: np.ndarray | None, reason: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    np.save(path, array) if array is not None else path.write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name}.*{reason}"):
        take(tmp_path, path)
    assert not (tmp_path / "A").exists()


def write_big_dials(path: Path) -> None:
    maps = depth_maps(1, 64, 1)
    rows = dials_rows(1, maps)
    data = nested(np.stack([row["data"] for row in rows]).astype(np.float64))  # type: ignore[arg-type]
    n = 64 * 40
    table = pa.table(
        {
            "run_number": np.repeat(np.arange(1, 3), n // 2),
            "ls_number": np.tile(np.arange(n // 2) + 1, 2)[::-1],
            "me": [ELEMENT.format(1)] * n,
            "data": pa.chunked_array([data] * 40),
        }
    )
    pq.write_table(table, path, row_group_size=n)  # 124 MB of counts in one row group


def write_big_array(path: Path) -> None:
    np.save(path, np.tile(counts(1, 50), (60, 1, 1)))  # 111 MB


@pytest.mark.parametrize(("name", "write"), [("big.parquet", write_big_dials), ("Run1_Dataset_big.npy", write_big_array)])
def test_a_big_file_never_lies_whole_in_memory(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    bound = 48 << 20
    pool, before = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        path = tmp_path / "A"
        done, _ = import_runs(
            [tmp_path / name], lambda: Archive.open_or_create(path), ImportRules(np.dtype("float32"), scratch=tmp_path)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert sum(one.lumisections for one in done) in (2560, 3000)
    assert peak + (pool.max_memory() or 0) < bound, f"{peak} and {pool.max_memory()} bytes"


def test_the_command_says_what_it_took_and_dropped_and_why(tmp_path: Path) -> None:
    rows = dials_rows(386000, depth_maps(2, 4, 2))
    path = write_dials(tmp_path / "x.parquet", rows[:-1])
    shown = dqmstream("import", path, "--archive", tmp_path / "A", "--depths", 2).stdout
    assert "depth 2 missing" in shown and "entries count hits" in shown
    done = result("import", path, "--archive", tmp_path / "A")
    (file,) = done["files"]  # type: ignore[misc]
    assert file["known"] and file["dropped"] == [{"reason": "depth 2 missing", "count": 1, "what": "lumisections"}]  # type: ignore[index]
    assert "nothing to import" in told(dqmstream("import", "--archive", tmp_path / "A"), 3)
