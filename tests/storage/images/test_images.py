"""Images of every layout: read in any order, imported whole and once, never all in memory, refused with name and reason."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from dqmstream.errors import ArchiveError, DqmstreamError, InputError
from dqmstream.storage.archive import Archive
from dqmstream.storage.images import archive
from dqmstream.storage.images import files as reader
from dqmstream.storage.images.archive import ImageArchive, import_images
from dqmstream.storage.images.source import open_images
from dqmstream.storage.repository import open_repository
from tests.commandline import dqmstream, result, told
from tests.layouts import images, nested, write_hdf5, write_jets
from tests.maps import counts, write_run

ELECTRON = "SingleElectronPt50_IMGCROPS_n249k_RHv1.hdf5"
PHOTON = "SinglePhotonPt50_IMGCROPS_n249k_RHv1.hdf5"


def test_electrons_and_photons_are_read_in_any_order(tmp_path: Path) -> None:
    electrons = write_hdf5(tmp_path / ELECTRON, 20, y=1)
    photons = write_hdf5(tmp_path / PHOTON, 15, y=0, seed=1)
    source = open_images([tmp_path / ELECTRON, tmp_path / PHOTON])
    assert source.shape == (35, 2, 32, 32)
    assert source.classes == ("photon", "electron")
    assert source.labels.tolist() == [1] * 20 + [0] * 15
    assert source.group.tolist() == list(range(35))
    everything = np.concatenate([electrons, photons]).transpose(0, 3, 1, 2)
    rows = np.array([33, 0, 19, 20, 3, 33, 4])
    read = source.read(rows)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, everything[rows])
    assert source.read(np.empty(0, np.int64)).shape == (0, 2, 32, 32)
    with pytest.raises(IndexError):
        source.read(np.array([35]))


@pytest.mark.parametrize("row_group", [1, 4, 100])
def test_jets_are_read_in_any_order_whatever_their_row_groups(tmp_path: Path, row_group: int) -> None:
    jets = write_jets(tmp_path / "jets.parquet", 9, row_group=row_group)
    source = open_images([tmp_path / "jets.parquet"])
    assert source.shape == (9, 3, 125, 125) and source.classes == ("0", "1")
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    rows = np.array([8, 2, 2, 7])
    np.testing.assert_array_equal(source.read(rows), jets[rows].astype(np.float32))
    assert source.columns["pt"][0] == 90 and sorted(source.columns) == ["m0", "pt"]


def test_runs_are_images_whose_label_is_the_run_and_whose_group_the_lumisection(tmp_path: Path) -> None:
    maps = {run: counts(run, 5) for run in (357479, 355456)}
    source = open_images([write_run(tmp_path, run, values) for run, values in maps.items()])
    assert source.shape == (10, 1, 64, 72) and source.classes == ("355456", "357479")
    assert source.labels.tolist() == [1] * 5 + [0] * 5
    assert source.group.tolist() == [1, 2, 3, 4, 5] * 2
    np.testing.assert_array_equal(source.read(np.array([6]))[0, 0], maps[355456][1])


def test_an_archive_holds_what_the_files_held_and_twice_is_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "CHUNK_BYTES", 7 * 8192)
    monkeypatch.setattr(reader, "BLOCK_BYTES", 15 * 8192)
    write_hdf5(tmp_path / ELECTRON, 20, y=1)
    write_hdf5(tmp_path / PHOTON, 15, y=0, seed=1)
    paths = [tmp_path / ELECTRON, tmp_path / PHOTON]
    (first,) = import_images(paths[:1], tmp_path / "eg")
    assert (first.rows, first.shape, first.classes, first.known) == (20, (2, 32, 32), ("electron",), False)
    assert [file.known for file in import_images(paths, tmp_path / "eg")] == [True, False]
    snapshot = ImageArchive.open(tmp_path / "eg").snapshot
    assert [file.known for file in import_images(paths, tmp_path / "eg")] == [True, True]
    assert ImageArchive.open(tmp_path / "eg").snapshot == snapshot
    source, files = open_images([tmp_path / "eg"]), open_images(paths)
    assert source.shape == files.shape and source.classes == files.classes
    np.testing.assert_array_equal(source.labels, files.labels)
    rows = np.random.default_rng(0).permutation(35)
    np.testing.assert_array_equal(source.read(rows), files.read(rows))
    assert source.digest == files.digest
    assert source.digest != open_images(paths[::-1]).digest
    assert ImageArchive.open(tmp_path / "eg").root["images"].chunks == (7, 2, 32, 32)


def test_what_was_damaged_behind_the_api_is_found(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.h5", "b.h5")):
        write_hdf5(tmp_path / name, 9, seed=seed)
    import_images([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "eg")
    assert "is whole: 18 rows read" in dqmstream("archive", "verify", "--archive", tmp_path / "eg").stdout
    repository, _ = open_repository(tmp_path / "eg")
    session = repository.writable_session("main")
    zarr.open_group(session.store, mode="r+")["label"][12] = 3
    session.commit("a hand behind the API")
    found = dqmstream("archive", "verify", "--archive", tmp_path / "eg")
    assert found.returncode == 5 and "b.h5" in found.stdout and "a.h5" not in found.stdout
    for manifest in (tmp_path / "eg" / "manifests").iterdir():  # small columns lie in them
        manifest.write_bytes(manifest.read_bytes()[:-3])
    with pytest.raises(ArchiveError, match="cannot be read as an archive of images"):
        open_images([tmp_path / "eg"])


def test_jets_keep_their_columns(tmp_path: Path) -> None:
    write_jets(tmp_path / "jets.parquet", 4)
    import_images([tmp_path / "jets.parquet"], tmp_path / "qg")
    source, files = open_images([tmp_path / "qg"]), open_images([tmp_path / "jets.parquet"])
    for name in ("m0", "pt"):
        np.testing.assert_array_equal(source.columns[name], files.columns[name])
    assert source.digest == files.digest


def test_a_file_that_changes_while_it_is_imported_is_not_filed(tmp_path: Path) -> None:
    path = tmp_path / ELECTRON
    write_hdf5(path, 20)

    def change(stage: str, done: int, total: int) -> None:
        if stage == "check" and done == total:
            write_hdf5(path, 20, seed=5)

    with pytest.raises(InputError, match="was changed while it was imported"):
        import_images([path], tmp_path / "eg", change)
    assert len(ImageArchive.open(tmp_path / "eg").labels) == 0


def test_a_big_file_never_lies_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK_BYTES", 1 << 20)
    bound = 16 << 20
    with h5py.File(tmp_path / "big.h5", "w") as file:
        x = file.create_dataset("X", (7000, 32, 32, 2), "float32", chunks=(100, 32, 32, 2), compression="lzf")  # 57 MB, zeros
        for start in range(0, 7000, 100):
            x[start : start + 100] = 0
        file["y"] = np.arange(7000) % 2
    rows = nested(images(30, (3, 125, 125)).astype(np.float64))
    table = pa.table({"X_jets": pa.chunked_array([rows] * 5), "y": np.arange(150) % 2.0})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=150)  # 56 MB in one row group
    for name in ("big.h5", "big.parquet"):
        source = open_images([tmp_path / name])
        assert source.shape[0] in (7000, 150)
        pool = pa.proxy_memory_pool(pa.system_memory_pool())
        before = pa.default_memory_pool()
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            import_images([tmp_path / name], tmp_path / f"{name}.archive")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(before)
        assert peak + (pool.max_memory() or 0) < bound, f"{name}: {peak} and {pool.max_memory()} bytes"
    assert pool.max_memory() > 1 << 20  # Parquet was read through it


def _hdf5(**sets: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name, value in sets.items():
                file[name] = value

    return write


def _truncated(path: Path) -> None:
    write_hdf5(path, 20)
    path.write_bytes(path.read_bytes()[:5000])


def _nan() -> np.ndarray:
    x = images(9, (32, 32, 2))
    x[4, 1, 2, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_truncated, "cannot be read as HDF5"),
        (lambda path: path.write_bytes(b""), "cannot be read as HDF5"),
        (lambda path: path.write_bytes(b"\x80\x04K\x01."), "cannot be read as HDF5"),  # a pickle
        (_hdf5(), "holds nothing"),
        (_hdf5(X=np.zeros((3, 32, 32, 2))), "must hold the data sets X and y, and holds X"),
        (_hdf5(X=np.zeros((3, 32, 32)), y=np.zeros(3)), r"float64 of shape \(3, 32, 32\)"),
        (_hdf5(X=np.zeros((0, 32, 32, 2)), y=np.zeros(0)), r"shape \(0, 32, 32, 2\)"),
        (_hdf5(X=np.zeros((3, 4, 4, 2), "S1"), y=np.zeros(3)), r"X is \|S1"),
        (_hdf5(X=np.zeros((3, 4, 4, 2)), y=np.zeros(2)), "there are 3 images"),
        (_hdf5(X=np.zeros((3, 4, 4, 2)), y=[0, 0.5, 1]), "whole numbers, one a class, and holds 0.5"),
        (_hdf5(X=np.zeros((3, 4, 4, 2)), y=[0, np.nan, 1]), "holds nan"),
        (_hdf5(X=_nan(), y=np.zeros(9)), "row 4: the image holds NaN or infinity"),
    ],
)
def test_damaged_hdf5_is_refused_by_name_and_reason(tmp_path: Path, write: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "bad.hdf5"
    write(path)
    with pytest.raises(InputError, match=f"bad.hdf5.*{reason}"):
        import_images([path], tmp_path / "eg")
    assert not (tmp_path / "eg").exists()


def _jet(*shape: int) -> np.ndarray:
    return np.ones(shape)


SHORT = _jet(3, 125, 125).tolist()
SHORT[1][7] = [0.0] * 124


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (
            {"x": [_jet(3, 125, 125), _jet(3, 125, 125), SHORT]},
            "row 2: X_jets: a list of level 3 holds 124 entries, not 3x125x125",
        ),
        ({"x": [_jet(3, 5, 5), _jet(2, 5, 5)]}, "row 1: X_jets: a list of level 1 holds 2 entries, not 3x5x5"),
        ({"x": [_jet(3, 5, 5), None]}, "row 1: X_jets: a list of level 1 is null"),
        ({"x": [_jet(3, 5)]}, "level 3 is double, no list"),
        ({"x": [[[["a"]]]]}, "no numbers"),
        ({"x": [[[[1.0]]], [[[None]]]]}, "row 1: X_jets: it holds a null"),
        ({"x": [[[[1.0]]], [[[float("inf")]]]]}, "row 1: the image holds NaN or infinity"),
        ({"x": [[[[1.0]]]], "y": ["quark"]}, "y is string, no number"),
        ({"x": [[[[1.0]]]], "y": [None]}, "y holds a null|y is null"),
        ({"x": []}, "holds no row"),
    ],
)
def test_jets_that_do_not_nest_are_refused(tmp_path: Path, columns: dict[str, object], reason: str) -> None:
    write_jets(tmp_path / "bad.parquet", row_group=10, **columns)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"bad.parquet.*({reason})"):
        import_images([tmp_path / "bad.parquet"], tmp_path / "qg")
    assert not (tmp_path / "qg").exists()


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    write_jets(path, 4)
    whole = path.read_bytes()
    for damaged, reason in ((whole[:-20], "cannot be read as Parquet"), (b"", "cannot be read as Parquet")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"bad.parquet {reason}"):
            open_images([path])
    path.write_bytes(whole[:44] + b"\xff" * 400 + whole[444:])  # in the first page
    with pytest.raises(InputError, match=r"bad\.parquet"):
        import_images([path], tmp_path / "qg")


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", 3)
    write_jets(tmp_path / "b.parquet", 3)
    run = write_run(tmp_path / "runs", 3, counts(3, 4))
    cases: list[tuple[type[DqmstreamError], str, Callable[[], object]]] = [
        (InputError, "give files of one kind", lambda: open_images([tmp_path / "a.h5", tmp_path / "b.parquet"])),
        (InputError, "given twice", lambda: open_images([tmp_path / "a.h5", tmp_path / "a.h5"])),
        (InputError, "does not exist", lambda: open_images([tmp_path / "no.h5"])),
        (InputError, "no file of images", lambda: open_images([])),
        (InputError, "import them apart", lambda: import_images([tmp_path / "a.h5", tmp_path / "b.parquet"], tmp_path / "X")),
        (InputError, "holds lumisections of a run", lambda: import_images([run], tmp_path / "X")),
    ]
    for kind, reason, act in cases:
        with pytest.raises(kind, match=reason):
            act()
    assert not (tmp_path / "X").exists()
    import_images([tmp_path / "a.h5"], tmp_path / "eg")
    with pytest.raises(ArchiveError, match="give another --archive"):
        import_images([tmp_path / "b.parquet"], tmp_path / "eg")


def test_an_archive_of_one_kind_refuses_the_other_and_the_command_tells_both(tmp_path: Path) -> None:
    (tmp_path / "eg").mkdir()
    for seed, name in enumerate(("a.h5", "b.h5")):
        write_hdf5(tmp_path / "eg" / name, 5, seed=seed)
    run = write_run(tmp_path / "runs", 3, counts(3, 4))
    done = result("import", tmp_path / "eg", "--archive", tmp_path / "E")
    assert done["kind"] == "images" and [file["rows"] for file in done["files"]] == [5, 5]  # type: ignore[attr-defined]
    assert "unchanged" in dqmstream("import", tmp_path / "eg", "--archive", tmp_path / "E").stdout
    result("import", run, "--archive", tmp_path / "R")
    assert "holds no lumisections" in told(dqmstream("import", run, "--archive", tmp_path / "E"), 5)
    assert "holds no images" in told(dqmstream("import", tmp_path / "eg", "--archive", tmp_path / "R"), 5)
    assert "import them apart" in told(dqmstream("import", run, tmp_path / "eg", "--archive", tmp_path / "E"), 3)
    assert "--depths is for" in told(dqmstream("import", tmp_path / "eg", "--archive", tmp_path / "E", "--depths", 1), 3)
    with pytest.raises(ArchiveError, match="holds no lumisections"):
        Archive.open(tmp_path / "E")
    with pytest.raises(ArchiveError, match="holds no images"):
        open_images([tmp_path / "R"])
