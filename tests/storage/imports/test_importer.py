"""Importing files: all are checked first, a run is filed whole or not at all, and a second import changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import interpolate
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports import importer, run_file
from dqmstream.storage.imports.importer import Imported, import_files, import_runs
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.layout import Quality
from dqmstream.storage.writer import ArchiveWriter
from tests.maps import check_tiling, counts, write_run


def run_import(tmp_path: Path, files: list[Path], dtype: str = "float32", **flags: object) -> list[Imported]:
    path = tmp_path / "A"
    return import_files(
        files,
        lambda: Archive.open_or_create(path, dtype=dtype),
        dtype=np.dtype(dtype),
        depths=1,
        **flags,  # type: ignore[arg-type]
    )


def test_a_file_becomes_a_run(tmp_path: Path) -> None:
    maps = counts(355456, 30)
    (done,) = run_import(tmp_path, [write_run(tmp_path, 355456, maps)])
    assert (done.run, done.rows, done.rounding) == (355456, 30, 0.0)
    archive = Archive.open(tmp_path / "A")
    view = archive.run(355456)
    np.testing.assert_array_equal(view["occupancy"][:, 0], maps)
    np.testing.assert_array_equal(view["lumisection"], np.arange(1, 31))  # row k is lumisection k + 1
    np.testing.assert_array_equal(view["n_events"], 1500.0)
    np.testing.assert_array_equal(view["pileup"], np.linspace(7, 3, 30))
    assert archive.runs()[0].complete == "stop"
    check_tiling(archive)


def test_importing_twice_changes_nothing_and_a_changed_file_is_a_revision(tmp_path: Path) -> None:
    maps = counts(1, 10)
    path = write_run(tmp_path / "sim", 1, maps)
    run_import(tmp_path, [path])
    snapshot = Archive.open(tmp_path / "A").snapshot
    (again,) = run_import(tmp_path, [tmp_path / "sim"])
    assert again.known
    assert Archive.open(tmp_path / "A").snapshot == snapshot
    maps[3] += 1
    np.save(path, maps)
    (changed,) = run_import(tmp_path, [path])
    assert (changed.rows, changed.duplicates, changed.revisions) == (1, 9, 1)
    view = Archive.open(tmp_path / "A").run(1)
    np.testing.assert_array_equal(view["occupancy"][:, 0], maps)
    assert view["revision"].values.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    check_tiling(Archive.open(tmp_path / "A"))


def test_sidecars_are_found_among_the_files_and_beside_them(tmp_path: Path) -> None:
    path = write_run(tmp_path / "data", 2, counts(2, 5), sidecars=False)
    elsewhere = tmp_path / "elsewhere" / "Run2_events.npy"
    elsewhere.parent.mkdir()
    np.save(elsewhere, np.arange(5) + 1000.0)
    np.save(path.with_name("Run2_pileup.npy"), np.full(5, 4.0))
    (path.parent / "truth.json").write_text("{}")
    run_import(tmp_path, [*path.parent.iterdir(), elsewhere])
    view = Archive.open(tmp_path / "A").run(2)
    np.testing.assert_array_equal(view["n_events"], np.arange(5) + 1000.0)
    np.testing.assert_array_equal(view["pileup"], 4.0)


def test_float64_is_rounded_and_the_rounding_is_told(tmp_path: Path) -> None:
    maps = counts(3, 4) + 1 / 3
    (done,) = run_import(tmp_path, [write_run(tmp_path, 3, maps)], interpolated=True)
    assert 0 < done.rounding == np.abs(maps - maps.astype(np.float32)).max()
    assert (Archive.open(tmp_path / "A").run(3)["quality"].values == Quality.INTERPOLATED).all()


def test_the_run_number_may_be_given(tmp_path: Path) -> None:
    np.save(tmp_path / "occupancy.npy", counts(4, 3))
    with pytest.raises(InputError, match="does not tell the run"):
        run_import(tmp_path, [tmp_path / "occupancy.npy"])
    (done,) = run_import(tmp_path, [tmp_path / "occupancy.npy"], run=357479)
    assert done.run == 357479


def bad_values(value: float) -> np.ndarray:
    maps = counts(9, 5)
    maps[2, 5, 6] = value
    return maps


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((5, 64, 71)), r"shape \(5, 64, 71\)"),
        (np.zeros((64, 72)), r"shape \(64, 72\)"),
        (np.zeros((0, 64, 72)), "shape"),
        (np.zeros((5, 2, 64, 72)), "2 depth"),
        (np.zeros((5, 64, 72), dtype="U1"), "not a real number"),
        (bad_values(np.nan), "lumisection 3: occupancy holds NaN"),
        (bad_values(np.inf), "lumisection 3: occupancy holds NaN or infinity"),
        (bad_values(-2), "lumisection 3: occupancy holds a negative count"),
        (bad_values(1e39), "above what an archive of float32"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_written(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    good = write_run(tmp_path, 8, counts(8, 3))
    bad = write_run(tmp_path, 9, array, sidecars=False)
    with pytest.raises(InputError, match=reason):
        run_import(tmp_path, [good, bad])
    assert not (tmp_path / "A").exists()


def bad_count(path: Path, count: float, *, sidecars: bool, pileup: float = 5.0) -> Path:
    written = write_run(path, 9, bad_values(count), sidecars=sidecars)
    if sidecars:
        np.save(path / "Run9_pileup.npy", np.array([5, 5, 5, pileup, 5]))
    return written


def test_counts_that_no_lumisection_has_are_refused_with_file_row_and_value(tmp_path: Path) -> None:
    where = r"Run9_Dataset_x.npy, row 2, run 9, lumisection 3, ieta -27, iphi 7: occupancy holds"
    few = {"max_events": 800}
    cases: list[tuple[Path, dict[str, int], str]] = [
        (bad_count(tmp_path / "a", 3e38, sidecars=False), {}, f"{where} 3.0000.*e[+]38, above the 3000000 events"),
        (bad_count(tmp_path / "b", 1502, sidecars=True), {}, f"{where} 1502, and the lumisection has 1500 events"),
        (bad_count(tmp_path / "c", 900, sidecars=False), few, f"{where} 900, above the 800 events"),
        (bad_count(tmp_path / "d", 9, sidecars=True), few, "row 0, run 9, lumisection 1: n_events is 1500.0, no number from 0"),
        (bad_count(tmp_path / "e", 9, sidecars=True, pileup=1e30), {}, "row 3, run 9, lumisection 4: pileup is 1e[+]30, no"),
    ]
    for path, limits, reason in cases:
        with pytest.raises(InputError, match=reason):
            import_runs([path], lambda: Archive.open_or_create(tmp_path / "A"), ImportRules(np.dtype("float32"), **limits))
    assert not (tmp_path / "A").exists()


def test_what_detectors_and_interpolation_give_is_taken(tmp_path: Path) -> None:
    """Channels that count in every event, rates that are rounded, mixtures of neighbours, busy runs without events."""
    maps = bad_values(1500.0)
    mixed = interpolate(maps, 40)
    (full,) = run_import(tmp_path, [write_run(tmp_path / "a", 1, np.clip(maps, 0, 1500) + (maps == 1500))])
    path = write_run(tmp_path / "b", 2, mixed, sidecars=False)
    np.save(path.with_name("Run2_events.npy"), interpolate(np.array([1500.0, 700, 1500, 400, 1500]), 40) + 400)
    (between,) = run_import(tmp_path, [path], interpolated=True)
    (busy,) = run_import(tmp_path, [write_run(tmp_path / "c", 3, 1500 * maps, sidecars=False)])
    assert (full.rows, between.rows, busy.rows) == (5, 40, 5)
    assert float(Archive.open(tmp_path / "A").run(1)["occupancy"].max()) == 1501


def test_two_imports_at_once_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other import files the same run after this one has read the archive and before it commits."""
    path = write_run(tmp_path, 1, counts(1, 5))
    real = ArchiveWriter.append_parts

    def overtaken(self: ArchiveWriter, *arguments: object) -> object:
        monkeypatch.undo()
        run_import(tmp_path, [path])
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ArchiveWriter, "append_parts", overtaken)
    (done,) = run_import(tmp_path, [path])
    assert done.known
    archive = Archive.open(tmp_path / "A")
    assert archive.offsets() == {"import": {0: (0, 7)}}
    assert len(archive.imported()) == 1


def test_an_import_that_dies_between_its_pieces_files_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = counts(1, 150)
    path = write_run(tmp_path, 1, maps)
    monkeypatch.setattr(run_file, "PIECE_BYTES", 1)  # a chunk of 64 rows at a time
    real, calls = importer.make_row, iter(range(1000))

    def dying(*arguments: object, **settings: object) -> object:
        if next(calls) == 140:
            raise KeyboardInterrupt
        return real(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(importer, "make_row", dying)
    with pytest.raises(KeyboardInterrupt):
        run_import(tmp_path, [path])
    archive = Archive.open(tmp_path / "A")
    assert archive.runs() == [] and archive.offsets() == {} and archive.imported() == {}
    (done,) = run_import(tmp_path, [path])
    assert (done.rows, done.revisions, done.known) == (150, 0, False)
    np.testing.assert_array_equal(Archive.open(tmp_path / "A").run(1)["occupancy"][:, 0], maps)
    check_tiling(Archive.open(tmp_path / "A"))


def test_other_bad_input_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, 5, counts(5, 3))
    np.save(tmp_path / "Run5_events.npy", np.zeros(4))
    with pytest.raises(InputError, match="its run has 3 lumisections"):
        run_import(tmp_path, [path])
    np.save(tmp_path / "Run5_events.npy", np.array([1.0, -1.0, 2.0]))
    with pytest.raises(InputError, match="negative or infinite"):
        run_import(tmp_path, [path])
    pickled = tmp_path / "Run6_Dataset_x.npy"
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        run_import(tmp_path, [pickled])
    (tmp_path / "Run7_Dataset_x.npy").write_bytes(b"not numpy")
    with pytest.raises(InputError, match="cannot be read"):
        run_import(tmp_path, [tmp_path / "Run7_Dataset_x.npy"])
    with pytest.raises(InputError, match="does not exist"):
        run_import(tmp_path, [tmp_path / "nowhere.npy"])
    with pytest.raises(InputError, match=r"--run names the run of one \.npy file of maps: give it alone"):
        run_import(tmp_path, [path, path], run=3)
    assert not (tmp_path / "A").exists()
