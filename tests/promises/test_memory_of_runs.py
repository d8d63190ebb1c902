"""README: a learner that dies resumes to the same bits, a replay repeats them; the null stream stays at chance."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dqmstream.experiments.report.summary import guessing_interval, guessing_p_value
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.replay import replay
from dqmstream.storage.archive import Archive
from tests.cli.test_cli import result
from tests.learners.stream.test_learner import assert_same_bits
from tests.runs import simulated_archive

BRIEF = {"steps": 50}
"""Half the training: `replay` tells runs apart after it as well as after all of it."""


def test_a_learner_that_is_killed_resumes_to_the_same_bits_and_a_replay_gives_them_again(tmp_path: Path) -> None:
    """The default strategy, ended by SIGKILL while it learns its third run, against one that nothing happened to.

    A few training steps are enough: what is compared is bits.
    """
    archive = simulated_archive(tmp_path, runs=3)
    flags = ["--archive", str(archive.path), "--strategy", "default", "--threads", "1", "--seed", "7", "--set", "steps=20"]
    broken = tmp_path / "broken"
    command = [sys.executable, "-m", "dqmstream", "learn", *flags, "--state", str(broken)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while len(list((broken / "live" / "checkpoints").glob("[0-9]*"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)  # looking costs a processor, which the learner needs to get there
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len((broken / "live" / "history.jsonl").read_text().splitlines()) == 2
    assert result("learn", *flags, "--state", broken)["strategy"] == "hybrid"

    settings = LearnerSettings(strategy="default", recipe={"steps": 20}, seed=7, threads=1)
    unbroken = Learner(archive, tmp_path / "unbroken" / "live", settings).open()
    unbroken.follow(lambda: False, once=True)
    unbroken.close()
    assert_same_bits(broken / "live", tmp_path / "unbroken" / "live")
    replay(archive, tmp_path, settings, ledger=broken / "live" / "ledger.jsonl")
    assert_same_bits(broken / "live", tmp_path / "replay-hybrid-7")


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("null"), "null", seed=4, runs=4, lumisections=400)


@pytest.mark.parametrize(
    ("strategy", "recipe"),
    [("default", {}), ("naive", BRIEF), ("ewc", BRIEF), ("joint", BRIEF)],
    ids=["default", "naive", "ewc", "joint"],
)
def test_on_the_null_stream_everything_is_at_chance(
    strategy: str, recipe: dict[str, int], null: Archive, tmp_path: Path
) -> None:
    """Runs differ in luminosity only. Neighbours share it, so four lumisections count as one in the interval (99.9 %)."""
    found = replay(null, tmp_path, LearnerSettings(strategy=strategy, recipe=recipe))
    tested = np.full(4, 60)
    accuracies = {strategy: found["average_accuracy"], **found["baselines"]}
    assert set(accuracies) == {strategy, "ring_means", "naive_bayes", "gain_map"}
    for name, accuracy in accuracies.items():
        p_value = guessing_p_value(accuracy, tested, shares=4)
        assert 0.0005 < p_value < 0.9995, (name, accuracy, guessing_interval(tested, shares=4))


def test_on_runs_that_differ_replay_remembers_and_naive_forgets(tmp_path: Path) -> None:
    archive = simulated_archive(tmp_path, "moderate", seed=4, runs=4, lumisections=400)
    naive = replay(archive, tmp_path, LearnerSettings(strategy="naive", recipe=BRIEF))
    remembering = result("replay", "--archive", archive.path, "--strategy", "replay", "--set", f"steps={BRIEF['steps']}")
    assert remembering["average_accuracy"] > naive["average_accuracy"] + 0.4  # type: ignore[operator]
    assert naive["forgetting"] > 0.5 > 0.1 > remembering["forgetting"]  # type: ignore[operator]
    history = (Path(f"{archive.path}.state") / "replay-replay-0" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["memory_bytes"] <= 1_000_000 for line in history] == [True] * 4
