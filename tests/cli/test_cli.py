"""The command line: help that costs nothing, errors in one line, exit codes, JSON last."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqmstream import __version__
from dqmstream.errors import InputError, StateError
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import recipe_changes, recipe_of
from dqmstream.learners.stream.learner_settings import LearnerSettings, identity
from dqmstream.learners.stream.state_folder import check_identity
from dqmstream.service.learn import learner_settings
from dqmstream.service.learner_process import settings_of_child
from dqmstream.settings import as_json, from_json, load_settings, recipe_flags
from tests import commandline
from tests.commandline import told
from tests.maps import counts, write_run
from tests.runs import simulated_archive


def dqmstream(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a fresh interpreter."""
    command = [sys.executable, "-m", "dqmstream", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)


def result(*arguments: object) -> dict[str, object]:
    """The JSON object that is the last line of stdout."""
    done = dqmstream(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_help_and_version_import_neither_torch_nor_avalanche() -> None:
    code = (
        "import sys\nfrom dqmstream.cli.main import app\n"
        "for arguments in (['--help'], ['--version'], ['consume', '--help'], ['replay', '--help'], ['demo', '--help']):\n"
        "    try: app(arguments)\n    except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'avalanche', 'timm', 'kafka', 'zarr', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"dqmstream {__version__}" in done.stdout
    assert "Exit codes" in done.stdout


def test_help_tells_the_defaults() -> None:
    """Brackets would be taken for markup and vanish."""
    for command, default in (("learn", "1000000"), ("consume", "TOPIC.deadletter"), ("replay", "ARCHIVE.state")):
        done = dqmstream(command, "--help", env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"})
        assert f"default: {default}" in done.stdout


def test_simulate_import_and_status(tmp_path: Path) -> None:
    out, archive = tmp_path / "sim", tmp_path / "A"
    made = result("simulate", out, "--stream", "null", "--seed", 5, "--runs", 2, "--lumisections", 30)
    assert len(made["files"]) == 7  # type: ignore[arg-type]
    result("import", *sorted(out.iterdir()), "--archive", archive)
    status = result("status", "--archive", archive)
    assert status["lumisections"] == 60
    assert [run["complete"] for run in status["runs"]] == ["stop", "stop"]  # type: ignore[attr-defined]
    assert "60 lumisections of 2 runs" in dqmstream("status", "--archive", archive).stdout


def test_settings_come_from_flags_then_environment_then_file(tmp_path: Path) -> None:
    write_run(tmp_path / "data", 3, counts(3, 2))
    (tmp_path / "dqm.toml").write_text(f'archive = "{tmp_path / "from-file"}"\ndtype = "uint16"\n')
    env = {"DQMSTREAM_CONFIG": str(tmp_path / "dqm.toml"), "PATH": "/usr/bin:/bin"}
    assert commandline.dqmstream("import", tmp_path / "data", env=env).returncode == 0
    assert commandline.result("status", "--archive", tmp_path / "from-file")["dtype"] == "uint16"
    env["DQMSTREAM_ARCHIVE"] = str(tmp_path / "from-env")
    assert commandline.dqmstream("import", tmp_path / "data", "--dtype", "float32", env=env).returncode == 0
    assert commandline.result("status", "--archive", tmp_path / "from-env")["dtype"] == "float32"
    (tmp_path / "dqm.toml").write_text("speed = 3\n")
    assert "setting speed" in told(commandline.dqmstream("import", tmp_path / "data", env=env), 3)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["status"], 3, "--archive is missing"),
        (["status", "--archive", "nowhere"], 5, "nowhere is no archive"),
        (["import", "nowhere.npy", "--archive", "A"], 3, "nowhere.npy does not exist"),
        (["simulate", "sim", "--stream", "noise"], 3, "moderate"),
        (["replay", "--archive", "nowhere"], 5, "no archive"),
        (["consume", "--archive", "A", "--topic", "t"], 3, "--bootstrap is missing"),
        (["learn", "--archive", "A", "--name", "../x"], 3, "setting name"),
        (["publish", "--archive", "A", "--rate", "3", "--realtime"], 3, "exclude each other"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in told(commandline.dqmstream(*arguments), code)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_another_dtype_or_geometry_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "data", 3, counts(3, 2))
    commandline.result("import", path, "--archive", tmp_path / "A")
    assert "made with dtype float32, not uint16" in told(
        commandline.dqmstream("import", path, "--archive", tmp_path / "A", "--dtype", "uint16"), 5
    )
    wide = write_run(tmp_path / "wide", 4, np.zeros((2, 7, 64, 72)))
    assert "holds 7 depth(s), the archive 1" in told(commandline.dqmstream("import", wide, "--archive", tmp_path / "A"), 3)


def test_an_unknown_strategy_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    commandline.result("import", write_run(tmp_path / "data", 3, counts(3, 2)), "--archive", tmp_path / "A")
    says = told(commandline.dqmstream("replay", "--archive", tmp_path / "A", "--strategy", "magic"), 3)
    assert "choose one of" in says
    assert not (tmp_path / "A.state").exists()


def test_training_is_watched_where_a_flag_asks_for_it_and_that_is_part_of_what_a_learner_is(tmp_path: Path) -> None:
    archive = simulated_archive(tmp_path, "small", seed=1, runs=3, lumisections=200)
    flags = ("replay", "--archive", archive.path, "--strategy", "ring_means")
    assert commandline.result(*flags, "--watch-samples", 400)["min_accuracy_within_training"] is not None
    with pytest.raises(InputError, match="at least, not 5"):
        learner_settings(load_settings(watch_samples=5))
    child = settings_of_child(archive, tmp_path / "state", load_settings(watch_samples=800), 1.0)
    assert from_json(as_json(child)).watch_samples == 800

    folder = Path(f"{archive.path}.state") / "replay-ring_means-0"
    unwatched = identity(archive, LearnerSettings("ring_means"))
    with pytest.raises(StateError, match="watch_samples 400, not 0"):
        check_identity(folder, unwatched)
    stored = json.loads((folder / "state.json").read_text())
    del stored["watch_samples"]
    (folder / "state.json").write_text(json.dumps(stored))
    check_identity(folder, unwatched)  # an older version never watched, and said nothing of it


def test_a_recipe_comes_from_a_file_and_from_what_is_set_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.toml").write_text("steps = 5\nnoise = 0.5\n")
    (tmp_path / "own.json").write_text('{"patch": [8, 12]}')
    assert recipe_flags(None, None) is None
    assert recipe_flags(tmp_path / "own.json", ["model=cnn"]) == {"patch": [8, 12], "model": "cnn"}
    given = recipe_flags(tmp_path / "own.toml", ["steps=7", "linear_skip=false"])
    (tmp_path / "dqm.toml").write_text("[recipe]\nsteps = 9\ndim = 32\n")
    monkeypatch.setenv("DQMSTREAM_CONFIG", str(tmp_path / "dqm.toml"))
    settings = load_settings(recipe=given)
    own = {"dim": 32, "steps": 7, "noise": 0.5, "linear_skip": False}
    assert settings.recipe == own
    recipe = recipe_of("replay", settings.recipe)
    assert recipe == replace(Recipe(), **own)
    assert recipe_changes("replay", {**own, "batch": Recipe().batch}) == own
    assert recipe_of("gain_map", settings.recipe) is None and recipe_changes("gain_map", own) == {}
    monkeypatch.setenv("DQMSTREAM_RECIPE", "steps=3")
    with pytest.raises(InputError, match="no JSON"):
        load_settings()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "stepps=3"], "a recipe has no stepps; it has model"),
        (["--set", "steps=many"], "recipe, steps: .*integer.*'many'"),
        (["--set", "noise=NaN"], "recipe, noise"),
        (["--set", "steps"], "give name=value"),
        (["--set", "top_k=9"], "top_k 9"),
        (["--recipe", "nowhere.toml"], "nowhere.toml cannot be read: No such file"),
    ],
)
def test_a_recipe_of_no_use_is_refused_before_anything_is_written(words: list[str], says: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "data", 3, counts(3, 2))
    commandline.result("import", path, "--archive", tmp_path / "A")
    for command in (("replay", "--strategy", "gain_map"), ("learn", "--strategy", "replay")):
        told_of = told(commandline.dqmstream(*command, "--archive", tmp_path / "A", *words), 3)
        assert re.search(says, told_of), told_of
    assert not (tmp_path / "A.state").exists()


def test_a_learner_of_another_recipe_is_another_learner_and_consume_hands_it_on(tmp_path: Path) -> None:
    archive = simulated_archive(tmp_path, "small", seed=1, runs=2, lumisections=200)
    tiny = ["--set", "dim=16", "--set", "heads=2", "--set", "steps=2", "--set", "depth=1", "--set", "patch=[32, 36]"]
    replayed = commandline.result("replay", "--strategy", "replay", "--archive", archive.path, *tiny)
    assert len(replayed["accuracy_matrix"]) == 2  # type: ignore[arg-type]
    recipe = recipe_flags(None, tiny[1::2])
    assert recipe is not None
    folder = Path(f"{archive.path}.state") / "replay-replay-0"
    check_identity(folder, identity(archive, LearnerSettings("replay", recipe)))
    with pytest.raises(StateError, match=r"recipe \{.*\}, not \{\}"):
        check_identity(folder, identity(archive, LearnerSettings("replay")))
    child = settings_of_child(archive, tmp_path / "state", load_settings(recipe=recipe), 1.0)
    assert from_json(as_json(child)).recipe == recipe


def test_windows_are_named_before_they_teach_where_a_flag_asks_for_it(tmp_path: Path) -> None:
    archive = simulated_archive(tmp_path, "moderate", seed=1, runs=2, lumisections=200)
    flags = ("--archive", archive.path, "--strategy", "gain_map", "--window", 50)
    learnt = commandline.result("learn", *flags, "--label-delay", 0)["prequential"]
    assert [line["lumisections"] for line in learnt["by_window"]] == [50] * 4
    assert learnt["known"] == 0.75
    replayed = commandline.result("replay", *flags)["prequential"]
    assert replayed["known"] == 0.5
    shown = commandline.dqmstream("replay", *flags, "--set", "steps=3")
    assert "4 windows on arrival: accuracy" in shown.stdout
    assert "the strategy has no recipe: these change nothing" in shown.stderr
    live = commandline.result("status", "--archive", archive.path)["learners"]["live"]
    assert live["prequential_accuracy"] == learnt["accuracy"]
    by_last = commandline.result("replay", *flags)["by_last"]
    assert live["accuracy_by_last"] == {n: by_last[n]["average_accuracy"] for n in ("4", "8", "30")}
    assert "last 8" in shown.stdout and by_last["8"]["accuracy_matrix"][1][0] >= 0.9
    says = told(commandline.dqmstream("learn", *flags), 7)
    assert "label_delay 0, not 1" in says
    says = told(commandline.dqmstream("replay", "--archive", archive.path, "--label-delay", 2), 3)
    assert "--label-delay is for a learner that takes windows: give --window too" in says
    says = told(commandline.dqmstream("replay", "--archive", archive.path, "--window", -1), 3)
    assert "setting window" in says
    given = load_settings(window=20, label_delay=0)
    child = from_json(as_json(settings_of_child(archive, tmp_path / "state", given, 1.0)))
    assert (child.window, child.label_delay) == (20, 0)
    assert learner_settings(given).label_delay == 0


def test_a_command_ends_with_its_own_code_whatever_threads_of_libraries_still_do() -> None:
    """What is registered for the end runs, and the interpreter is not taken down under threads that may still need it."""
    code = (
        "import atexit, sys\nfrom dqmstream.cli.main import main\n"
        "class Teardown:\n    def __del__(self): print('taken down')\n"
        "kept = Teardown()\natexit.register(print, 'registered')\n"
        "sys.argv[1:] = ['status', '--archive', '/nowhere']\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "/nowhere is no archive" in told(done, 5)
    assert done.stdout == "registered\n"
