"""`dqmstream compare` through the real command line: files, archived runs, both, and what cannot be compared."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.compare import real_pair
from dqmstream.errors import EXIT_CODES, NOT_COMPARABLE, ArchiveError, InputError
from dqmstream.experiments.compare.output import check_folder
from dqmstream.experiments.compare.pair import read_pair
from dqmstream.experiments.simulator import write
from dqmstream.lumisection import ieta_row
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files
from tests.commandline import dqmstream, result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two files, runs 355400 and 355411 of seed 1, and an archive A of both. RBX 12 has lost 15 %."""
    made = tmp_path_factory.mktemp("compare")
    write(made / "runs", "moderate", 1, 2, 200)
    import_files([made / "runs"], lambda: Archive.open_or_create(made / "A"), dtype=np.dtype("float32"), depths=1)
    return made


def files(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*_Dataset_*"))


def test_all_of_a_comparison_is_printed_and_written(folder: Path, tmp_path: Path) -> None:
    a, b = files(folder)
    done: dict[str, Any] = result("compare", a, b, "--out", tmp_path / "out")
    assert done["method"] == "beta-binomial"
    assert done["boxes"][0]["rbx"] == 12 and done["boxes"][0]["ratio"] < 0.97
    assert done["changed"][0]["state"] == "dead" and done["changed"][0]["ratio"] == 0
    assert done["auc"]["value"] > 0.99 and done["luminosity_auc"]["low"] < 0.5
    assert "luminosity alone does not" in done["verdict"]
    assert "common to all channels" in done["unseen"]
    summary = json.loads((tmp_path / "out/comparison.json").read_text())
    assert summary == {key: value for key, value in done.items() if key != "files"}
    rows = list(csv.DictReader((tmp_path / "out/channels.csv").open()))
    assert len(rows) == done["channels"] == 932
    named = [(int(row["ieta"]), int(row["iphi"])) for row in rows if row["state"]]
    assert named == [(one["ieta"], one["iphi"]) for one in done["changed"]]
    assert len(list(csv.DictReader((tmp_path / "out/boxes.csv").open()))) == 36
    assert (tmp_path / "out/changes.png").read_bytes().startswith(b"\x89PNG")
    check_folder(tmp_path / "out")  # an older comparison may be written over


def test_archived_runs_give_what_their_files_give(folder: Path) -> None:
    a, b = map(str, files(folder))
    of_files, mixed = read_pair(a, b, None, False), read_pair(a, "355411", folder / "A", False)
    assert mixed.names[1] == "run 355411 of A"
    for one, other in zip(of_files.samples, mixed.samples, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_array_equal(one.events, other.events)
        np.testing.assert_array_equal(one.lumisection, other.lumisection)


def test_the_table_says_what_both_auc_mean_and_neither_torch_nor_a_broker_is_needed(folder: Path) -> None:
    code = (
        "import sys\nfrom dqmstream.cli.main import app\n"
        f"try: app(['compare', *{[str(file) for file in files(folder)]!r}])\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'avalanche', 'timm', 'kafka'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = ("luminosity alone", "95% interval", "RBX +12", "in boxes that changed", "dead", "rate of 0.05", "Not seen:")
    for words in said:
        assert words in done.stdout


def test_what_cannot_be_compared_is_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    a = str(files(folder)[0])
    flat, nameless, brief = tmp_path / "Run7_Dataset_x.npy", tmp_path / "x.npy", tmp_path / "Run8_Dataset_x.npy"
    np.save(brief, np.ones((100, 64, 72)))
    np.save(flat, np.ones((300, 60, 72)))
    np.save(nameless, np.ones((300, 64, 72)))
    for b, archive, interpolated, expected in (
        ("nowhere.npy", None, False, "nowhere.npy does not exist"),
        (str(flat), None, False, r"\(300, 60, 72\)"),
        (str(nameless), None, False, "does not tell the run"),
        (str(tmp_path), None, False, "is a folder"),
        (a, None, False, "same counts"),
        ("355400", folder / "A", False, "same counts"),
        ("355411", None, False, "give --archive"),
        (
            str(brief),
            None,
            True,
            "too short: 100 of its 100 lumisections can be used, and a comparison needs 125 where rows are",
        ),
    ):
        with pytest.raises(InputError, match=expected):
            read_pair(a, b, archive, interpolated)
    with pytest.raises(ArchiveError, match="no lumisection of run 9"):
        read_pair("355400", "9", folder / "A", False)


def test_runs_of_which_nothing_can_be_said_end_with_a_code_of_their_own_and_what_can_be_said(tmp_path: Path) -> None:
    known = real_pair(("level", "level"), 100, saturated=True, lengths=[100])
    known.second.counts[:, ieta_row(28), 2] = 0
    for one in (known.first, known.second):
        np.save(tmp_path / f"Run{one.run}_Dataset_x.npy", one.counts.astype(np.float64))
    done = dqmstream("compare", *sorted(tmp_path.glob("*.npy")), "--out", tmp_path / "out", "--json")
    assert done.returncode == NOT_COMPARABLE in EXIT_CODES
    said = json.loads(done.stdout.splitlines()[-1])
    assert not said["comparable"] and said["verdict"].startswith("These runs cannot be compared")
    assert [(one["ieta"], one["iphi"], one["state"]) for one in said["changed"]] == [(28, 3, "dead")]
    assert (tmp_path / "out/changes.png").exists()
    assert f"| {NOT_COMPARABLE} | `compare`" in (Path(__file__).parents[2] / "README.md").read_text()


def test_a_run_of_twenty_lumisections_is_compared_and_no_auc_is_shown(tmp_path: Path) -> None:
    known = real_pair(("low", "low"), 101, lengths=[20])
    for one in (known.first, known.second):
        np.save(tmp_path / f"Run{one.run}_Dataset_x.npy", one.counts)
    done = dqmstream("compare", *sorted(tmp_path.glob("*.npy")))
    assert done.returncode == 0, done.stderr
    assert "There is no AUC" in done.stdout and "told apart by" not in done.stdout
    assert "No channel is found to have changed" in done.stdout


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out, says in ((tmp_path, "no comparison wrote"), (tmp_path / "notes.txt", "is a file")):
        with pytest.raises(InputError, match=says):
            check_folder(out)
