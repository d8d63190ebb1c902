"""A reader of another package, registered by decorator or entry point, imports its files as the built-in readers do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.plugins import READERS
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import Imported, import_runs
from dqmstream.storage.imports.readers import registry
from dqmstream.storage.imports.readers.registry import Reader, ReadRequest, reader, reader_of
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.imports.run_file import RunFile, unknown
from tests.commandline import Command, dqmstream, told
from tests.maps import counts, write_run
from tests.packages import installed

OUTSIDE = '''
import numpy as np
from dqmstream.storage.imports.readers.registry import Reader, reader
from dqmstream.storage.imports.run_file import RunFile, unknown


@reader("outside")
class Outside(Reader):
    """A lumisection a line: its number, and the counts of ieta -20, iphi 1."""

    def takes(self, path):
        return path.suffix == ".lines"

    def read(self, paths, request):
        return [self._read(path) for path in paths]

    def _read(self, path):
        table = np.loadtxt(path, ndmin=2)
        maps = np.zeros((len(table), 64, 72))
        maps[:, 12, 0] = table[:, 1]
        empty = unknown(len(table))
        return RunFile(path.name, int(path.stem.removeprefix("Run")), maps, table[:, 0].astype(int), empty, empty)
'''


@pytest.fixture
def _no_reader_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.readers()  # registers the built-in ones, which stay
    monkeypatch.setattr(registry._READERS, "_registered", dict(registry._READERS._registered))


def write_lines(folder: Path, run: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"Run{run}.lines"
    path.write_text("2 7\n5 9\n")
    return path


def take(archive: Path, *paths: Path) -> list[Imported]:
    return import_runs(paths, lambda: Archive.open_or_create(archive), ImportRules(np.dtype("float32")))[0]


def join_path(folder: Path) -> None:
    """In the command's process: the package in the folder is installed."""
    sys.path.insert(0, str(folder))


def test_a_package_that_announces_a_reader_imports_its_files_by_the_command(tmp_path: Path) -> None:
    with installed(tmp_path / "site", READERS, OUTSIDE, name="outside_reader"):
        pass  # only its files are needed here
    path = write_lines(tmp_path / "data", 7)
    write_run(tmp_path / "data", 8, counts(8, 2))
    arguments = ("import", tmp_path / "data", "--archive", tmp_path / "A")
    command = Command(*arguments, before=partial(join_path, tmp_path / "site"))
    assert command.wait(60) == 0, command.communicate()[1]
    archive = Archive.open(tmp_path / "A")
    assert [summary.run for summary in archive.runs()] == [8, 7], "built-in layouts first"
    view = archive.run(7)
    assert view["lumisection"].values.tolist() == [2, 5]
    assert view["occupancy"].sel(ieta=-20, iphi=1, depth=1).values.tolist() == [7, 9]
    refused = dqmstream("import", path, "--archive", tmp_path / "B")
    assert "Run7.lines is no .npy file" in told(refused, 3), "it is not installed in this process"


def test_a_package_whose_reader_cannot_be_loaded_is_named_by_the_command(tmp_path: Path) -> None:
    with installed(tmp_path / "site", READERS, "import a_missing_library", name="outside_broken_reader", point="theirs"):
        path = write_run(tmp_path, 8, counts(8, 2))
        with pytest.raises(InputError, match=r"theirs = outside_broken_reader \(dqmstream.readers\).*a_missing_library"):
            take(tmp_path / "A", path)


@pytest.mark.usefixtures("_no_reader_stays")
def test_a_reader_that_was_registered_later_is_asked_first(tmp_path: Path) -> None:
    """A special name can then have a reader of its own, beside the general one of its suffix."""

    @reader("special")
    class Special(Reader):
        def takes(self, path: Path) -> bool:
            return path.name.startswith("Special")

        def read(self, paths: Sequence[Path], request: ReadRequest) -> list[RunFile]:
            maps = [np.load(path)[:, None] for path in paths]
            return [RunFile("Special", 9, x, np.arange(1, len(x) + 1), unknown(len(x)), unknown(len(x))) for x in maps]

    np.save(tmp_path / "Special.npy", counts(9, 3))
    assert isinstance(reader_of(tmp_path / "Special.npy"), Special)
    assert not isinstance(reader_of(tmp_path / "Run1_Dataset_x.npy"), Special)
    (done,) = take(tmp_path / "A", tmp_path / "Special.npy")
    assert (done.run, done.rows) == (9, 3)


@pytest.mark.usefixtures("_no_reader_stays")
def test_a_file_in_which_its_reader_finds_no_run_is_refused(tmp_path: Path) -> None:
    @reader("empty")
    class Empty(Reader):
        def takes(self, path: Path) -> bool:
            return path.suffix == ".none"

        def read(self, paths: Sequence[Path], request: ReadRequest) -> list[RunFile]:
            return []

    (tmp_path / "a.none").write_text("")
    with pytest.raises(InputError, match=r"a.none holds no run"):
        take(tmp_path / "A", tmp_path / "a.none")
    assert not (tmp_path / "A").exists()


@pytest.mark.usefixtures("_no_reader_stays")
def test_two_readers_of_one_name_are_an_error() -> None:
    class Twin(Reader):
        def takes(self, path: Path) -> bool:
            return False

        def read(self, paths: Sequence[Path], request: ReadRequest) -> Sequence[RunFile]:
            return []

    with pytest.raises(ValueError, match="there is a reader 'arrays' already: choose another name"):
        reader("arrays")(Twin)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"counts": np.zeros((3, 64, 71))}, "maps of shape"),
        ({"lumisection": np.array([2, 1, 3])}, "do not ascend"),
        ({"lumisection": np.array([0, 1, 2])}, "do not ascend"),
        ({"events": np.zeros(2)}, "2 events and 3 pileups of 3 lumisections"),
        ({"counts": np.zeros((4, 64, 72))}, "4 maps of 3 lumisections"),
    ],
)
def test_what_a_reader_gives_must_fit_together(changed: dict[str, np.ndarray], says: str) -> None:
    given = {"counts": np.zeros((3, 64, 72)), "lumisection": np.arange(1, 4), "events": unknown(3), "pileup": unknown(3)}
    RunFile("a.ours", 5, **given)
    with pytest.raises(InputError, match=rf"a.ours, run 5: its reader gives .*{says}"):
        RunFile("a.ours", 5, **given | changed)
