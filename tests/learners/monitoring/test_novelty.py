"""The new-run score finds changed runs, ignores changes of luminosity, and is restored from its state."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.evaluation.roc import auc
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.monitoring.stretches import WINDOW
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part, Split
from dqmstream.lumisection import IETA, IPHI, Geometry
from tests.learners.streams import make_stream, reader


def drawn(name: str, runs: int, seed: int = 3) -> list[RunData]:
    return [as_run_data(run, Split()) for run in stream(name, seed=seed, runs=runs, lumisections=400)]


def learnt(runs: list[RunData]) -> Novelty:
    novelty = Novelty(Geometry(1), 0)
    for number, run in enumerate(runs):
        novelty.learn(number, run, reader(runs))
    return novelty


def noticed(runs: list[RunData]) -> float:
    """AUC of the last run's test lumisections against those of the known runs before it."""
    novelty = learnt(runs[:-1])
    known = [novelty.score(run.part(Part.TEST)).score for run in runs[:-1]]
    return auc(novelty.score(runs[-1].part(Part.TEST)).score, np.concatenate(known))


@pytest.fixture(scope="module")
def small() -> list[RunData]:
    return drawn("small", 6)


@pytest.mark.parametrize("name", ["moderate", "structured"])
def test_a_run_that_is_not_known_is_noticed(name: str) -> None:
    assert noticed(drawn(name, 6)) > 0.9


def test_small_drifts_are_found_and_known_runs_are_not_called_new(small: list[RunData]) -> None:
    assert noticed(small) > 0.85
    novelty = learnt(small)
    scores = [novelty.score(run.part(Part.TEST)) for run in small]
    assert np.mean(np.concatenate([found.bound for found in scores]) <= 0.05) < 0.05
    alarms = [novelty.new_run_alarms(found, 0.05) for found in scores]
    assert all(one.calibrated.all() for one in alarms)
    # Twelve blocks, in which .6 are expected; 4 or more have a probability of .003.
    assert np.mean(np.concatenate([one.raised for one in alarms])) < 4 / 12


def test_where_only_luminosity_differs_a_new_run_is_not_called_new_and_ranks_like_a_known_one() -> None:
    """Windows of 30 lumisections count once: 53 of the four new runs, of which .53 at most are expected at p <= .01.

    The AUC of 6.7 windows against 20 has a standard deviation of sqrt((6.7 + 20 + 1) / (12 x 6.7 x 20)) = .13 in each stream.
    """
    streams = [Null(seed) for seed in range(4)]
    assert np.mean(np.concatenate([one.new for one in streams]) <= 0.01) < 3 / 53
    assert abs(np.mean([one.auc for one in streams]) - 0.5) < 3 * 0.13 / np.sqrt(4)


def test_a_leak_of_pileup_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the above: with expectations that follow the number of events alone, good lumisections are called new."""
    conditions = Reference.conditions_of_live
    monkeypatch.setattr(Reference, "conditions_of_live", lambda self, counts: conditions(self, counts)[:, [1, 1]])
    assert np.mean(Null(0).new <= 0.01) > 0.05


class Null:
    """Three known runs and a new one of a stream in which only luminosity differs.

    new: p of each lumisection of the new run. auc: of its lumisections outside the train part against those of the known runs,
    with full windows alone, since a short window tells less.
    """

    def __init__(self, seed: int) -> None:
        *known, new = drawn("null", 4, seed)
        novelty = learnt(known)
        self.new = novelty.score(new.maps).p
        full = [
            np.concatenate([one.score[WINDOW - 1 :] for one in novelty.score_each(_outside_train(runs))])
            for runs in ([new], known)
        ]
        self.auc = auc(*full)


def _outside_train(runs: list[RunData]) -> list[Maps]:
    """Stretches of consecutive lumisections outside the train part."""
    stretches = []
    for run in runs:
        rows = np.flatnonzero(run.parts != Part.TRAIN)
        stretches += [run.maps.take(rows) for rows in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)]
    return stretches


def test_a_dead_channel_is_found_with_its_expected_count(small: list[RunData]) -> None:
    novelty = learnt(small[:4])
    maps = small[3].part(Part.TEST)
    counts = maps.counts.copy()
    place = np.argwhere(novelty.live)[400]
    counts[:, *place] = 0
    found = novelty.deviation(Maps(counts, maps.n_events, maps.pileup, maps.lumisection))
    assert found.nearest == 3
    worst = int(np.abs(found.pull).argmax())
    assert (np.argwhere(novelty.live)[worst] == place).all(), (IETA[place[1]], IPHI[place[2]])
    assert found.pull[worst] < -10
    assert found.seen[worst] == 0
    assert found.expected[worst] == pytest.approx(maps.counts[:, *place].mean(), rel=0.05)
    assert np.sum(np.abs(found.pull) > 6) == 1


def test_a_score_depends_on_the_window_that_ends_with_its_lumisection(small: list[RunData]) -> None:
    novelty, maps = learnt(small[:3]), small[4].part(Part.TEST)
    whole = novelty.score(maps).score
    np.testing.assert_allclose(novelty.score(maps.take(np.arange(45))).score, whole[:45], rtol=1e-6)
    last = novelty.score(maps.take(np.arange(60 - WINDOW, 60))).score[-1]
    assert last == pytest.approx(whole[-1], rel=1e-6)
    dark = maps.counts.copy()
    dark[10] = 0
    assert np.isfinite(novelty.score(Maps(dark, maps.n_events, maps.pileup, maps.lumisection)).score).all()


def test_it_resumes_to_the_same_bits() -> None:
    runs = make_stream(3, drift=0.03)
    unbroken = Novelty(Geometry(1), 0)
    for number, run in enumerate(runs):
        resumed = Novelty(Geometry(1), 0)
        resumed.restore(unbroken.state())
        for one in (unbroken, resumed):
            one.learn(number, run, reader(runs))
        assert unbroken.state().keys() == resumed.state().keys()
        for name, array in unbroken.state().items():
            np.testing.assert_array_equal(resumed.state()[name], array)
        maps = run.part(Part.TEST)
        np.testing.assert_array_equal(resumed.score(maps).score, unbroken.score(maps).score)


def test_scoring_before_the_first_run_and_damaged_states_are_refused() -> None:
    runs = make_stream(1, drift=0.0)
    with pytest.raises(InputError, match="no run is known"):
        Novelty(Geometry(1), 0).score(runs[0].maps)
    state = learnt(runs).state()
    for missing in state:
        with pytest.raises(StateError):
            Novelty(Geometry(1), 0).restore({name: array for name, array in state.items() if name != missing})
