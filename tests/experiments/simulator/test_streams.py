"""Named streams: the bits of published figures, a year at flat cost, conditions of each, and seeds that do not mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import LIVE, SimulatedRun, interpolate, simulated_run, stream, write
from dqmstream.experiments.simulator.conditions import draw_conditions, luminosity, run_numbers
from dqmstream.experiments.simulator.detector import ageing
from dqmstream.experiments.simulator.draws import walk
from dqmstream.experiments.simulator.streams import CHOICES, STREAMS, named_stream, seed_use
from dqmstream.lumisection import IETA, MAX_NUMBER

PUBLISHED = {
    355456: (1564.94, 157.14, 364.31, (253, 289, 514, 624, 756, 901, 1070, 1252, 1252, 1411, 1256)),
    357479: (1091.97, 181.08, 362.53, (793, 824, 914, 928, 935, 942, 949, 949, 942, 942, 928)),
}
"""Run -> max, mean, standard deviation over all cells, and medians of the live cells of |ieta| 19..29: read from the files."""

PINNED = {
    "null": "4107c6d453e0c8e1",
    "moderate": "04a443bdd979273c",
    "small": "28a4b8b2406dbe78",
    "structured": "52dda2a0926c653f",
}


def digest(runs: Iterator[SimulatedRun]) -> str:
    sha256 = hashlib.sha256()
    for run in runs:
        sha256.update(str(run.run).encode())
        for part in (run.counts, run.events):
            sha256.update(np.ascontiguousarray(part, "<f8").tobytes())
    return sha256.hexdigest()[:16]


@pytest.mark.parametrize("name", PINNED)
def test_the_streams_of_published_figures_keep_their_bits(name: str) -> None:
    """If a new NumPy draws other numbers, figures in the README are of streams that no longer exist: measure them again."""
    assert digest(stream(name, seed=101, runs=6, lumisections=40)) == PINNED[name]


@pytest.mark.parametrize("name", STREAMS)
def test_a_run_asked_for_alone_is_the_same_bits(name: str) -> None:
    *_, last = stream(name, seed=4, runs=2, lumisections=15)
    alone = simulated_run(name, 1, seed=4, lumisections=15)
    assert alone.run == last.run and alone.truth == last.truth
    for part in ("counts", "events", "pileup", "rate", "faulty"):
        assert np.array_equal(getattr(alone, part), getattr(last, part))


@pytest.mark.parametrize("name", ["year", "tracks"])
def test_a_lazy_stream_does_not_depend_on_how_many_runs_are_asked_for(name: str) -> None:
    few, many = stream(name, seed=8, runs=5, lumisections=6), stream(name, seed=8, runs=9, lumisections=6)
    for one, other in zip(few, many, strict=False):
        assert np.array_equal(one.counts, other.counts) and one.truth == other.truth


class _Counted(np.random.Generator):
    """A generator that adds up how many numbers it was asked for."""

    drawn = 0

    def _count(self, values: Any) -> Any:
        _Counted.drawn += int(np.size(values))
        return values

    def standard_normal(self, *args: Any, **kwargs: Any) -> Any:
        return self._count(super().standard_normal(*args, **kwargs))

    def random(self, *args: Any, **kwargs: Any) -> Any:
        return self._count(super().random(*args, **kwargs))

    def uniform(self, *args: Any, **kwargs: Any) -> Any:
        return self._count(super().uniform(*args, **kwargs))

    def lognormal(self, *args: Any, **kwargs: Any) -> Any:
        return self._count(super().lognormal(*args, **kwargs))

    def binomial(self, *args: Any, **kwargs: Any) -> Any:
        return self._count(super().binomial(*args, **kwargs))


def numbers_drawn(monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> tuple[int, int]:
    """Random numbers and generators that a run of 20 lumisections takes."""
    made = []

    def counted(seed: np.random.SeedSequence) -> np.random.Generator:
        made.append(seed)
        return _Counted(np.random.PCG64(seed))

    _Counted.drawn = 0
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "default_rng", counted)
        simulated_run(name, index, seed=2, lumisections=20)
    return _Counted.drawn, len(made)


def test_run_900_of_a_year_costs_what_run_10_costs_in_numbers_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    early, late = (numbers_drawn(monkeypatch, "year", index)[0] for index in (10, 900))
    assert late == pytest.approx(early, rel=0.3)
    generators = [numbers_drawn(monkeypatch, "year", index)[1] for index in (100, 401, 900, 999, 4000)]
    assert max(generators) <= 1.3 * min(generators)  # 64 runs in which a fault can have begun, 13 of the walk, a few more
    stepped = [numbers_drawn(monkeypatch, "small", index)[0] for index in (10, 100)]
    assert stepped[1] > 3 * stepped[0]  # the measure sees a cost that grows


def test_the_walk_that_any_run_can_ask_for_has_independent_unit_steps() -> None:
    steps = np.diff([walk(1, index)[LIVE] for index in range(40, 60)], axis=0)
    assert steps.std() == pytest.approx(1, abs=0.03)
    correlation = np.corrcoef(steps)[np.triu_indices(len(steps), 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(LIVE.sum())
    assert not walk(1, 0).any()
    assert walk(1, 1000)[LIVE].std() == pytest.approx(np.sqrt(1000), rel=0.1)
    with pytest.raises(InputError, match="has 4096 different runs at most, not 4097"):
        simulated_run("year", 4096, seed=1)


def test_runs_of_a_year_are_numbered_upwards_with_irregular_gaps() -> None:
    numbers = run_numbers(named_stream("year"), 3, 1000)
    gaps = np.diff(numbers)
    assert (gaps >= 1).all() and len(set(gaps.tolist())) > 30
    assert simulated_run("year", 700, seed=3, lumisections=1).run == numbers[700]


def test_pileup_decays_in_a_fill_and_starts_again_at_the_next() -> None:
    year = named_stream("year")
    paths = [luminosity(year, 5, index, 50) for index in range(200)]
    lengths = {path.truth["fill"]["number"]: path.truth["fill"]["runs"] for path in paths}
    assert set(lengths.values()) == {1, 2, 3, 4}
    for before, path in zip([None, *paths], paths, strict=False):
        fill = path.truth["fill"]
        assert (np.diff(path.pileup) < 0).all()
        if fill["run_of_fill"] == 1:
            assert path.pileup[0] == pytest.approx(7)
        else:
            assert before is not None and before.truth["fill"]["number"] == fill["number"]
            assert path.pileup[0] == pytest.approx(before.pileup[-1])
        if fill["run_of_fill"] == fill["runs"]:
            assert path.pileup[-1] == pytest.approx(3)


def test_a_year_delivers_its_luminosity_as_the_pileup_has_it() -> None:
    year = named_stream("year")
    paths = [luminosity(year, 5, index, 2000) for index in range(41)]
    delivered = np.diff([path.integrated_fb for path in paths])
    pileup = np.array([path.pileup.mean() for path in paths[:-1]])
    assert delivered / pileup == pytest.approx(delivered.sum() / pileup.sum(), rel=1e-2)
    assert luminosity(year, 5, 1000, 2).integrated_fb == pytest.approx(60)


def test_ageing_only_lowers_the_response_and_more_at_high_ieta() -> None:
    after = np.array([ageing(fb)[:, 0] for fb in (0, 1, 10, 60)])
    assert (after[0] == 1).all()
    assert (np.diff(after, axis=0) < 0).all()
    assert (np.diff(after[1:, IETA > 0], axis=1) < 0).all() and (np.diff(after[1:, IETA < 0], axis=1) > 0).all()
    rings = np.abs(IETA)
    assert after[-1][rings == 19] == pytest.approx(0.97, abs=0.001)
    assert after[-1][rings == 29] == pytest.approx(0.698, abs=0.001)


def test_a_year_ages_in_the_data() -> None:
    early, late = (simulated_run("year", index, seed=1, lumisections=20) for index in (1, 999))
    for ring, factor in ((19, 0.97), (29, 0.698)):
        cells = LIVE & (np.abs(IETA) == ring)[:, None] & (early.rate > 0) & (late.rate > 0)
        assert np.median(late.rate[cells] / early.rate[cells]) == pytest.approx(factor, abs=0.06)  # the walk has gone 13 %


def test_conditions_of_tracks_move_more_than_its_faults_do() -> None:
    runs = list(stream("tracks", seed=9, lumisections=30))
    good = np.array([run.expected(run.events, run.pileup).mean(axis=0)[LIVE] for run in runs])
    by_conditions = np.square(good - good.mean(axis=0)).mean()
    by_faults = np.mean([np.square(r.expected_with_faults() - r.expected(r.events, r.pileup))[:, LIVE].mean() for r in runs])
    assert by_conditions > 5 * by_faults
    in_its_conditions = [np.median(run.events) * run.pileup.mean() for run in runs]
    assert max(in_its_conditions) > 4 * min(in_its_conditions)


def test_luminosity_does_not_say_whether_a_lumisection_of_tracks_is_faulty() -> None:
    runs = list(stream("tracks", seed=3, lumisections=60))
    faulty = np.array([run.faulty.mean() for run in runs])
    for condition in ("events", "pileup"):
        level = [getattr(run, condition).mean() for run in runs]
        assert abs(np.corrcoef(level, faulty)[0, 1]) < 4 / np.sqrt(len(runs))


def test_pair_has_the_statistics_of_the_two_published_runs() -> None:
    """Mean of four seeds against the published files: max within 2.5 %, mean and standard deviation within 1 %, each ring's
    median within 2 %, share of zeros to all digits.

    One seed scatters by up to 1.5 % in the mean, since N moves by 2.5 % with a correlation of .9, and by 2.3 % in the max,
    which is one value of some; the rings' rates were fitted to 1.5 %, and the drift of 4 % moves medians by .5 %. Max is
    met because N was chosen to move as much: with a constant N of 1510 it would be 6 % too low in 355456.
    """
    seen: dict[int, list[list[float]]] = {355456: [], 357479: []}
    for seed in range(4):
        for run, length in zip(stream("pair", seed=seed), (501, 1046), strict=True):
            counts = run.counts
            assert len(counts) == length
            assert f"{np.mean(counts == 0):.6f}" == "0.797743"
            rings = [np.median(counts[:, LIVE & (np.abs(IETA) == ring)[:, None]]) for ring in range(19, 30)]
            seen[run.run].append([counts.max(), counts.mean(), counts.std(), *rings])
    for number, values in seen.items():
        most, mean, std, *rings = np.mean(values, axis=0)
        published = PUBLISHED[number]
        assert most == pytest.approx(published[0], rel=0.025)
        assert mean == pytest.approx(published[1], rel=0.01)
        assert std == pytest.approx(published[2], rel=0.01)
        assert rings == pytest.approx(published[3], rel=0.02)


def test_one_number_tells_the_two_runs_of_pair_apart() -> None:
    inner, outer = (LIVE & (np.abs(IETA) == ring)[:, None] for ring in (19, 28))
    ratios = [r.counts[:, outer].mean(axis=1) / r.counts[:, inner].mean(axis=1) for r in stream("pair", seed=1)]
    assert ratios[0].min() > 2 * ratios[1].max()


def test_pair_has_its_own_numbers_and_no_third_run() -> None:
    assert [run.run for run in stream("pair", seed=0, lumisections=2, first_run=MAX_NUMBER)] == [355456, 357479]
    with pytest.raises(InputError, match="pair has 2 different runs at most, not 3"):
        stream("pair", seed=0, runs=3)


def test_interpolated_rows_are_weighted_means_of_their_neighbours() -> None:
    values = np.array([[0.0, 10], [4, 20], [8, 0]])
    assert np.allclose(interpolate(values, 5), [[0, 10], [2, 15], [4, 20], [6, 10], [8, 0]])
    assert np.array_equal(interpolate(values, 3), values)
    lengths = np.random.default_rng(1).random((501, 3))
    rows = interpolate(lengths, 10000)
    assert rows.shape == (10000, 3)
    assert rows[[0, -1]] == pytest.approx(lengths[[0, -1]])
    for column in range(3):
        places = np.linspace(0, 500, 10000)
        assert rows[:, column] == pytest.approx(np.interp(places, np.arange(501), lengths[:, column]))
    for n, wanted in ((1, 5), (6, 5)):
        with pytest.raises(InputError, match="cannot be interpolated"):
            interpolate(np.zeros(n), wanted)


def test_write_interpolates_files_and_sidecars_where_asked(tmp_path: Path) -> None:
    paths = write(tmp_path, "pair", 1, lumisections=6, interpolate_to=20)
    runs = list(stream("pair", seed=1, lumisections=6))
    for run in runs:
        assert np.array_equal(np.load(tmp_path / f"Run{run.run}_Dataset_pair.npy"), interpolate(run.counts, 20))
        assert np.array_equal(np.load(tmp_path / f"Run{run.run}_events.npy"), interpolate(run.events, 20))
    truth = json.loads(paths[-1].read_text())
    assert truth["interpolated_rows"] == 20 and truth["lumisections"] == 6
    with pytest.raises(InputError, match="1046 lumisections cannot be interpolated to 600 rows"):
        write(tmp_path, "pair", 1, interpolate_to=600)


@pytest.mark.parametrize("name", STREAMS)
def test_the_truth_of_every_stream_is_small_and_holds_what_was_chosen(name: str, tmp_path: Path) -> None:
    lines = write(tmp_path, name, 1, 2, 30)[-1].read_text().splitlines()
    assert len(lines) == 4  # the head, a line a run, the end: a reader can take them one by one
    head = json.loads(lines[0] + "]}")
    assert head["choices"] == list(CHOICES[name]) and head["stream"]["name"] == name
    for line, run in zip(lines[1:3], stream(name, seed=1, runs=2, lumisections=30), strict=True):
        assert json.loads(line.rstrip(",")) == run.truth
        assert len(line) < 20_000


def test_truncated_lumisections_keep_their_pileup_in_every_stream() -> None:
    for name in [name for name, named in STREAMS.items() if named.luminosity != "fills"]:
        path = luminosity(named_stream(name), 1, 0, 2000)
        events, pileup, truncated = draw_conditions(path, np.random.default_rng(1))
        rows = [int(str(cut["lumisection"])) - 1 for cut in truncated]
        assert 1 <= len(rows) <= 30
        assert (events[rows] < np.median(events)).all()
        assert np.abs(np.log(pileup / path.pileup)).max() < 0.4


@pytest.mark.parametrize(("seeds", "use"), [([0], "tuning"), (range(10), "tuning"), ([100, 12345], "reported")])
def test_seeds_are_for_tuning_or_for_reporting(seeds: list[int], use: str) -> None:
    assert seed_use(seeds) == use
    assert seed_use(iter(seeds)) == use


@pytest.mark.parametrize(
    ("seeds", "reason"),
    [
        ([3, 101], "seeds 3 and 101 do not go together: 0-9 are for tuning .* make two calls"),
        ([100, 10], "seed 10 is neither for tuning .* 10-99 are kept free"),
        ([99], "seed 99 is neither"),
        ([-1, 0], "seed -1 is neither"),
        ([], "no seed is given: choose from 0-9"),
    ],
)
def test_a_mixture_of_seeds_is_refused_with_what_to_do(seeds: list[int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        seed_use(seeds)
