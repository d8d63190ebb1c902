"""The fault benchmark: metrics on cases worked out by hand; detectors find faults and use no later data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from dqmstream.cli.main import app
from dqmstream.errors import InputError, StateError
from dqmstream.experiments.cells.runner import Progress, Workers, run_cells
from dqmstream.experiments.cells.store import CellStore
from dqmstream.experiments.faults.autodqm import pulls
from dqmstream.experiments.faults.cell import FaultCell
from dqmstream.experiments.faults.detection_metrics import CAPTURES, PREVALENCES, Delays, HeldOut, Tally, agreement, precision
from dqmstream.experiments.faults.detectors import DETECTORS, NAMES, make_detector
from dqmstream.experiments.faults.spec import FaultSpec, run_faults
from dqmstream.experiments.faults.streams import SHIFTS, fault_stream
from dqmstream.experiments.faults.summary import summarise
from dqmstream.experiments.faults.text import (
    COLUMNS,
    COST_COLUMNS,
    KIND_COLUMNS,
    PRECISION_COLUMNS,
    markdown,
    printed,
    printed_cost,
    printed_precision,
    write,
)
from dqmstream.experiments.faults.track import KINDS, WARM, Track, follow
from dqmstream.experiments.json_numbers import nan_as_null
from dqmstream.experiments.simulator import LIVE, SimulatedRun, stream
from dqmstream.experiments.simulator.fault_locations import channel
from dqmstream.experiments.simulator.faults import Fault
from dqmstream.experiments.simulator.learner_input import as_maps
from dqmstream.experiments.simulator.runs import draw_runs
from dqmstream.experiments.simulator.streams import STREAMS
from dqmstream.experiments.statistics import clustered_figures
from dqmstream.learners.evaluation.roc import auc
from dqmstream.learners.monitoring.fault_score import FaultScore
from dqmstream.learners.response.reference import Reference
from dqmstream.lumisection import ieta_row

RUNS, LUMISECTIONS = WARM + 4, 60
TRAINED = [name for name in NAMES if "autoencoder" in name or "DepthViT" in name]
"""Detectors that train a network, and score each lumisection by itself."""
QUICK = FaultSpec(detectors=("z-score", "fault score"), seeds=(3,), runs=RUNS, lumisections=120, every=2)


def without_faults(runs: int, lumisections: int, seed: int = 4) -> list[SimulatedRun]:
    """`tracks` as it would be if nothing failed."""
    named = replace(STREAMS["tracks"], faults=(), anomaly_p=0.0)
    return list(draw_runs(named, seed, list(range(1, runs + 1)), lumisections))


def with_dead_channel(run: SimulatedRun, seed: int = 1) -> SimulatedRun:
    """The same run with ieta -24, iphi 21 dead in its second half."""
    acts = np.arange(len(run.counts)) >= len(run.counts) // 2
    dead = Fault("dead", channel(ieta_row(-24), 20), 0.0, acts, since_run=run.run)
    return replace(run, faults=(dead,)).redraw(run.rate, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def good_runs() -> list[SimulatedRun]:
    return without_faults(RUNS, LUMISECTIONS)


@pytest.fixture(scope="module")
def tracks() -> list[SimulatedRun]:
    return list(stream("tracks", seed=3, runs=RUNS, lumisections=LUMISECTIONS))


def test_false_positives_at_a_capture_and_auc_are_those_counted_by_hand() -> None:
    faulty = np.arange(1, 101) / 100  # 0.01 .. 1.00
    good = np.array([0.0, 0.005, 0.02, 0.055, 0.06, 0.105, 0.11, 0.5, 0.99, 2.0])
    found = Tally.of([faulty[::2], faulty[1::2]], [good[:4], good[4:]]).figures(np.ones((1, 2)))[0]
    # 90 of 100 reach .11, 95 reach .06, 99 reach .02.
    assert dict(zip(CAPTURES, found[:3], strict=True)) == pytest.approx({0.9: 0.4, 0.95: 0.6, 0.99: 0.8})
    pairs = (faulty[:, None] > good).mean() + 0.5 * (faulty[:, None] == good).mean()
    assert found[3] == pytest.approx(pairs)
    weighted = Tally.of([faulty, faulty], [good[:4], good[4:]]).figures(np.array([[1.0, 0.0]]))[0]
    assert weighted[:3] == pytest.approx([0.0, 0.0, 0.5])
    assert np.isnan(Tally.of([np.zeros(0)], [good]).figures(np.ones((1, 1)))).all()


def test_precision_at_a_capture_follows_from_both_shares() -> None:
    faulty, good = np.arange(1, 101) / 100, np.array([0.0, 0.005, 0.02, 0.055, 0.06, 0.105, 0.11, 0.5, 0.99, 2.0])
    found = Tally.of([faulty], [good]).figures(np.ones((1, 1)))[0]
    expected = [c * p / (c * p + rate * (1 - p)) for c, rate in zip(CAPTURES, found[:3], strict=True) for p in PREVALENCES]
    assert found[4:] == pytest.approx(expected)
    assert expected[0] == pytest.approx(0.27 / (0.27 + 0.28))
    assert np.isnan(precision(np.zeros(1), np.zeros(1), 0.3)).all(), "nothing is flagged"


def test_small_shifts_leave_the_conditions_alike_and_the_faults_as_they_are() -> None:
    runs = {shift: list(fault_stream(shift, seed=3, runs=6, lumisections=40)) for shift in SHIFTS}
    spread = {shift: np.std([np.log(run.pileup.mean()) for run in of_shift]) for shift, of_shift in runs.items()}
    assert spread["small"] < 0.05 < 0.3 < spread["large"]
    drift = {shift: np.std(np.log(np.array(of[-1].truth["gain"]) / of[0].truth["gain"])) for shift, of in runs.items()}
    assert drift["small"] < 0.5 * drift["large"]
    for one, other in zip(runs["small"], runs["large"], strict=True):
        assert [(fault.kind, fault.location.name) for fault in one.faults] == [
            (fault.kind, fault.location.name) for fault in other.faults
        ]


def test_binned_scores_give_the_figures_of_all_scores() -> None:
    rng = np.random.default_rng(0)
    faulty, good = rng.normal(2, 1, 5000), rng.normal(0, 1, 20000)
    found = Tally.of([faulty], [good]).figures(np.ones((1, 1)))[0]
    exact = [np.mean(good >= np.quantile(faulty, 1 - capture, method="lower")) for capture in CAPTURES]
    assert found[:3] == pytest.approx(exact, abs=0.003)
    assert found[3] == pytest.approx(0.9214, abs=0.006)


def test_a_threshold_allows_the_stated_number_of_past_alarms() -> None:
    held = HeldOut(alarms_per_run=2.0)
    assert held.threshold == np.inf
    held.add(np.arange(100.0), runs=1.0)
    assert (np.arange(100.0) > held.threshold).sum() == 2
    held.add(np.arange(100.0), runs=0.5)
    assert 2 * (np.arange(100.0) > held.threshold).sum() <= 3


def test_a_delay_counts_from_the_onset_across_runs_and_only_where_the_fault_acts_alone() -> None:
    delays = Delays()
    acts = np.array([0, 0, 1, 1, 1], dtype=bool)
    delays.add("a", 0, "dead", 10, acts, acts & [0, 0, 0, 1, 1], np.array([1, 0, 1, 0, 0], dtype=bool))
    delays.add("a", 1, "dead", 15, np.ones(5, dtype=bool), np.ones(5, dtype=bool), np.array([0, 1, 1, 0, 0], dtype=bool))
    delays.add("b", 1, "hot", 15, acts, acts, np.zeros(5, dtype=bool))
    delays.add("c", 1, "hot", 15, acts, np.zeros(5, dtype=bool), np.ones(5, dtype=bool))
    assert delays.rows() == [(0, "dead", 16 - 12), (1, "hot", None)]


def test_agreement_of_channels_is_that_of_sets() -> None:
    true = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]], dtype=bool)
    named = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=bool)
    assert agreement(named, true).tolist() == [[1 / 3, 1 / 2, 1 / 2, 1], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_intervals_of_figures_hold_them_and_a_stream_without_one_is_left_out() -> None:
    values = [np.arange(20.0), np.arange(20.0) + 1]

    def mean_of(x: np.ndarray) -> Any:
        return lambda w: np.stack([w @ x / w.sum(axis=1), np.full(len(w), np.nan)], axis=1)

    mean, nothing = clustered_figures([mean_of(x) for x in values], [20, 20])
    assert mean.estimate == pytest.approx(10.0)
    assert mean.low < 10.0 < mean.high and mean.streams == 2
    assert np.isnan(nothing.estimate) and np.isnan(nothing.low)


def test_a_pull_follows_from_the_likelihood_ratio() -> None:
    reference = np.full((1, 50), 1e7)
    counts = np.full((1, 50), 1000.0)
    counts[0, :3] = 0, 900, 1000
    found = pulls(counts, reference)[0]
    assert found[0] > 30
    # Of about 48900 counts in 50 channels 978 are expected each, known to 1 %: deviation sqrt(978 + 9.8 ** 2).
    deviations = 78 / np.sqrt(978 + 9.78**2)
    assert found[1] == pytest.approx(norm.isf(np.exp(-(deviations**2) / 2) / 2), rel=0.08)
    assert (found[2:] < 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_each_detector_finds_a_channel_that_dies_and_names_it(name: str, good_runs: list[SimulatedRun]) -> None:
    track = follow(good_runs[:3], make_detector(name, 0))
    run = with_dead_channel(good_runs[3])
    seen = track.look(run)
    dead = (np.argwhere(LIVE) == [ieta_row(-24), 20]).all(axis=1)
    assert np.median(seen.channels[run.faulty][:, dead]) > np.quantile(seen.channels[:, ~dead], 0.999)
    if name in DETECTORS:
        cost = track.results()["cost"]
        assert cost["numbers"] >= 932 and cost["kept_bytes"] >= cost["numbers"]
    if "z-score" not in name:  # channels that were full in the first run deviate more than a dead one
        assert auc(seen.score[run.faulty], seen.score[~run.faulty]) > 0.9


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRAINED])
def test_nothing_is_learnt_from_the_future(name: str, tracks: list[SimulatedRun], good_runs: list[SimulatedRun]) -> None:
    """Scores of a run change neither with other runs that were looked at, nor with its own later lumisections."""
    one, other = make_detector(name, 0), make_detector(name, 0)
    first, second = follow(tracks[:3], one), follow(tracks[:3], other)
    before = first.look(tracks[3])
    second.look(good_runs[5])
    np.testing.assert_array_equal(second.look(tracks[3]).score, before.score, err_msg="looking at a run teaches nothing")
    cut = replace(
        tracks[3], counts=tracks[3].counts[:40], events=tracks[3].events[:40], pileup=tracks[3].pileup[:40], faults=()
    )
    again = follow(tracks[:3], make_detector(name, 0))
    np.testing.assert_allclose(again.look(cut).score, before.score[:40], rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(again.look(cut).channels, before.channels[:40], rtol=2e-3, atol=1e-3)


def test_figures_of_a_run_do_not_change_when_later_runs_do(tracks: list[SimulatedRun], good_runs: list[SimulatedRun]) -> None:
    own = follow(tracks, make_detector("fault score", 0)).results()
    changed = follow([*tracks[:-1], with_dead_channel(good_runs[-1])], make_detector("fault score", 0)).results()
    for name in ("alarms", "runs"):
        assert own[name][:-1] == changed[name][:-1]
    assert own["named"]["all"][:-1] == changed["named"]["all"][:-1]


def test_without_faults_no_more_is_flagged_than_stated() -> None:
    """Of lumisections with odds of 99 or more by the fault score, one in a hundred may be good."""
    runs, detector = without_faults(13, 80), make_detector("fault score", 0)
    track, flagged = follow(runs[:1], detector), []
    for run in runs[1:]:
        flagged.append(track.look(run).score > np.log(99))
        track.go_on(run)
    assert np.mean(flagged) <= 0.01
    found = track.results()
    assert not found["faults"] and np.sum(found["alarms"], axis=0)[0] == len(found["runs"]) == 13 - 1 - WARM


def test_alarms_of_held_out_thresholds_are_as_many_as_stated() -> None:
    rng, held, alarms = np.random.default_rng(0), HeldOut(alarms_per_run=1.0), 0
    for run in range(400):
        scores = rng.normal(size=50)
        alarms += int((scores > held.threshold).sum()) if run >= WARM else 0
        held.add(scores, runs=1.0)
    assert abs(alarms - (400 - WARM)) < 4 * np.sqrt(400)


def test_a_cell_has_the_same_figures_each_time_and_is_not_computed_twice(tmp_path: Path) -> None:
    first = run_faults(QUICK, tmp_path, Workers())
    seen: list[Progress[FaultCell]] = []
    again = run_faults(QUICK, tmp_path, Workers(), seen.append)
    assert [(one.finished, one.total) for one in seen] == [(2, 2)]
    figures = ("lumisections", "channels", "named", "flagged", "alarms", "faults", "replayed")
    cell = QUICK.cells()[1]
    anew = json.loads(json.dumps(cell.compute()))
    for name in figures:
        assert json.loads(json.dumps(first[cell][name])) == again[cell][name] == anew[name]
    assert len(again[cell]["replayed"]["auc"]) == len(again[cell]["replayed"]["runs"]) >= 2

    made = summarise(QUICK, again)
    write(made, tmp_path)
    rows = {row["detector"]: row for row in made["detectors"]}
    better, worse = (rows[name]["kinds"]["all"]["lumisections"]["auc"]["estimate"] for name in ("fault score", "z-score"))
    assert better > 0.9 and better > worse
    assert {len(printed(row)) for row in made["detectors"]} == {len(COLUMNS)}
    assert {len(printed_precision(row)) for row in made["detectors"]} == {len(PRECISION_COLUMNS)}
    assert {len(printed_cost(row)) for row in made["detectors"]} == {len(COST_COLUMNS)}
    assert (tmp_path / "table.md").read_text() == markdown(made)
    assert len(KIND_COLUMNS) == len(KINDS)
    assert json.loads((tmp_path / "results.json").read_text())["use"] == "tuning"
    assert (tmp_path / "faults.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_that_fails_is_recorded_and_does_not_stop_the_others(tmp_path: Path) -> None:
    broken, sound = (FaultCell(name, 3, WARM + 3, 40, 1.0, 0) for name in ("nonsense", "AutoDQM"))
    records = run_cells([broken, sound], CellStore(tmp_path), Workers())
    error = records[broken]["error"]
    assert "nonsense" in error and records[sound]["runs"]
    assert json.loads((tmp_path / "failed" / f"{broken.name}.json").read_text())["error"] == error
    result = summarise(replace(QUICK, detectors=("nonsense", "AutoDQM")), records)
    assert result["failed"] == [f"failed: nonsense, seed 3: {error}"]
    assert [row["detector"] for row in result["detectors"]] == ["AutoDQM"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"detectors": ("magic",)}, "no detector"),
        ({"seeds": (3, 100)}, "do not go together"),
        ({"runs": 2}, f"needs at least {WARM + 3} runs"),
        ({"lumisections": 5}, "needs at least 40 lumisections"),
        ({"alarms": 0.0}, "alarms"),
        ({"every": -1}, "every"),
        ({"shift": "huge"}, "choose one of large, small"),
    ],
)
def test_errors_are_raised_before_anything_is_computed(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        run_faults(replace(QUICK, **changes), tmp_path / "out", Workers())
    assert not (tmp_path / "out").exists()


def test_the_command_prints_its_figures(tmp_path: Path) -> None:
    words = ["--detector", "AutoDQM", "--seed", "3", "--runs", str(WARM + 3), "--lumisections", "40", "--every", "0"]
    ran = CliRunner().invoke(app, ["faults", *words, "--workers", "1", "--out", str(tmp_path), "--json"])
    assert ran.exit_code == 0, ran.output
    done = json.loads(ran.stdout.splitlines()[-1])
    assert [row["detector"] for row in done["detectors"]] == ["AutoDQM"]
    assert done["detectors"][0]["cells"] == 1 and not done["failed"]
    assert json.loads((tmp_path / "results.json").read_text()) == nan_as_null(done)


def test_the_first_runs_are_not_measured(tracks: list[SimulatedRun]) -> None:
    track = Track(make_detector("z-score", 0))
    for run in tracks[: WARM + 1]:
        track.go_on(run)
    assert track.results()["runs"] == []
    track.go_on(tracks[WARM + 1])
    assert track.results()["runs"] == [tracks[WARM + 1].run]


def test_a_fault_score_resumes_from_its_state_to_the_same_bits(tracks: list[SimulatedRun]) -> None:
    maps = [as_maps(run).take(np.flatnonzero(~run.faulty)) for run in tracks[:3]]
    unbroken = FaultScore(Reference.fit(maps[0]))
    for number, run in enumerate(maps):
        resumed = FaultScore(unbroken.reference)
        resumed.restore(unbroken.state())
        for one in (unbroken, resumed):
            one.learn(run)
        for name, array in unbroken.state().items():
            np.testing.assert_array_equal(resumed.state()[name], array, err_msg=f"{name} after run {number}")
        np.testing.assert_array_equal(resumed.score(as_maps(tracks[3])).score, unbroken.score(as_maps(tracks[3])).score)
    state = unbroken.state()
    with pytest.raises(StateError, match="gain"):
        resumed.restore({name: array for name, array in state.items() if name != "gain"})
