"""Counts are filed under the channels that gave them, whatever the binning of the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dqmstream.errors import InputError
from dqmstream.experiments.compare.pair import read_pair
from dqmstream.lumisection import IETA, IPHI, Geometry
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.binning import find_shift
from dqmstream.storage.imports.importer import Imported, import_runs
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.imports.run_file import Dropped
from tests.layouts import booked, dials_rows, write_dials, write_group
from tests.maps import counts, write_run

REAL = Path(__file__).parents[4] / "shared" / "real"
Keep = Callable[[int, int], bool]


def take(path: Path, archive: Path, depths: int = 1, *, crop: bool = False) -> tuple[Imported, xr.Dataset]:
    """What an import reports of the only run of a file, and the run as it was filed."""
    rules = ImportRules(np.dtype("float32"), depths, crop=crop)
    (done,), _ = import_runs([path], lambda: Archive.open_or_create(archive, geometry=Geometry(depths)), rules)
    return done, Archive.open(archive).run(done.run)


def hbhe(ieta: int, iphi: int) -> bool:
    return abs(ieta) <= 29 and (abs(ieta) <= 20 or iphi % 2 == 1)


def channels(keep: Keep, n: int = 3, depths: int = 2) -> np.ndarray:
    """Maps of channels that count, no two of them alike: (n, depths, 64, 72)."""
    live = np.array([[keep(ieta, iphi) for iphi in IPHI.tolist()] for ieta in IETA.tolist()])
    return (1 + np.arange(n * depths * live.size).reshape(n, depths, *live.shape)) * live


def as_converted(maps: np.ndarray, *, moved: bool) -> np.ndarray:
    """A group's histogram of (64, -32, 32) and (72, 0, 72) filled with ieta and iphi, row k for lumisection k; moved or not."""
    found = np.zeros((len(maps) + 1, *maps.shape[1:]))
    for row, ieta in enumerate(IETA.tolist()):
        for column, iphi in enumerate(IPHI.tolist()):
            if ieta < 32 and iphi < 72:  # the last bins end there
                found[1:, :, row if moved else ieta + 32, column if moved else iphi] = maps[..., row, column]
    return found


def lines(numbers: list[int], events: float = 40_000.0) -> np.ndarray:
    table = np.zeros(len(numbers), [("ls", "i8"), ("NumEvents", "i8")])
    table["ls"], table["NumEvents"] = numbers, events + np.array(numbers)
    return table


@pytest.mark.parametrize(
    ("keep", "is_off"),
    [
        (hbhe, True),
        (lambda ieta, iphi: hbhe(ieta, iphi) and abs(ieta) > 18, True),
        (lambda ieta, iphi: abs(ieta) <= 16, True),
        (hbhe, False),
        (lambda ieta, iphi: hbhe(ieta, iphi) and abs(ieta) > 18, False),
        (lambda ieta, iphi: abs(ieta) <= 15, False),
        (lambda ieta, iphi: abs(ieta) > 28 and iphi % 2 == 1, False),
    ],
    ids=["hbhe", "hbhe of HE alone", "hbhe of HB alone", "moved", "he", "ho", "hf"],
)
def test_maps_of_the_group_are_filed_under_their_channels_and_lumisections(tmp_path: Path, keep: Keep, is_off: bool) -> None:
    maps = channels(keep)
    maps[0] = 0  # an empty lumisection, which was there
    path = write_group(tmp_path, 356100, as_converted(maps, moved=not is_off), lines([1, 2, 3]))
    done, run = take(path, tmp_path / "A", 2)
    assert done.dropped == (Dropped("row 0, which is empty: row k is lumisection k", 1, "rows"),)
    assert run["lumisection"].values.tolist() == [1, 2, 3] and run["n_events"].values.tolist() == [40_001, 40_002, 40_003]
    has = (IETA[:, None] < 32) & (IPHI < 72)
    np.testing.assert_array_equal(run["occupancy"].values, maps * has)
    assert any(note.startswith("moved by one") for note in done.notes) == is_off


def test_maps_that_only_look_shifted_stay_where_they_lie() -> None:
    he = channels(lambda ieta, iphi: hbhe(ieta, iphi) and abs(ieta) > 16 and iphi != 1)  # iphi 1 is dead in all of HE
    assert find_shift([he])[0].is_plain
    assert find_shift([np.zeros((2, 64, 72))])[0].is_plain
    assert find_shift([np.zeros((2, 64, 72)), channels(hbhe)])[0].is_plain
    stray = as_converted(channels(hbhe), moved=False)
    stray[..., 60, 4] = 1  # of no channel once it were moved
    places, (note,) = find_shift([stray])
    assert places.is_plain and "cells hold counts where HCAL has no channel" in note


def test_a_run_in_the_original_layout_is_looked_at_too(tmp_path: Path) -> None:
    maps = channels(hbhe, depths=1)
    done, run = take(write_run(tmp_path, 5, as_converted(maps, moved=False)[:, 0], sidecars=False), tmp_path / "A")
    np.testing.assert_array_equal(run["occupancy"].values, maps * (IPHI < 72))
    assert run["lumisection"].values.tolist() == [1, 2, 3]
    plain = counts(6, 3)
    plain[0] = 0
    done, run = take(write_run(tmp_path, 6, plain), tmp_path / "A")
    assert run.sizes["lumisection"] == 3 and "row 0 is empty and was taken for lumisection 1" in done.notes[0]


@pytest.mark.parametrize(
    ("table", "meta", "numbers", "dropped"),
    [
        ([2, 3], None, [2, 3], {"row 0, which is empty: row k is lumisection k": 1, "empty, and not in run_ls_lumi_df.npy": 1}),
        (None, None, [1, 2, 3], {"row 0, which is empty: row k is lumisection k": 1}),
        (None, [0, 5, 6, 9], [5, 6, 9], {"row 0, which is empty: row k is lumisection k": 1}),
        ([5, 9], [0, 5, 6, 9], [5, 6, 9], {"row 0, which is empty: row k is lumisection k": 1}),
        ([7, 8, 9, 10], None, [7, 8, 9, 10], {}),
    ],
)
def test_rows_of_the_group_are_numbered_by_what_lies_beside_them(
    tmp_path: Path, table: list[int] | None, meta: list[int] | None, numbers: list[int], dropped: dict[str, int]
) -> None:
    maps = as_converted(channels(hbhe), moved=True)
    if table == [2, 3]:
        maps[1] = 0
    told = None if meta is None else json.dumps({"RunId": 356200, "xaxis": {"label": "ls", "values": meta}})
    path = write_group(tmp_path, 356200, maps, None if table is None else lines(table), told)
    done, run = take(path, tmp_path / "A", 2)
    assert run["lumisection"].values.tolist() == numbers
    assert {one.reason: one.count for one in done.dropped} == dropped
    np.testing.assert_array_equal(run["occupancy"].values[-1], maps[-1])
    known = [40_000.0 + number if table and number in table else np.nan for number in numbers]
    np.testing.assert_array_equal(run["n_events"].values, known)


def test_rows_that_nothing_numbers_are_refused(tmp_path: Path) -> None:
    maps = as_converted(channels(hbhe), moved=True)
    with pytest.raises(InputError, match=r"has 3 lines, and there are 4 maps .* lumisection 8 has no row"):
        take(write_group(tmp_path / "a", 1, maps, lines([1, 2, 8])), tmp_path / "A", 2)
    maps[0] = maps[1]
    meta = json.dumps({"xaxis": {"label": "ls", "values": [0, 1, 2, 3]}})
    with pytest.raises(InputError, match=r"row 0: it holds counts, and is lumisection 0 by meta_data.json"):
        take(write_group(tmp_path / "b", 1, maps, None, meta), tmp_path / "A", 2)


def of_cmssw() -> tuple[np.ndarray, np.ndarray]:
    """A map (84, 72) that holds all of HB, HE and HF, and what the archive keeps of it, (64, 72), by channel."""
    wide, kept = np.zeros((84, 72)), np.zeros((64, 72))
    for detector, rings in (("he", range(1, 30)), ("hf", range(29, 42))):
        for ieta in (*(-ring for ring in rings), *rings):
            for iphi in range(1, 73, 1 if abs(ieta) <= 20 else 2):
                count = 1000 * abs(ieta) + 100 * (ieta < 0) + iphi
                outward = detector == "hf"
                wide[ieta + 42 - outward if ieta < 0 else ieta + 41 + outward, iphi - 1] = count
                if abs(ieta) <= (32 if outward else 29) and not (outward and abs(ieta) == 29):
                    kept[ieta + 32 if ieta < 0 else ieta + 31, iphi - 1] = count
    return wide, kept


@pytest.mark.parametrize("layout", ["npy", "parquet"])
def test_hf_is_read_where_cmssw_books_it_and_gives_way_to_he_at_29(tmp_path: Path, layout: str) -> None:
    wide, kept = of_cmssw()
    if layout == "npy":
        path = write_run(tmp_path, 380000, np.stack([wide, 2 * wide]), sidecars=False)
    else:
        rows = dials_rows(380000, np.zeros((2, 1, 64, 72)))
        path = write_dials(tmp_path / "x.parquet", [{**row, "data": k * wide.T} for k, row in enumerate(rows, start=1)])
    with pytest.raises(InputError, match=r"in 648 cells beyond \|ieta\| 32 and 72 cells of HF at \|ieta\| 29.*give --crop"):
        take(path, tmp_path / "A")
    done, run = take(path, tmp_path / "A", crop=True)
    np.testing.assert_array_equal(run["occupancy"].values[:, 0], [kept, 2 * kept])
    left_out = 3 * (wide.sum() - kept.sum())
    assert f"cropped: {left_out:g} counts in 648 cells beyond |ieta| 32 and 72 cells of HF at |ieta| 29" in " ".join(done.notes)
    assert "HF at |ieta| 30 to 32 was read one bin further out than HE, where cmssw books it" in done.notes
    here = run["occupancy"].sel(lumisection=1, depth=1)
    assert float(here.sel(ieta=-29, iphi=5)) == 29_105 and float(here.sel(ieta=31, iphi=7)) == 31_007


def test_booking_as_cmssw_does_and_reading_it_are_inverse(tmp_path: Path) -> None:
    maps = channels(lambda ieta, iphi: abs(ieta) <= 20 or iphi % 2 == 1, depths=1)
    _, run = take(write_run(tmp_path, 7, booked(maps[:, 0]), sidecars=False), tmp_path / "A")
    np.testing.assert_array_equal(run["occupancy"].values, maps)


@pytest.mark.parametrize("moved", [lambda maps: booked(maps[:, 0]), lambda maps: as_converted(maps, moved=False)[:, 0]])
def test_compare_reads_the_same_channels_whatever_the_file(tmp_path: Path, moved: Callable[[np.ndarray], np.ndarray]) -> None:
    first, second = (channels(lambda ieta, iphi: hbhe(ieta, iphi) and iphi != 72, 6, 1) + k for k in (0, 3))
    second *= first > 0
    one = write_run(tmp_path, 1, first[:, 0], sidecars=False)
    plain = write_run(tmp_path / "plain", 2, second[:, 0], sidecars=False)
    other = write_run(tmp_path / "other", 2, moved(second), sidecars=False)
    expected, found = (read_pair(str(one), str(path), None, False) for path in (plain, other))
    np.testing.assert_array_equal(found.channels.live, expected.channels.live)
    np.testing.assert_array_equal(found.samples[1].counts, expected.samples[1].counts)


@pytest.mark.skipif(not REAL.is_dir(), reason="files that others made are not here")
def test_he_and_hbhe_of_the_group_are_the_same_detector(tmp_path: Path) -> None:
    runs = []
    for name in ("he", "hbhe"):
        folder = tmp_path / name / "Run355456"
        shutil.copytree(REAL / f"group_{name}_Run355456", folder)
        done, run = take(folder, tmp_path / f"A {name}", 7)
        assert done.rows == 12
        runs.append(run)
    xr.testing.assert_equal(runs[0].drop_vars("committed"), runs[1].drop_vars("committed"))
    assert runs[0]["lumisection"].values.tolist() == list(range(1, 13)) and float(runs[0]["n_events"][0]) == 1234
