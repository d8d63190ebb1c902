"""What the simulator draws is what its truth says, and the published runs come out of its model."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import (
    LIVE,
    READOUT_BOXES,
    SimulatedRun,
    draw_counts,
    fingerprint,
    nominal_rate,
    stream,
    write,
)
from dqmstream.experiments.simulator.streams import STREAMS
from dqmstream.lumisection import IETA, MAX_NUMBER, RUN_FILE, SIDECAR_FILE, ieta_row, rbx_mask

PUBLISHED_RING_MEDIANS = {
    355456: (253, 289, 514, 624, 756, 901, 1070, 1252, 1252, 1411, 1256),
    357479: (793, 824, 914, 928, 935, 942, 949, 949, 942, 942, 928),
}
"""Medians of the live cells with |ieta| 19..29, read from the two published files."""


@pytest.fixture(scope="module")
def moderate() -> list[SimulatedRun]:
    return list(stream("moderate", seed=5, runs=12, lumisections=300))


def box_residuals(run: SimulatedRun, rows: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """(side, n) -> sum of counts minus expected over the rows of the box, in units of its binomial spread, (n,)."""
    mean = run.expected(run.events, run.pileup)
    variance = mean * (1 - mean / run.events[:, None, None])
    sums = {}
    for side, n in READOUT_BOXES:
        cells = rbx_mask(side, n) & LIVE & rows[:, None]
        sums[side, n] = (run.counts - mean)[:, cells].sum(axis=1) / np.sqrt(variance[:, cells].sum(axis=1))
    return sums


@pytest.mark.parametrize("name", STREAMS)
def test_a_run_is_whole_counts_below_the_events_in_932_cells(name: str) -> None:
    run = next(stream(name, seed=1, lumisections=50))
    assert run.counts.shape == (50, 64, 72)
    assert run.events.shape == run.pileup.shape == (50,)
    assert run.counts.dtype == run.events.dtype == run.pileup.dtype == np.float64
    assert np.array_equal(run.counts, np.round(run.counts))
    assert np.array_equal(run.events, np.round(run.events))
    assert (run.counts <= run.events[:, None, None]).all()
    assert (run.counts > 0).any(axis=0).sum() == 932
    assert not run.counts[:, ~LIVE].any()


def test_the_same_seed_gives_the_same_bits_however_many_runs_are_asked_for(moderate: list[SimulatedRun]) -> None:
    for few, many in zip(stream("moderate", seed=5, runs=3, lumisections=300), moderate, strict=False):
        assert few.run == many.run
        assert few.truth == many.truth
        for part in ("counts", "events", "pileup", "rate"):
            assert np.array_equal(getattr(few, part), getattr(many, part))
    other = next(stream("moderate", seed=6, runs=3, lumisections=300))
    assert not np.array_equal(other.counts, moderate[0].counts)


def test_run_numbers_ascend_with_irregular_gaps(moderate: list[SimulatedRun]) -> None:
    numbers = [run.run for run in moderate]
    gaps = np.diff(numbers)
    assert numbers[0] == 355400
    assert (gaps >= 1).all()
    assert len(set(gaps.tolist())) > 5


def test_null_runs_have_one_truth_and_luminosity_moves_alike_within_each() -> None:
    runs = list(stream("null", seed=2))
    assert len(runs) == 8
    for run in runs:
        assert np.array_equal(run.rate, nominal_rate() * fingerprint(2))
        assert all(run.truth[key] == runs[0].truth[key] for key in ("gain", "dead", "rbx", "common_mode"))
        assert run.events.max() > 1.8 * run.events.min()
        assert run.pileup[:20].mean() == pytest.approx(7, rel=0.1)
        assert run.pileup[-20:].mean() == pytest.approx(3, rel=0.1)
        assert np.median(run.events) == pytest.approx(1250, rel=0.2)


def test_the_conditions_are_those_of_the_field_notes() -> None:
    runs = list(stream("null", seed=3, runs=20))
    cut = {(run.run, short["lumisection"]): short["fraction"] for run in runs for short in run.truth["truncated"]}
    assert 20 <= len(cut) <= 65  # 8000 lumisections at 0.5 %: 40, and 4 standard deviations
    logs = []
    for run in runs:
        whole = run.events / np.array([cut.get((run.run, row + 1), 1.0) for row in range(400)])
        assert (whole > 595).all() and (whole < 2605).all()  # the fraction is known to 5 digits, the events are rounded
        logs.append(np.log(whole / 1250))
    log_events = np.array(logs)
    assert log_events.std() == pytest.approx(0.2, rel=0.1)
    assert np.mean(log_events[:, 1:] * log_events[:, :-1]) / log_events.var() == pytest.approx(0.9, abs=0.03)
    log_pileup = np.log([run.pileup for run in runs]) - np.log(np.linspace(7, 3, 400))
    assert log_pileup.std() == pytest.approx(0.06, rel=0.1)


def test_all_streams_of_a_seed_share_their_conditions() -> None:
    for null, structured in zip(
        stream("null", seed=4, runs=3, lumisections=60), stream("structured", seed=4, lumisections=60), strict=False
    ):
        assert null.run == structured.run
        assert np.array_equal(null.events, structured.events)
        assert np.array_equal(null.pileup, structured.pileup)
        assert np.array_equal(null.rate, structured.rate)


def test_counts_follow_their_expectation(moderate: list[SimulatedRun]) -> None:
    run = moderate[-1]
    mean = run.expected(run.events, run.pileup)
    assert (mean[:, ~LIVE] == 0).all()
    alive = run.rate > 0
    variance = mean[:, alive] * (1 - mean[:, alive] / run.events[:, None])
    off = run.counts[:, alive] - mean[:, alive]
    assert (np.abs(off.sum(axis=0)) < 5 * np.sqrt(variance.sum(axis=0))).all()
    assert (off**2).sum() / variance.sum() == pytest.approx(1, abs=0.02)


def test_moderate_drifts_by_its_step_from_a_faultless_first_run(moderate: list[SimulatedRun]) -> None:
    assert set(moderate[0].truth["gain"]) == {1.0}
    assert not moderate[0].truth["dead"] and not moderate[0].truth["rbx"]
    for before, after in pairwise(moderate):
        gains = np.array([before.truth["gain"], after.truth["gain"]])
        boxed = np.any([rbx_mask(loss["side"], loss["n"]) for loss in before.truth["rbx"] + after.truth["rbx"]], axis=0)
        drifting = (gains > 0).all(axis=0) & ~np.broadcast_to(boxed, LIVE.shape)[LIVE]
        assert np.diff(np.log(gains[:, drifting]), axis=0).std() == pytest.approx(0.012, rel=0.15)


def test_dead_channels_count_nothing_and_stay_until_repaired(moderate: list[SimulatedRun]) -> None:
    dead = []
    for run in moderate:
        told = {(ieta_row(cell["ieta"]), cell["iphi"] - 1) for cell in run.truth["dead"]}
        silent = {(int(row), int(column)) for row, column in np.argwhere(LIVE & ~run.counts.any(axis=0))}
        assert told == silent
        dead.append(told)
    assert any(dead)
    assert all(len(after - before) <= 1 and len(before - after) <= 1 for before, after in pairwise(dead))


@pytest.mark.parametrize(("name", "low", "high"), [("moderate", 0.80, 0.95), ("small", 0.93, 0.99)])
def test_the_loss_of_a_readout_box_is_seen_in_the_data(name: str, low: float, high: float) -> None:
    faulty = [run for run in stream(name, seed=5, lumisections=200) if run.truth["rbx"]]
    assert 2 <= len(faulty) <= 15  # 19 runs with probability .4
    for run in faulty:
        (loss,) = run.truth["rbx"]
        assert low <= loss["factor"] <= high
        box = rbx_mask(loss["side"], loss["n"]) & (run.rate > 0)
        assert 20 <= box.sum() <= 26
        whole = replace(run, rate=np.where(box, run.rate / loss["factor"], run.rate))
        factors = np.linspace(0.7, 1.1, 41)
        totals = [replace(run, rate=whole.rate * factor).expected(run.events, run.pileup)[:, box].sum() for factor in factors]
        measured = np.interp(run.counts[:, box].sum(), totals, factors)
        mean = run.expected(run.events, run.pileup)[:, box]
        spread = np.sqrt((mean * (1 - mean / run.events[:, None])).sum())
        error = spread * (factors[-1] - factors[0]) / (totals[-1] - totals[0])
        assert abs(measured - loss["factor"]) < 4 * error
        assert error < 0.003


def test_the_noisy_boxes_of_structured_move_as_a_whole() -> None:
    forward = np.abs(IETA) >= 23
    for run in stream("structured", seed=7, runs=3, lumisections=400):
        noisy = {(box["side"], box["n"]) for box in run.truth["common_mode"]}
        assert len(noisy) == 2
        assert all(box["sigma"] == 0.03 for box in run.truth["common_mode"])
        inner, outer, whole = (box_residuals(run, rows) for rows in (~forward, forward, forward | ~forward))
        for box in READOUT_BOXES:
            together = np.corrcoef(inner[box], outer[box])[0, 1]
            if box in noisy:
                assert together > 0.3
                assert whole[box].std() > 1.3
            else:
                assert abs(together) < 0.2  # 4 standard deviations of 400 lumisections
                assert whole[box].std() < 1.15
            assert abs(whole[box].mean()) < 4 * whole[box].std() / 20


def test_structured_runs_have_one_mean_map_and_different_boxes() -> None:
    runs = list(stream("structured", seed=8, lumisections=2))
    assert len(runs) == 20
    boxes = {tuple((box["side"], box["n"]) for box in run.truth["common_mode"]) for run in runs}
    assert len(boxes) == 20
    assert all(np.array_equal(run.rate, runs[0].rate) for run in runs)


@pytest.mark.parametrize(("run", "events", "pileup"), [(355456, 1510, 1.0), (357479, 942, 12.0)])
def test_the_published_ring_medians_come_out(run: int, events: int, pileup: float) -> None:
    rate = nominal_rate() * fingerprint(9)
    counts = draw_counts(rate, np.full(100, events), np.full(100, pileup), np.random.default_rng(9))
    for ring, published in zip(range(19, 30), PUBLISHED_RING_MEDIANS[run], strict=True):
        cells = LIVE & (np.abs(IETA) == ring)[:, None]
        assert np.median(counts[:, cells]) == pytest.approx(published, rel=0.03)


def test_write_leaves_the_original_layout_and_the_truth(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "deep" / "lab"
    paths = write(out, "moderate", 5, 3, 40, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert sorted(out.iterdir()) == sorted(paths)
    assert len(paths) == 10
    truth = json.loads((out / "truth.json").read_text())
    assert truth["stream"]["name"] == "moderate" and truth["seed"] == 5 and truth["lumisections"] == 40
    assert len(truth["fingerprint"]) == 932
    for simulated, told_truth in zip(stream("moderate", seed=5, runs=3, lumisections=40), truth["runs"], strict=True):
        assert told_truth == simulated.truth
        assert len(told_truth["gain"]) == 932
        for path, array in (
            (out / f"Run{simulated.run}_Dataset_moderate.npy", simulated.counts),
            (out / f"Run{simulated.run}_events.npy", simulated.events),
            (out / f"Run{simulated.run}_pileup.npy", simulated.pileup),
        ):
            assert RUN_FILE.match(path.name) or SIDECAR_FILE.match(path.name)
            stored = np.load(path, allow_pickle=False)
            assert stored.dtype == np.float64
            assert np.array_equal(stored, array)
        gain = np.zeros(LIVE.shape)
        gain[LIVE] = told_truth["gain"]
        assert np.allclose(nominal_rate() * fingerprint(5) * gain, simulated.rate, rtol=6e-5)
    assert len(json.dumps(truth["runs"][-1])) * 20 < 1_000_000


def test_write_repeats_itself_over_what_an_earlier_call_left(tmp_path: Path) -> None:
    paths = write(tmp_path, "null", 1, 2, 5)
    before = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[0].with_name(f".{paths[0].name}.tmp").write_bytes(b"half")
    assert [path.read_bytes() for path in write(tmp_path, "null", 1, 2, 5)] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_write_refuses_a_folder_that_holds_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\): choose an empty or new folder"):
        write(tmp_path, "null", 1, 2, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_write_that_did_not_finish_leaves_no_truth(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    write(tmp_path, "null", 1, 2, 5)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "null", 1, 2, 6, interrupt)
    assert not (tmp_path / "truth.json").exists()


def test_write_refuses_a_path_that_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another folder"):
        write(file, "null", 1, 2, 5)


def test_an_unknown_stream_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(InputError, match="no stream 'week': choose one of null, moderate, small, structured, year, tracks"):
        stream("week", seed=0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"runs": 0}, "runs must be 1 or more, not 0"),
        ({"lumisections": 0}, "lumisections must be 1 or more, not 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"runs": 631}, "has 630 different runs at most, not 631"),
        ({"first_run": MAX_NUMBER}, "choose another first run"),
        ({"first_run": 0}, "choose another first run"),
    ],
)
def test_numbers_that_make_no_stream_are_refused_at_once(options: dict[str, int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        stream("structured", **{"seed": 0, **options})
