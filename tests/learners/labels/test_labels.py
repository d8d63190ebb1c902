"""The task of labels: good and faulty lumisections under conditions that move."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_maps
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.label_results import closed_lines, label_results
from dqmstream.learners.labels.followed import FollowedGains, why_left_out
from dqmstream.learners.labels.registry import label_strategy_names, make_label_strategy, resolve_label
from dqmstream.learners.labels.rows import CONDITIONS, GOOD, coded, decoded
from dqmstream.learners.labels.strategy import FEWEST, Period
from dqmstream.learners.maps import RunData
from dqmstream.learners.splits import Part, assign
from dqmstream.learners.stream.label_state import LabelState
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.ledger import read_ledger
from dqmstream.learners.stream.replay import replay
from dqmstream.storage.archive import Archive
from tests.commandline import dqmstream

METHODS = (
    "naive", "replay", "er_ace", "der", "ewc", "si", "mas", "lwf", "agem", "gdumb", "rar", "joint", "cumulative",
)  # fmt: skip
SMALL = {"steps": 4, "fisher_samples": 4}


def labelled(name: str, seed: int, runs: int, lumisections: int | None = None) -> list[RunData]:
    """Simulated runs with their true labels."""
    found = []
    for run in stream(name, seed=seed, runs=runs, lumisections=lumisections):
        maps = as_maps(run)
        found.append(RunData(run.run, maps, assign(maps.lumisection), np.where(run.faulty, 0, 1).astype(np.int8)))
    return found


@pytest.fixture(scope="module")
def runs() -> list[RunData]:
    return labelled("tracks", 1, 6)


@pytest.fixture(scope="module")
def looked(runs: list[RunData]) -> tuple[FollowedGains, list[tuple[HistoryLine, Period | None]]]:
    state = LabelState("fault_score")
    found = [state.look(number, run) for number, run in enumerate(runs)]
    return state.followed, found


def periods_of(looked: list[tuple[HistoryLine, Period | None]]) -> list[Period]:
    return [period for _, period in looked if period is not None]


def test_a_period_holds_both_labels_in_train_and_test(
    looked: tuple[FollowedGains, list[tuple[HistoryLine, Period | None]]],
) -> None:
    periods = periods_of(looked[1])
    assert [period.number for period in periods] == list(range(len(periods))) and len(periods) >= 3
    assert any(len(period.runs) > 1 for period in periods)
    for period in periods:
        assert min(period.rows.counts(part).min() for part in (Part.TRAIN, Part.TEST)) >= FEWEST
        assert set(period.rows.run) == set(period.runs)


def test_a_row_does_not_contain_its_label(runs: list[RunData]) -> None:
    followed = FollowedGains()
    followed.follow(runs[0])
    told = followed.rows(runs[1])
    swapped = followed.rows(replace(runs[1], labels=1 - runs[1].labels))  # type: ignore[operator]
    np.testing.assert_array_equal(told.values, swapped.values)
    np.testing.assert_array_equal(told.fault, swapped.fault)
    np.testing.assert_array_equal(told.label, 1 - swapped.label)


def test_rows_keep_residuals_and_conditions_to_a_thousandth() -> None:
    rng = np.random.default_rng(1)
    residuals, conditions = rng.normal(size=(5, 7)) * 4, np.exp(rng.normal(size=(5, CONDITIONS)))
    values = coded(residuals, conditions)
    assert values.dtype == np.uint16
    wanted = np.concatenate([np.clip(residuals, -10, 10), np.log(conditions)], axis=1)
    np.testing.assert_allclose(decoded(values), wanted, atol=1e-3)


def test_lumisections_without_a_label_are_used_for_nothing_and_counted(runs: list[RunData]) -> None:
    first, run = runs[:2]
    labels = np.array(run.labels)
    labels[:50] = -1
    counts = run.maps.counts.copy()
    counts[:50] = 1e3  # whatever they hold
    state, other = LabelState("fault_score"), LabelState("fault_score")
    for one in (state, other):
        one.look(0, first)
    line, _ = state.look(1, replace(run, labels=labels))
    assert line.period is not None and line.period.unlabelled == 50
    followed = other.followed
    followed.follow(replace(run, labels=labels, maps=replace(run.maps, counts=counts)))
    for name, array in state.followed.state().items():
        np.testing.assert_array_equal(array, followed.state()[name])
    nothing = replace(run, labels=np.full(len(labels), -1, dtype=np.int8))
    assert "without labels" in why_left_out(nothing, as_reference=False)
    assert "without labels" in why_left_out(nothing, as_reference=True)
    assert "labelled good" in why_left_out(replace(run, labels=np.zeros(len(labels), dtype=np.int8)), as_reference=True)


def test_a_run_read_without_labels_is_refused(runs: list[RunData]) -> None:
    with pytest.raises(StateError, match="without labels"):
        why_left_out(replace(runs[0], labels=None), as_reference=True)


def test_closed_forms_find_faults_and_conditions_alone_do_not(
    looked: tuple[FollowedGains, list[tuple[HistoryLine, Period | None]]],
) -> None:
    followed, found = looked
    state = LabelState("logistic", beside=("fault_score", "z_score", "conditions"))
    state.followed = followed
    lines = [line if period is None else state.learn_period(line, period) for line, period in found]
    result = label_results(lines)
    auc = {name: figures["average_auc"] for name, figures in result["baseline_figures"].items()}
    assert min(result["average_auc"], auc["fault_score"], auc["z_score"]) > 0.97
    assert 0.3 < auc["conditions"] < 0.7
    size = len(periods_of(found))
    assert [row.count(None) for row in result["auc_matrix"]] == list(range(size - 1, -1, -1))
    assert result["baseline_figures"]["fault_score"]["forgetting_auc"] == pytest.approx(0, abs=1e-3)
    assert result["forward_transfer_auc"] > 0.4
    assert result["lumisections"]["good"] + result["lumisections"]["faulty"] == 6 * 400
    assert closed_lines(lines)[-1].calibration is not None


@pytest.mark.parametrize("name", METHODS)
def test_a_restored_strategy_learns_the_same_bits(
    name: str, looked: tuple[FollowedGains, list[tuple[HistoryLine, Period | None]]]
) -> None:
    followed, found = looked
    first, second, third = periods_of(found)[:3]
    made = [make_label_strategy(name, followed.live, seed=3, recipe=SMALL, memory_bytes=200_000) for _ in range(3)]
    for period in (first, second):
        made[0].learn(period)
    made[1].restore({name: array.copy() for name, array in made[0].state().items()})
    for strategy in made[:2]:
        strategy.learn(third)
    states = [strategy.state() for strategy in made[:2]]
    assert states[0].keys() == states[1].keys()
    for entry, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][entry], err_msg=entry)
    scores = made[0].scores(third.rows)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1)
    assert made[0].memory_bytes() == made[1].memory_bytes() and made[0].state_bytes() == made[1].state_bytes()
    with pytest.raises(ValueError, match="cannot follow"):
        made[2].learn(third)


def test_test_rows_teach_nothing(looked: tuple[FollowedGains, list[tuple[HistoryLine, Period | None]]]) -> None:
    followed, found = looked
    period = periods_of(found)[0]
    rows = period.rows
    other = replace(rows, values=np.where((rows.part == Part.TRAIN)[:, None], rows.values, np.uint16(0)))
    other = replace(other, label=np.where(rows.part == Part.TRAIN, rows.label, GOOD))
    for name in ("replay", "logistic"):
        states = []
        for taught in (rows, other):
            strategy = make_label_strategy(name, followed.live, seed=3, recipe=SMALL)
            strategy.learn(replace(period, rows=taught))
            states.append(strategy.state())
        for entry, array in states[0].items():
            np.testing.assert_array_equal(array, states[1][entry], err_msg=entry)


def test_replay_keeps_both_labels_of_every_period_within_the_budget(
    looked: tuple[FollowedGains, list[tuple[HistoryLine, Period | None]]],
) -> None:
    followed, found = looked
    periods = periods_of(found)
    strategy = make_label_strategy("replay", followed.live, seed=3, recipe=SMALL, memory_bytes=60_000)
    for period in periods:
        log = strategy.learn(period)
    assert strategy.memory_bytes() <= 60_000
    assert log.notes["exemplars_fewest"] >= 1 and log.notes["runs_without_exemplars"] == 0


def test_the_network_learns_what_a_fault_is_in_any_channel(
    looked: tuple[FollowedGains, list[tuple[HistoryLine, Period | None]]],
) -> None:
    followed, found = looked
    state = LabelState("replay", seed=1, beside=())
    state.followed = followed
    lines = [line if period is None else state.learn_period(line, period) for line, period in found]
    assert label_results(lines)["average_auc"] > 0.95


def test_names_of_strategies() -> None:
    assert {*METHODS, "fault_score", "z_score", "logistic", "conditions"} <= set(label_strategy_names())
    assert resolve_label("default") == "replay"
    for name in ("hybrid", "gain_map", "nothing"):
        with pytest.raises(InputError, match="for labels"):
            resolve_label(name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of six runs of tracks; the golden JSON says nothing of the last one."""
    folder = tmp_path_factory.mktemp("labels")
    dqmstream("simulate", folder / "runs", "--stream", "tracks", "--seed", "1", "--runs", "6")
    golden = json.loads((folder / "runs" / "golden.json").read_text())
    del golden[max(golden)]
    (folder / "golden.json").write_text(json.dumps(golden))
    dqmstream("import", folder / "runs", "--archive", folder / "A", "--golden", folder / "golden.json")
    return folder / "A"


def test_a_replay_of_labels_resumes_to_the_same_bits_and_says_what_it_left_out(archive: Path, tmp_path: Path) -> None:
    settings = LearnerSettings(task="labels", strategy="ewc", recipe=SMALL, seed=2)
    whole = replay(Archive.open(archive), tmp_path / "whole", settings)
    assert [why for why in whole["left_out"].values() if "without labels" in why] and len(whole["left_out"]) == 1
    assert whole["task"] == "labels" and len(whole["periods"]) >= 2
    with Learner(archive, tmp_path / "parts" / "replay-labels-ewc-2", settings) as learner:
        learner.freeze(read_ledger(tmp_path / "whole" / "replay-labels-ewc-2" / "ledger.jsonl"))
        for _ in range(4):
            learner.step()
    resumed = replay(Archive.open(archive), tmp_path / "parts", settings, resume=True)
    for name in ("accuracy_matrix", "auc_matrix", "periods", "lumisections", "calibration", "baseline_figures"):
        assert resumed[name] == whole[name], name


def test_the_command_prints_the_table_and_refuses_what_belongs_to_runs(archive: Path, tmp_path: Path) -> None:
    arguments = ("replay", "--archive", archive, "--state", tmp_path / "S", "--task", "labels", "--strategy", "fault_score")
    printed = json.loads(dqmstream(*arguments, "--json").stdout.splitlines()[-1])
    assert printed["average_auc"] > 0.97
    flagged = dqmstream(
        "flags",
        "--archive",
        archive,
        "--state",
        tmp_path / "S",
        "--name",
        "replay-labels-fault_score-0",
        "--run",
        printed["runs"][-1],
    )
    assert flagged.returncode and "is of a learner of labels" in flagged.stderr
    refused = dqmstream(*arguments, "--window", "20")
    assert refused.returncode and "--window is for the task of runs" in refused.stderr
