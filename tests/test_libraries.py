"""Libraries write below one folder or nowhere, and commands work whatever HOME is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqmstream import libraries
from dqmstream.libraries import FOLDERS, keep_in_our_folder

ROOT = Path(__file__).parent.parent

USE_ALL = """
import logging, sys, warnings
logging.basicConfig(level=logging.WARNING)
from dqmstream.cli.main import main
sys.argv = ["dqmstream", "--version"]
import dqmstream.cli.main as cli
cli._leave = lambda code: None
main()
with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    import dqmstream.learners.gradient.trainer
import dqmstream.experiments.report.plots, dqmstream.learners.gradient.strategy
from avalanche.benchmarks.datasets.dataset_utils import default_dataset_location
print(default_dataset_location("x"))
"""
"""A command's start, then what the default learner and a report import."""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Working folder, temporary folder and a home folder; all empty."""
    places = {name: tmp_path / name for name in ("work", "temporary", "home")}
    for place in places.values():
        place.mkdir()
    return places


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable is set by the user, and none that a test sets stays."""
    for name in (*FOLDERS, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_without_a_home_that_can_be_written_to_the_default_learner_and_figures_are_imported_in_silence(
    files: dict[str, Path],
) -> None:
    """With a HOME without a slash, Avalanche makes a folder `~`, and Matplotlib warns at each call."""
    environment = dict(os.environ) | {
        "HOME": "~",
        "TMPDIR": str(files["temporary"]),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", USE_ALL], cwd=files["work"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "~/.avalanche/data/x", "what Avalanche itself would say"
    assert not [line for line in done.stderr.splitlines() if "matplotlib" in line.lower()], done.stderr
    assert written(files["work"]) == set()
    (ours,) = files["temporary"].iterdir()
    assert ours.name == f"dqmstream-{os.getuid()}"
    assert {path.name for path in ours.iterdir()} <= set(FOLDERS.values())


@pytest.mark.parametrize("home", ["", "~", "/dev/null", "/proc/nowhere"])
def test_a_home_that_cannot_be_used_is_left_alone(home: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(libraries.tempfile, "gettempdir", lambda: str(files["temporary"]))
    monkeypatch.chdir(files["work"])
    ours = files["temporary"] / f"dqmstream-{os.getuid()}"
    assert keep_in_our_folder() == ours
    assert os.environ["MPLCONFIGDIR"] == str(ours / "matplotlib")
    assert ours.stat().st_mode & 0o777 == 0o700
    assert written(files["work"]) == set()


def test_a_good_home_has_our_folder_in_its_cache_and_nothing_else_and_what_the_user_set_stays(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(files["home"]))
    monkeypatch.setenv("TORCH_HOME", "/mine")
    assert keep_in_our_folder() == files["home"] / ".cache" / "dqmstream"
    assert os.environ["MPLCONFIGDIR"] == str(files["home"] / ".cache" / "dqmstream" / "matplotlib")
    assert os.environ["TORCH_HOME"] == "/mine"
    assert written(files["home"]) == set(), "it is made by what needs it"


def test_a_folder_that_another_user_prepared_is_not_used(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name can be guessed, and anybody may write to the temporary folder."""
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(libraries.tempfile, "tempdir", str(files["temporary"]))
    prepared = files["temporary"] / f"dqmstream-{os.getuid()}"
    prepared.symlink_to(files["home"])
    found = keep_in_our_folder()
    assert found is not None and found != prepared and found.parent == files["temporary"]
    assert written(files["home"]) == set()
