"""Modes and outages: what moves or drops out in a run is found, names the run, and is not mistaken for a gain."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import StateError
from dqmstream.learners.closed_form.modes import Modes
from dqmstream.learners.closed_form.outages import OutageRates
from dqmstream.learners.closed_form.pileup_slopes import find_slopes, shifts
from dqmstream.learners.closed_form.variance_components import component_variances, free_modes
from dqmstream.learners.maps import RunData
from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.outages import filled, filled_first_run, outages, silent
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part, assign
from dqmstream.lumisection import IETA, Geometry, he_depth1_mask
from tests.learners.streams import draw_run, make_stream, reader

LIVE = he_depth1_mask()


def learnt(strategy: Modes | OutageRates, stream: list[RunData]) -> Modes | OutageRates:
    for number, run in enumerate(stream):
        strategy.learn(number, run, reader(stream))
    return strategy


def with_counts(run: RunData, change: np.ndarray) -> RunData:
    """The run with the counts of its live channels multiplied by (n, live) and rounded."""
    counts = run.maps.counts.copy()
    counts[:, 0, LIVE] = np.rint(counts[:, 0, LIVE] * change)
    maps = type(run.maps)(counts, run.maps.n_events, run.maps.pileup, run.maps.lumisection)
    return RunData(run.run, maps, assign(run.maps.lumisection))


def flickering(stream: list[RunData], channels: list[int], share: float) -> list[RunData]:
    """Run k with channel k of the list out in this share of its lumisections."""
    rng = np.random.default_rng(7)
    changed = []
    for run, channel in zip(stream, channels, strict=True):
        change = np.ones((len(run.maps), int(LIVE.sum())))
        change[rng.random(len(run.maps)) < share, channel] = 0
        changed.append(with_counts(run, change))
    return changed


def accuracy(strategy: Modes | OutageRates, stream: list[RunData]) -> float:
    return float(np.mean([np.mean(strategy.scores(run.part(Part.TEST)).argmax(axis=1) == k) for k, run in enumerate(stream)]))


def test_the_rate_of_a_flicker_is_kept_and_usual_channels_cost_nothing() -> None:
    stream = flickering(make_stream(3, drift=0.0, seed=1, n=200), [10, 400, 900], 0.3)
    strategy = learnt(OutageRates(Geometry(1), 0), stream)
    assert isinstance(strategy, OutageRates)
    rates = strategy.rates()[0]
    assert [int(row.argmax()) for row in rates] == [10, 400, 900]
    np.testing.assert_allclose(rates.max(axis=1), 0.3 * 100 / 120, atol=0.1)
    assert np.count_nonzero(rates > 0.01) == 3
    assert strategy.memory_bytes() < 100


def test_a_box_that_trips_counts_once_not_once_a_channel() -> None:
    stream = make_stream(1, drift=0.0, seed=1, n=100)
    boxes = ReadoutBoxes(LIVE[None])
    change = np.ones((100, int(LIVE.sum())))
    change[40:50, boxes.cells[3]] = 0
    run = with_counts(stream[0], change)
    reference = Reference.fit(run.part(Part.TRAIN))
    counts = run.maps.counts[:, reference.live].astype(np.float64)
    found = outages(silent(counts, reference.response(counts).counts), boxes)
    assert np.flatnonzero(found.boxes.any(axis=0)).tolist() == [3]
    assert np.flatnonzero(found.boxes[:, 3]).tolist() == list(range(40, 50))
    assert not found.channels.any()


def test_outages_of_the_first_run_do_not_move_the_reference() -> None:
    whole = make_stream(1, drift=0.0, seed=2, n=200)[0]
    broken = flickering([whole], [300], 0.3)[0]
    one, other = Reference.fit(whole.part(Part.TRAIN)), Reference.fit(broken.part(Part.TRAIN))
    np.testing.assert_allclose(other.typical.counts, one.typical.counts, rtol=0.02)


def test_without_outages_counts_are_the_same_object() -> None:
    counts = np.full((5, 8), 100.0)
    ring = np.repeat([0, 1], 4)
    assert filled(counts, counts, np.zeros_like(counts, dtype=bool), ring) is counts
    assert filled_first_run(counts, ring) is counts


def test_a_filled_channel_follows_its_ring() -> None:
    expected = np.full((1, 6), 100.0)
    counts = np.array([[80.0, 80.0, 0.0, 80.0, 120.0, 120.0]])
    out = silent(counts, expected)
    assert out.tolist() == [[False, False, True, False, False, False]]
    assert filled(counts, expected, out, np.array([0, 0, 0, 0, 1, 1]))[0].tolist() == [80, 80, 80, 80, 120, 120]


def test_a_moving_ring_is_a_moving_part_and_free_modes_are_only_above_noise() -> None:
    rng = np.random.default_rng(3)
    parts = np.zeros((300, 3))
    for number in range(3):
        parts[100 * number : 100 * (number + 1), number] = 0.5
    noise = rng.standard_normal((200, 300))
    assert not component_variances(noise, parts).any()
    assert free_modes(noise, np.zeros((300, 0))).shape[1] == 0
    moving = noise + 1.2 * rng.standard_normal((200, 1)) * parts[:, 1]
    variances = component_variances(moving, parts)
    assert variances[0] == variances[2] == 0
    assert variances[1] == pytest.approx(1.44, rel=0.3)
    # The same movement is a free mode where its direction is not among the parts, and none where it is.
    free = free_modes(moving, np.zeros((300, 0)))
    assert free.shape[1] == 1
    assert abs(free[:, 0] @ parts[:, 1]) / np.linalg.norm(free[:, 0]) / np.linalg.norm(parts[:, 1]) > 0.9
    assert free_modes(moving, parts * np.sqrt(variances)).shape[1] == 0


def test_a_part_that_responds_to_pileup_in_another_way_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(5)
    parts = np.kron(np.eye(4), np.full((50, 1), 0.5))
    log_pileup = np.linspace(0.4, -0.4, 200)
    noise = rng.standard_normal((200, 200))
    assert len(find_slopes(log_pileup, noise, parts)) == 0
    rise = np.maximum(log_pileup - 0.1, 0.0)
    bent = noise + 3.0 * (rise - rise.mean())[:, None] * parts[:, 2]
    found = find_slopes(log_pileup, bent, parts)
    assert found["part"].tolist() == [2]
    ((part, shift),) = shifts(found, log_pileup)
    assert part == 2
    np.testing.assert_allclose(shift, 3.0 * (rise - rise.mean()), atol=0.15)
    # Beyond the pileups of the run the change is held.
    np.testing.assert_allclose(next(shifts(found, np.array([5.0])))[1], next(shifts(found, np.array([0.4])))[1], rtol=1e-5)


@pytest.fixture(scope="module")
def patterns() -> list[RunData]:
    """Runs with the same mean map; in each another half ring moves against its mirror ring."""
    rng = np.random.default_rng(0)
    ring, side = np.abs(IETA[np.nonzero(LIVE)[0]]), np.sign(IETA[np.nonzero(LIVE)[0]])
    stream = make_stream(3, drift=0.0, seed=5, n=200)
    return [
        with_counts(run, 1 + 0.03 * rng.standard_normal((len(run.maps), 1)) * np.where(ring == 19 + k, side, 0))
        for k, run in enumerate(stream)
    ]


def test_runs_that_differ_by_what_moves_are_told_apart(patterns: list[RunData]) -> None:
    assert accuracy(learnt(Modes(Geometry(1), 0, 1_000_000), patterns), patterns) > 0.7


def test_a_restored_state_scores_and_learns_the_same_bits(patterns: list[RunData]) -> None:
    strategy, resumed = Modes(Geometry(1), 0, 1_000_000), Modes(Geometry(1), 0, 1_000_000)
    for number in (0, 1):
        strategy.learn(number, patterns[number], reader(patterns))
    resumed.restore(strategy.state())
    for one in (strategy, resumed):
        one.learn(2, patterns[2], reader(patterns))
    test = patterns[0].part(Part.TEST)
    np.testing.assert_array_equal(resumed.scores(test), strategy.scores(test))
    damaged = {name: array for name, array in strategy.state().items() if not name.startswith("rows")}
    with pytest.raises(StateError, match="lacks some of its arrays"):
        resumed.restore(damaged)


def test_a_run_of_twelve_lumisections_is_learnt_without_a_number_that_is_not_finite() -> None:
    stream = make_stream(2, drift=0.03, seed=6, n=200)
    short = draw_run(np.ones(int(LIVE.sum())), np.random.default_rng(1), n=12, run=stream[0].run + 1)
    strategy = Modes(Geometry(1), 0, 1_000_000)
    strategy.learn(0, stream[0], reader(stream))
    strategy.learn(1, RunData(short.run, short.maps, np.full(12, Part.TRAIN, dtype=np.uint8)), reader(stream))
    assert np.isfinite(strategy.scores(stream[0].part(Part.TEST))).all()
