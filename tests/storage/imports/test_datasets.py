"""Two data sets of one run never become revisions of each other, in one import or over several."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control
from dqmstream.storage.imports import importer
from dqmstream.storage.imports.datasets import are_one
from dqmstream.storage.imports.importer import Imported, import_runs
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.maintenance.verify import verify
from dqmstream.storage.writer import ArchiveWriter
from tests.layouts import depth_maps, dials_rows, write_dials
from tests.maps import SOURCE, counts, lumisection, row, write_run

RUN = 355400


def take(folder: Path, *paths: Path, source: str | None = None) -> list[Imported]:
    path = folder / "A"
    stored = Archive.open(path).source if Archive.exists(path) else ""
    rules = ImportRules(np.dtype("float32"), 1, source=source, stored_source=stored)
    return import_runs(paths, lambda: Archive.open_or_create(path, source=source), rules)[0]


def named(folder: Path, dataset: str, maps: np.ndarray, run: int = RUN) -> Path:
    return write_run(folder, run, maps, sidecars=False).rename(folder / f"Run{run}_Dataset_{dataset}.npy")


def test_two_data_sets_of_a_run_in_one_import_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    named(tmp_path / "data", "JetHT", counts(1, 5))
    named(tmp_path / "data", "ZeroBias", counts(2, 5))
    named(tmp_path / "data", "ZeroBias", counts(2, 5), run=RUN - 1)
    with pytest.raises(
        InputError, match=r"Run355400_Dataset_JetHT.npy and Run355400_Dataset_ZeroBias.npy are two data sets of run 355400"
    ):
        take(tmp_path, tmp_path / "data")
    with pytest.raises(InputError, match="an archive of its own"):
        take(tmp_path, tmp_path / "data", source="both")  # no name for both makes one of them
    assert not (tmp_path / "A").exists()


def test_a_second_data_set_of_a_run_is_refused_in_a_later_import_and_a_newer_file_is_a_revision(tmp_path: Path) -> None:
    maps = counts(1, 5)
    path = named(tmp_path / "a", "JetHT", maps)
    take(tmp_path, path)
    snapshot = Archive.open(tmp_path / "A").snapshot
    other = named(tmp_path / "b", "ZeroBias", counts(2, 5))
    with pytest.raises(
        InputError,
        match=r"ZeroBias.npy is of ZeroBias, and the archive holds run 355400 of JetHT, from Run355400_Dataset_JetHT.npy",
    ):
        take(tmp_path, named(tmp_path / "b", "JetHT", counts(3, 5), run=RUN + 1), other)
    assert Archive.open(tmp_path / "A").snapshot == snapshot  # nor was the other run of that import filed
    (copy,) = take(tmp_path, shutil.copy(path, named(tmp_path / "c", "renamed", maps)))
    assert copy.known
    (longer,) = take(tmp_path, named(tmp_path / "d", "complete", np.concatenate([maps, counts(4, 1)])))
    assert (longer.rows, longer.duplicates, longer.revisions) == (1, 5, 0)
    maps[2] += 1
    (newer,) = take(tmp_path, named(tmp_path / "e", "JetHT", maps))
    assert newer.revisions == 1
    assert verify(Archive.open(tmp_path / "A")) == []


def test_data_sets_of_parquet_stay_apart_under_one_source_too(tmp_path: Path) -> None:
    first = write_dials(tmp_path / "z.parquet", dials_rows(RUN, depth_maps(6, 2, 1)))
    second = write_dials(tmp_path / "j.parquet", dials_rows(RUN, depth_maps(7, 2, 1), dataset="/JetHT/Run2024C"))
    with pytest.raises(InputError, match=r"run 355400: of the data sets /ZeroBias/.* and /JetHT/Run2024C, and"):
        take(tmp_path, first, second, source="2024")
    take(tmp_path, first, source="2024")
    with pytest.raises(InputError, match=r"is of /JetHT/Run2024C#.*its source is 2024.* holds run 355400 of /ZeroBias/"):
        take(tmp_path, second, source="2024")
    with pytest.raises(InputError, match=r"x.npy is of x, and the archive"):
        take(tmp_path, write_run(tmp_path, RUN, counts(1, 2)), source="2024")
    (same,) = take(tmp_path, named(tmp_path, "ZeroBias", counts(1, 2)), source="2024")
    assert same.revisions == 2  # the short form of the same name


def test_messages_of_a_data_set_are_not_replaced_by_files_of_another(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    ArchiveWriter(archive).append("hcal@cluster.topic", 0, [row(archive, RUN, 1, 0), row(archive, RUN, 2, 1)], 0, 2)
    sent = np.stack([lumisection(RUN, number).occupancy for number in (1, 2, 3)])
    for name in "ab":
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / f"Run{RUN}_events.npy", np.full(3, 1500.0))
    with pytest.raises(InputError, match=r"is of JetHT, and the archive .its source is /ZeroBias/Run2022C#.*from messages"):
        take(tmp_path, named(tmp_path / "a", "JetHT", sent + 1))
    path = named(tmp_path / "b", "whole", sent)  # what was sent, and what was lost on the way
    (done,) = take(tmp_path, path)
    assert (done.rows, done.duplicates, done.revisions) == (1, 2, 0)
    (newer,) = take(tmp_path, named(tmp_path / "c", "ZeroBias", sent + 1))
    assert newer.revisions == 3


def test_two_different_files_of_a_run_in_one_import_are_refused(tmp_path: Path) -> None:
    first, second = (named(tmp_path / name, "x", counts(run, 3)) for run, name in enumerate("ab", start=1))
    with pytest.raises(InputError, match="are both of run 355400, with different contents: give one of them"):
        take(tmp_path, first, second)
    assert not (tmp_path / "A").exists()
    assert [one.known for one in take(tmp_path, first, first)] == [False, True]


def test_of_two_imports_at_once_the_later_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other data set is filed after this import has read the archive and before it commits."""
    mine, other = named(tmp_path / "a", "JetHT", counts(1, 3)), named(tmp_path / "b", "ZeroBias", counts(2, 3))
    real = ArchiveWriter.append_parts

    def overtaken(self: ArchiveWriter, *arguments: object) -> object:
        monkeypatch.undo()
        take(tmp_path, other)
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ArchiveWriter, "append_parts", overtaken)
    with pytest.raises(InputError, match="holds run 355400 of ZeroBias"):
        take(tmp_path, mine)
    assert Archive.open(tmp_path / "A").run(RUN)["revision"].values.tolist() == [0, 0, 0]


def test_archives_whose_imports_kept_no_data_set_are_told_by_the_names_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_reason(offset: int, until: int, kind: ControlKind, run: int = -1, *, reason: str = "") -> Control:
        return Control(offset, until, kind, run)

    with monkeypatch.context() as older:
        older.setattr(importer, "Control", without_reason)
        take(tmp_path, named(tmp_path / "a", "JetHT", counts(1, 3)))
    assert set(Archive.open(tmp_path / "A").control("import", 0)["reason"].values.tolist()) == {""}
    with pytest.raises(InputError, match="holds run 355400 of JetHT"):
        take(tmp_path, named(tmp_path / "b", "ZeroBias", counts(2, 3)))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("JetHT", "ZeroBias", False),
        ("JetHT", "JetHT", True),
        ("", "ZeroBias", True),
        ("ZeroBias", "/ZeroBias/Run2024C-PromptReco-v1/DQMIO#Hcal/x", True),
        ("/JetHT/Run2024C", "ZeroBias", False),
        ("/ZeroBias/Run2024C#depth1", "/ZeroBias/Run2024C#depth3", False),
    ],
)
def test_short_names_and_full_ones_are_compared_by_what_they_share(one: str, other: str, same: bool) -> None:
    assert are_one(one, other) is same and are_one(other, one) is same
