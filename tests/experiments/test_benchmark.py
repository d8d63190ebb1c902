"""A benchmark goes through the learner's own code, saves its cells, goes on where it stopped, and mixes no seeds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from dqmstream.errors import InputError
from dqmstream.experiments.benchmark import Spec, run_benchmark
from dqmstream.experiments.bounds import BOUNDS
from dqmstream.experiments.cells import Cell, compute_and_save, load_cell, ordered, run_cell
from dqmstream.experiments.replay import replay
from dqmstream.experiments.simulator import stream
from dqmstream.experiments.statistics import chance_interval
from dqmstream.experiments.table import COLUMNS, markdown, printed, summarise, write
from dqmstream.learners.learner import LearnerSettings
from dqmstream.learners.registry import BASELINES, CONVEX, STREAMING
from tests.runs import simulated_archive
from tests.scale import SOAK

SMALL = Spec(streams=("null", "small"), strategies=("ideal", "gain_map", "ring_means"), seeds=(100,), runs=3, lumisections=200)
CELL = Cell("small", 3, 0, "gain_map", 3, 200, 1_000_000, 6000)


def test_a_cell_has_the_figures_of_a_replay_from_the_archive(tmp_path: Path) -> None:
    archive = simulated_archive(tmp_path, runs=3)
    replayed = replay(archive, tmp_path / "state", LearnerSettings(strategy="gain_map", seed=1))
    cell = run_cell(replace(CELL, stream="moderate", seed=1))
    assert [line["run"] for line in cell["lines"]] == replayed["runs"]
    assert cell["lines"][-1]["accuracy"] == replayed["accuracy_matrix"][-1]
    assert cell["lines"][-1]["auc"] == replayed["auc_matrix"][-1]


def test_a_benchmark_goes_on_where_it_stopped_and_makes_its_table(tmp_path: Path) -> None:
    first = run_benchmark(SMALL, tmp_path, workers=2)
    (tmp_path / "cells" / "small-100-0-gain_map.json").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    seen: list[tuple[int, int]] = []
    again = run_benchmark(SMALL, tmp_path, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 6), (6, 6)]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir() if path.name in kept} == kept
    assert [cell["lines"][-1]["accuracy"] for cell in again] == [cell["lines"][-1]["accuracy"] for cell in first]

    result = summarise(SMALL, again)
    write(result, tmp_path)
    tables = {table["stream"]: {row["strategy"]: row for row in table["rows"]} for table in result["tables"]}
    assert tables["null"]["ideal"]["accuracy"]["estimate"] == pytest.approx(1 / 3)
    assert tables["small"]["ring_means"]["accuracy"]["estimate"] < tables["small"]["gain_map"]["accuracy"]["estimate"]
    assert tables["small"]["ring_means"]["beside"]["p_holm"] <= 1
    assert json.loads((tmp_path / "results.json").read_text())["use"] == "reported"
    assert (tmp_path / "table.md").read_text() == markdown(result)
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert {len(printed(row)) for table in result["tables"] for row in table["rows"]} == {len(COLUMNS)}


def test_every_baseline_stands_in_a_benchmark_that_names_no_strategies_with_both_bounds() -> None:
    chosen = Spec().checked().strategies
    assert set(chosen) == {*BOUNDS, *BASELINES}
    longest_first = [cell.strategy for cell in Spec(streams=("null",), seeds=(100,)).cells()]
    assert longest_first[:3] == ["cnn", "ideal_profiled", "logistic"]


def test_guessing_is_judged_by_what_the_lumisections_of_each_strategy_are_worth() -> None:
    """Luminosity names neighbours alike, gain maps do not. Streams add up, and another order of the same runs does not."""
    spec = replace(SMALL, streams=("null",), seeds=(100, 101), orders=2, strategies=("ring_means", "gain_map"))
    cells = [run_cell(cell) for cell in spec.cells()]
    rings, maps = summarise(spec, cells)["tables"][0]["rows"]
    tested = 2 * 3 * 30
    worth = {name: [c["worth"] for c in cells if c["cell"]["strategy"] == name] for name in ("ring_means", "gain_map")}
    assert rings["worth"] == pytest.approx(sum(worth["ring_means"]) / 2)
    assert rings["worth"] < 0.75 * maps["worth"] <= 0.75 * tested
    assert rings["guessing"] == asdict(chance_interval(3, rings["worth"]))
    assert rings["guessing"]["high"] - rings["guessing"]["low"] > maps["guessing"]["high"] - maps["guessing"]["low"]
    for row in (rings, maps):
        assert row["guessing"]["low"] <= row["accuracy"]["estimate"] <= row["guessing"]["high"]


@pytest.mark.parametrize(
    "strategy",
    [*STREAMING, *CONVEX, pytest.param("cnn", marks=pytest.mark.skipif(not SOAK, reason="DQMSTREAM_SOAK=1: 30 s"))],
)
def test_where_nothing_differs_but_luminosity_every_baseline_guesses(strategy: str) -> None:
    """Within the central 99.9 % of guessing, given what its lumisections are worth."""
    spec = replace(SMALL, streams=("null",), seeds=(100, 101), runs=5, lumisections=400, strategies=(strategy,))
    row = summarise(spec, [run_cell(cell) for cell in spec.cells()])["tables"][0]["rows"][0]
    least, most = binom.ppf([0.0005, 0.9995], round(row["worth"]), 1 / 5) / round(row["worth"])
    assert least <= row["accuracy"]["estimate"] <= most


def test_a_cell_that_fails_is_recorded_and_tried_again(tmp_path: Path) -> None:
    broken = replace(CELL, strategy="nonsense")
    assert "nonsense" in compute_and_save(tmp_path, broken)["error"]
    assert load_cell(tmp_path, broken) is None
    spec = replace(SMALL, streams=("small",), strategies=("gain_map", "ring_means"))
    cells = [{"cell": {"stream": "small", "strategy": "gain_map"}, "error": "why"}, run_cell(spec.cells()[1])]
    result = summarise(spec, cells)
    assert [one["error"] for one in result["failed"]] == ["why"]
    assert [row["strategy"] for row in result["tables"][0]["rows"]] == ["ring_means"]


def test_a_cell_of_other_numbers_is_not_taken_for_this_one(tmp_path: Path) -> None:
    compute_and_save(tmp_path, CELL)
    assert load_cell(tmp_path, CELL) is not None
    assert load_cell(tmp_path, replace(CELL, memory_bytes=5)) is None


def test_changes_to_a_recipe_are_part_of_the_cells_that_have_one_and_stand_above_the_table(tmp_path: Path) -> None:
    changes = {"steps": 3, "dim": 16, "heads": 2, "depth": 1, "patch": [32, 36]}
    spec = replace(SMALL, streams=("small",), strategies=("ideal", "gain_map", "replay"), runs=2, recipe=changes)
    cells = {cell.strategy: cell for cell in spec.checked().cells()}
    assert cells["ideal"].recipe == cells["gain_map"].recipe == ""
    assert json.loads(cells["replay"].recipe) == changes
    done = {name: compute_and_save(tmp_path, cell) for name, cell in cells.items()}
    assert done["replay"]["lines"][-1]["samples"] == 3 * 64
    assert load_cell(tmp_path, cells["replay"]) is not None
    assert load_cell(tmp_path, replace(cells["replay"], recipe="")) is None
    assert "steps 3, dim 16" in markdown(summarise(spec, list(done.values())))
    assert [cell.recipe for cell in replace(spec, strategies=("replay",), recipe={"steps": 100}).cells()] == [""]


def test_orders_are_permutations_of_the_same_runs() -> None:
    runs = list(stream("null", seed=1, runs=6, lumisections=2))
    assert ordered(runs, 1, 0) == runs
    other = [run.run for run in ordered(runs, 1, 1)]
    assert other != [run.run for run in runs] and sorted(other) == [run.run for run in runs]
    assert other == [run.run for run in ordered(runs, 1, 1)] != [run.run for run in ordered(runs, 1, 2)]


def test_a_difference_is_starred_where_interval_and_p_value_agree() -> None:
    """Two streams: one strategy better by .1 on every run, and one on the runs of one stream alone, worse on the other's."""

    def cell(strategy: str, seed: int, accuracy: float) -> dict[str, Any]:
        lines: list[dict[str, Any]] = [{"run": 0, "accuracy": None, "auc": None}]
        lines += [{"run": i, "accuracy": [accuracy] * (i + 1), "auc": [0.5] * (i + 1)} for i in range(1, 12)]
        return {"cell": {"stream": "small", "strategy": strategy, "seed": seed, "order": 0}, "lines": lines, "worth": 360.0}

    spec = Spec(streams=("small",), strategies=("gain_map", "logistic", "naive_bayes"), runs=12)
    values = {"gain_map": (0.5, 0.5), "logistic": (0.6, 0.6), "naive_bayes": (0.9, 0.49)}
    cells = [cell(name, 100 + k, value) for name, pair in values.items() for k, value in enumerate(pair)]
    rows = {row["strategy"]: row for row in summarise(spec, cells)["tables"][0]["rows"]}
    assert rows["naive_bayes"]["beside"]["p_holm"] < 0.05, "runs are flipped: twelve of them won by far"
    place = COLUMNS.index("- gain map")
    assert printed(rows["logistic"])[place].endswith("*")
    assert not printed(rows["naive_bayes"])[place].endswith("*")


def test_over_folds_every_lumisection_is_judged_and_the_runs_count_once() -> None:
    spec = replace(SMALL, streams=("small",), strategies=("ring_means",), split="folds")
    cells = [run_cell(cell) for cell in spec.cells()]
    assert len({cell["cell"]["fold"] for cell in cells}) == len(cells) == 5
    row = summarise(spec, cells)["tables"][0]["rows"][0]
    last = np.mean([cell["lines"][-1]["accuracy"] for cell in cells], axis=0)
    assert row["accuracy"]["estimate"] == pytest.approx(last.mean())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": (3, 100)}, "do not go together"),
        ({"streams": ("nowhere",)}, "no stream"),
        ({"strategies": ("magic",)}, "no strategy"),
        ({"split": "hope"}, "no split"),
        ({"runs": 1}, "needs 2 runs"),
        ({"recipe": {"speed": 3}}, "has no speed"),
        ({"lumisections": 50}, "needs 180 lumisections"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        run_benchmark(replace(SMALL, **changes), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
